"""Find the splits of a data set by name: folders, or tar archives, called train, and test or val."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from colddiff_core.datasets.base import Split

ARCHIVES = (".tar", ".tar.gz", ".tgz")
SPLITS: tuple[Split, ...] = ("train", "test")
# What people call the two splits. Where a data set has several that are held out, the first of these is used.
NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
}
_YEAR = re.compile(r"[-_]?\d{4}")  # train2017


def find_splits(root: Path, split: Split) -> list[Path]:
    """Return the folders and tar archives in `root` that are named as a split, the one to use first.

    Capital letters and a year may vary: `Val`, `val2017`. A folder is preferred to an archive of the same name.
    """
    found = [(rank, name) for name in names_in(root) if (rank := _rank(root / name, NAMES[split])) is not None]
    return [root / name for _, name in sorted(found)]


def names_in(root: Path) -> list[str]:
    """Return the names in a folder that are not hidden, sorted; none if it cannot be read."""
    try:
        return sorted(name for name in os.listdir(root) if not name.startswith("."))
    except OSError:
        return []


def archive_stem(name: str) -> str:
    """Return the name of a tar archive without its suffix; empty if it has none of ARCHIVES."""
    ending = next((ending for ending in ARCHIVES if name.lower().endswith(ending)), "")
    return name[: -len(ending)] if ending else ""


def _rank(path: Path, words: Sequence[str]) -> tuple[int, bool, bool] | None:
    """Return how well a path suits a split, lower being better: by word, exact name, folder; None if it does not."""
    if is_folder := path.is_dir():
        stem = path.name
    elif path.is_file():
        stem = archive_stem(path.name)
    else:
        return None
    word = _YEAR.sub("", stem.lower())
    return (words.index(word), stem != word, not is_folder) if word in words else None
