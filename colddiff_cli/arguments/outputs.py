"""Where commands write: what cannot be written to is refused before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from colddiff_core.errors import UsageError


def picture(text: str) -> Path:
    """Return the path that --out names; raises UsageError where no picture can be written to it."""
    path = _named(text, "--out")
    _check_place(path, "another --out")
    return path


def folder(text: str) -> Path:
    """Return the path that --out-dir names; raises UsageError where no pictures can be written below it."""
    path = _named(text, "--out-dir")
    check_folder(path, "another --out-dir")
    return path


def run(text: str) -> Path:
    """Return the path that --out of `train` names; raises UsageError where no run can be made there."""
    path = _named(text, "--out")
    check_folder(path.parent, "another --out")
    return path


def runs(text: str) -> Path:
    """Return the folder of runs that --runs names; raises UsageError where nothing could lie in it."""
    path = _named(text, "--runs")
    if os.path.lexists(path) and not path.is_dir():
        raise UsageError(f"{path} is not a folder.", "Give another --runs.")
    return path


def free_path(wanted: Path | None, default: Path, *, force: bool) -> Path:
    """Return where to write: `wanted`, refused if it exists, or the first free name like `default`.

    Raises UsageError where it cannot be written to, or exists and is not to be overwritten.
    """
    if wanted is None and default.parent.is_symlink():
        raise UsageError(f"{default.parent} is a link, perhaps someone else's.", "Say with --out where to write.")
    path, count = wanted or default, 1
    while wanted is None and path.exists():
        count += 1
        path = default.with_name(f"{default.stem}-{count}{default.suffix}")
    check(path, "another --out", force=force)
    return path


def agreed(find: Callable[[], Iterable[Path | None]]) -> list[Path | None]:
    """Return the paths that the first process of a job finds to write to; what they are is not looked at by others."""
    from colddiff_core.distributed import group

    told = group.current().on_first(lambda: [None if path is None else str(path) for path in find()])
    return [None if path is None else Path(path) for path in told]


def check(path: Path, instead: str, *, force: bool) -> None:
    """Raise UsageError where a picture cannot be written to, or exists and is not to be overwritten.

    instead: what to give for it, in the user's words.
    """
    _check_place(path, instead)
    if path.exists() and not force:
        raise UsageError(f"{path} exists already.", f"Give {instead}, or overwrite it with --force.")


def check_apart(paths: Sequence[Path | None], singles: Sequence[Path]) -> None:
    """Raise UsageError where a picture or film of the whole is to be one of the pictures in --out-dir as well."""
    taken = {single.resolve() for single in singles}
    for path in paths:
        if path is not None and path.resolve() in taken:
            raise UsageError(f"{path} is to be one of the images in --out-dir as well.", "Give another --out.")


def check_not_inputs(targets: Sequence[Path], inputs: Sequence[Path], *, is_alone: bool = False) -> None:
    """Raise UsageError where one of several pictures is to be written over an input: it may be needed still.

    is_alone: there is one input, which has been read by the time that it is written over.
    """
    given = set() if is_alone else {path.resolve() for path in inputs}
    for target in targets:
        if target.resolve() in given:
            what = f"{target} is one of the input pictures, and would be written over."
            raise UsageError(what, "Give another --out-dir.")


def _named(text: str, option: str) -> Path:
    if not text:
        raise UsageError(f"The path after {option} is empty.", "Was a variable of the shell not set?")
    return Path(text)


def _check_place(path: Path, instead: str) -> None:
    check_folder(path.parent, instead)
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", f"Name a picture in it, such as {path / 'picture.png'}.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not an ordinary file.", f"Give {instead}, such as picture.png.")


def check_folder(path: Path, instead: str) -> None:
    """Raise UsageError where a folder can neither be written to nor made."""
    place = next((above for above in (path, *path.parents) if os.path.lexists(above)), Path())
    if not place.is_dir():
        raise UsageError(f"{place} is a file.", f"Give {instead}: nothing can lie below a file.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{place} cannot be written to.", f"Give {instead}, or change the folder's permissions.")
