"""Folder and archive layouts in which data sets are published."""

from __future__ import annotations

import os
from pathlib import Path

from colddiff_core.datasets.archives import load_place
from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.datasets.splits import find_splits
from colddiff_core.errors import UsageError
from colddiff_core.paths import cache_folder


def data_root(request: DatasetRequest) -> Path:
    """Return the folder given in the request, else the default data folder.

    Raises:
        UsageError: It is a file.
    """
    root = request.directory or cache_folder("data")
    if os.path.lexists(root) and not root.is_dir():
        raise UsageError(f"{root} is not a folder.", "Name a folder with --data-dir.")
    return root


def load_split(
    title: str, root: Path, folders: tuple[str, ...], request: DatasetRequest, remedy: str, *, inner: str = ""
) -> ImageSet:
    """Load a split from the first of `folders` under `root` that has it.

    A split is a folder or tar archive, named as in `splits.NAMES`. With `inner`, a subfolder of that name is
    tried first.

    Raises:
        UsageError: None of the folders has the split; `remedy` is the second line of the message.
    """
    for folder in folders:
        places = find_splits(root / folder, request.split)
        inside = [place / inner for place in places if inner and (place / inner).is_dir()]
        if inside or places:
            return load_place((inside or places)[0], request)
    raise UsageError(f"{title} is not in {root}.", remedy)
