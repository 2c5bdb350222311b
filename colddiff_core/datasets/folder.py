"""Any tree of images as a data set."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from colddiff_core.datasets.base import ImageSet, Request, register
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.images import SUFFIXES, read_bytes

TEST_SHARE = 0.1


@register("folder")
def load(request: Request) -> ImageSet:
    """Return the images under a folder, shorter side scaled and centre cropped; RGB unless asked for gray.

    With subfolders `train` and `test` those are the splits; else a tenth of the files, chosen by a hash
    of their path below the folder, is held out. Files that cannot be read are skipped and counted.

    Raises UsageError where the folder is missing or holds no readable image of the split.
    """
    root = request.directory
    if root is None:
        raise UsageError("The dataset 'folder' needs a folder.", "Name it with --data-dir.")
    if not root.is_dir():
        raise UsageError(f"No such folder: {root}.", "Name an existing one with --data-dir.")
    paths = _split(root, request.split)
    channels = request.channels or 3
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(lambda path: _read(path, request.size, channels), paths))
    kept = [picture for picture in pictures if picture is not None]
    if not kept:
        raise UsageError(
            f"None of the {len(paths)} images of the {request.split} split in {root} can be read.", "Check the files."
        )
    return ImageSet(torch.from_numpy(np.stack(kept)), skipped=len(paths) - len(kept))


def list_images(root: Path) -> list[Path]:
    """Return the files under `root` that are named like images, sorted; hidden ones are left out."""
    return sorted(
        p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def _split(root: Path, split: str) -> list[Path]:
    if (root / "train").is_dir() and (root / "test").is_dir():
        root = root / split
        paths = list_images(root)
        if not paths:
            raise UsageError(f"No images in {root}.", f"Known: {', '.join(sorted(SUFFIXES))}.")
        return paths
    paths = list_images(root)
    if len(paths) < 2:
        found = f"Only one image in {root}" if paths else f"No images in {root}"
        raise UsageError(f"{found}.", "A dataset needs at least one to train on and one to test on.")
    ranks = sorted((_rank(path.relative_to(root)), path) for path in paths)
    held_out = {path for rank, path in ranks if rank < TEST_SHARE} or {ranks[0][1]}
    if len(held_out) == len(paths):
        held_out.discard(ranks[-1][1])
    return [path for path in paths if (path in held_out) == (split == "test")]


def _rank(relative: Path) -> float:
    """Return a number in [0, 1) that depends on the path alone, so that new files move no old one."""
    return int.from_bytes(hashlib.blake2b(relative.as_posix().encode(), digest_size=7).digest(), "big") / 2**56


def _read(path: Path, size: int, channels: int) -> np.ndarray | None:
    try:
        return read_bytes(path, size=size, channels=channels)
    except ColddiffError:
        return None
