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
    """Return the images under a folder, shorter side scaled and center cropped; RGB unless asked for gray.

    With `train` and `test` in it (folders or tar archives) those are the splits; else a tenth of the files,
    chosen by a hash of their path below the folder, is held out. Folders that sort all the images are their
    classes. Files that cannot be read, or are too small for a crop, are skipped and counted.

    Raises UsageError where the folder is missing or holds no readable image of the split.
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
    every = list_images(root)
    return decode(hashed_split(every, root, request.split), request, root, every)


def hashed_split(paths: list[Path], root: Path, split: str) -> list[Path]:
    """Return the paths of a split of files that come without one; raises UsageError for fewer than two."""
    if len(paths) < 2:
        found = f"Only one image in {root}" if paths else f"No images in {root}"
        remedy = f"A dataset needs one to train on and one to test on. Known: {', '.join(sorted(SUFFIXES))}."
        raise UsageError(f"{found}.", remedy)
    names = [path.relative_to(root).as_posix() for path in paths]
    chosen = held_out(names)
    return [path for path, name in zip(paths, names, strict=True) if (name in chosen) == (split == "test")]


def held_out(names: Sequence[str]) -> set[str]:
    """Return the tenth of at least two names that test images go by: at least one of them, and not all."""
    ranks = sorted((rank(name), name) for name in names)
    found = {name for place, name in ranks if place < TEST_SHARE} or {ranks[0][1]}
    if len(found) == len(names):
        found.discard(ranks[-1][1])
    return found


def rank(name: str) -> float:
    """Return a number in [0, 1) that depends on a name alone, so that new files move no old one."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=7).digest(), "big") / 2**56
