"""The names of the pictures that are made of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from colddiff_core.files import fitted


def targets(files: Sequence[Path], folder: Path, ending: str) -> list[Path]:
    """Return the output path for each file, in `folder`: a/x.png becomes FOLDER/x-ENDING.

    If files from several folders have one name, all keep their folders, below the one that they share: a/x.png and
    b/x.png become FOLDER/a/x-ENDING and FOLDER/b/x-ENDING. Files of one folder that differ in their suffix alone get a
    number. A name that would be too long for a file system is shortened.
    """
    parents = [os.path.dirname(os.path.abspath(file)) for file in files]
    places = [Path()] * len(files)
    if len({file.stem for file in files}) < len({*zip(parents, [file.stem for file in files], strict=True)}):
        shared = os.path.commonpath(parents)
        places = [Path(os.path.relpath(parent, shared)) for parent in parents]
    counts: dict[tuple[Path, str], int] = {}
    paths = []
    for file, place in zip(files, places, strict=True):
        counts[place, file.stem] = count = counts.get((place, file.stem), 0) + 1
        numbered = f"-{ending}" if count == 1 else f"-{Path(ending).stem}-{count}{Path(ending).suffix}"
        paths.append(folder / place / fitted(file.stem, numbered))
    return paths


def line(file: Path, files: Sequence[Path], target: Path) -> str:
    """Return what to print about a finished picture: its path, and that of its file where the name does not say it."""
    is_alone = sum(other.stem == file.stem for other in files) == 1
    is_plain = len(files) == 1 or (is_alone and target.name.startswith(f"{file.stem}-"))
    return str(target) if is_plain else f"{file} -> {target}"
