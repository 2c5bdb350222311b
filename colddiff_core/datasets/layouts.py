"""Folder and archive layouts in which data sets are published."""

from __future__ import annotations

from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.datasets.decoding import find_split
from colddiff_core.errors import UsageError
from colddiff_core.paths import cache_folder


def data_root(request: DatasetRequest) -> Path:
    """Return the folder given in the request, else the default data folder."""
    return request.directory or cache_folder("data")


def load_split(
    title: str, root: Path, folders: tuple[str, ...], request: DatasetRequest, remedy: str, *, inner: str = ""
) -> ImageSet:
    """Load a split from the first of `folders` under `root` that has it.

    A split is a folder or tar archive named train, and test or val. With `inner`, a subfolder of that name is
    tried first.

    Raises:
        UsageError: None of the folders has the split; `remedy` is the second line of the message.
    """
    names = ["train"] if request.split == "train" else ["test", "val"]
    if inner:
        names = [f"{name}/{inner}" for name in names] + names
    for folder in folders:
        reader = find_split(root / folder, names)
        if reader is not None:
            return reader(request)
    raise UsageError(f"{title} is not in {root}.", remedy)
