"""Any tree of images as a data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.decoding import decode, find_split, list_images
from colddiff_core.errors import UsageError
from colddiff_core.images import SUFFIXES

TEST_SHARE = 0.1


@register("folder", has_crops=True)
def load(request: DatasetRequest) -> ImageSet:
    """Return the images under a folder as (N, C, H, W) uint8, scaled and center-cropped.

    RGB unless gray is requested. If the folder has `train` and `test` (folders or tar archives), those are the splits;
    otherwise a tenth of the files is held out for testing, chosen by a hash of their relative paths. If every image
    lies in one of several subfolders, these are the classes. Files that are unreadable or too small for a crop are
    skipped and counted.

    Raises:
        UsageError: The folder is missing, or has no readable image in the split.
    """
    root = request.directory
    if root is None:
        raise UsageError("The dataset 'folder' needs a folder.", "Name it with --data-dir.")
    if not root.is_dir():
        raise UsageError(f"No such folder: {root}.", "Name an existing one with --data-dir.")
    if find_split(root, ["train"]) and find_split(root, ["test"]):
        split = find_split(root, [request.split])
        assert split is not None
        return split(request)
    paths = list_images(root)
    return decode(hashed_split(paths, root, request.split), request, root, paths)


def hashed_split(paths: list[Path], root: Path, split: str) -> list[Path]:
    """Return the paths that belong to a split, chosen by a hash of each path relative to `root`.

    Raises:
        UsageError: There are fewer than two paths.
    """
    if len(paths) < 2:
        what = f"Only one image in {root}" if paths else f"No images in {root}"
        remedy = f"Add images: a dataset needs at least two, one of them to test on ({', '.join(sorted(SUFFIXES))})."
        raise UsageError(f"{what}.", remedy)
    names = [path.relative_to(root).as_posix() for path in paths]
    test_names = held_out(names)
    return [path for path, name in zip(paths, names, strict=True) if (name in test_names) == (split == "test")]


def held_out(names: Sequence[str]) -> set[str]:
    """Return the names to test on, about a tenth of them: at least one, but never all. Needs two names or more."""
    ranks = sorted((rank(name), name) for name in names)
    chosen = {name for position, name in ranks if position < TEST_SHARE} or {ranks[0][1]}
    if len(chosen) == len(names):
        chosen.discard(ranks[-1][1])
    return chosen


def rank(name: str) -> float:
    """Return a hash of the name in [0, 1); it depends on nothing else, so new files never move old ones."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=7).digest(), "big") / 2**56
