"""Where a data set's files lie: the folders and archives that sets are published in."""

from __future__ import annotations

from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.datasets.decoding import find_split
from colddiff_core.errors import UsageError
from colddiff_core.paths import cache_folder


def _root(request: DatasetRequest) -> Path:
    return request.directory or cache_folder("data")


def _split(
    title: str, root: Path, folders: tuple[str, ...], request: DatasetRequest, remedy: str, *, inner: str = ""
) -> ImageSet:
    """Return a split out of the first of `folders` that has it: train, and test or val, as folders or archives.

    Raises UsageError with `remedy` where none has.
    """
    names = ["train"] if request.split == "train" else ["test", "val"]
    if inner:
        names = [f"{name}/{inner}" for name in names] + names
    for folder in folders:
        reader = find_split(root / folder, names)
        if reader is not None:
            return reader(request)
    raise UsageError(f"{title} is not in {root}.", remedy)
