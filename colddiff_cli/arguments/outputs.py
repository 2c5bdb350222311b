"""Where commands write: bad paths are refused before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from colddiff_core.errors import UsageError


def picture(text: str) -> Path:
    """Parse --out; raises UsageError if no picture can be written there."""
    path = Path(text)
    _check_place(path, "another --out")
    return path


def folder(text: str) -> Path:
    """Parse --out-dir; raises UsageError if no pictures can be written below it."""
    path = Path(text)
    check_folder(path, "another --out-dir")
    return path


def run(text: str) -> Path:
    """Parse --out of `train`; raises UsageError if no run can be created there."""
    path = Path(text)
    check_folder(path.parent, "another --out")
    return path


def runs(text: str) -> Path:
    """Parse --runs; raises UsageError if it is not a folder."""
    path = Path(text)
    if os.path.lexists(path) and not path.is_dir():
        raise UsageError(f"{path} is not a folder.", "Give another --runs.")
    return path


def free_path(out: Path | None, default: Path, *, force: bool) -> Path:
    """Return `out`, or by default the first free name like `default`.

    Raises:
        UsageError: The path cannot be written to, or exists without `force`.
    """
    if out is None and default.parent.is_symlink():
        raise UsageError(f"{default.parent} is a link, perhaps someone else's.", "Name a file with --out.")
    path, count = out or default, 1
    while out is None and path.exists():
        count += 1
        path = default.with_name(f"{default.stem}-{count}{default.suffix}")
    check(path, "another --out", force=force)
    return path


def agreed(find: Callable[[], Iterable[Path | None]]) -> list[Path | None]:
    """Return the output paths that rank 0 finds."""
    from colddiff_core.distributed import group

    paths = group.current().on_first(lambda: [None if path is None else str(path) for path in find()])
    return [None if path is None else Path(path) for path in paths]


def check(path: Path, instead: str, *, force: bool) -> None:
    """Check that a picture can be written to `path`.

    Args:
        instead: What to use in its place, for the error's remedy.

    Raises:
        UsageError: It cannot be written to, or exists without `force`.
    """
    _check_place(path, instead)
    if path.exists() and not force:
        raise UsageError(f"{path} exists already.", f"Use {instead}, or overwrite it with --force.")


def check_apart(paths: Sequence[Path | None], singles: Sequence[Path]) -> None:
    """Raise UsageError if the sheet or film has the name of one of the pictures in --out-dir."""
    taken = {single.resolve() for single in singles}
    for path in paths:
        if path is not None and path.resolve() in taken:
            raise UsageError(f"{path} is also the name of an image in --out-dir.", "Give another --out.")


def check_not_inputs(targets: Sequence[Path], inputs: Sequence[Path], *, is_alone: bool = False) -> None:
    """Raise UsageError if an output would overwrite an input that may still be needed.

    Args:
        is_alone: There is one input, which is read before it is overwritten.
    """
    given = set() if is_alone else {path.resolve() for path in inputs}
    for target in targets:
        if target.resolve() in given:
            what = f"{target} is one of the input pictures."
            raise UsageError(what, "Give another --out-dir.")


def _check_place(path: Path, instead: str) -> None:
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder.", f"Name a picture in it, such as {path / 'picture.png'}.")
    if os.path.exists(path) and not os.path.isfile(path):  # before its folder: nobody but root may write to /dev
        raise UsageError(f"{path} is not an ordinary file.", f"Use {instead}, such as picture.png.")
    check_folder(path.parent, instead)


def check_folder(path: Path, instead: str) -> None:
    """Raise UsageError if a folder can neither be written to nor created."""
    place = next((above for above in (path, *path.parents) if os.path.lexists(above)), Path())
    if not place.is_dir():
        raise UsageError(f"{place} is a file.", f"Use {instead}.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{place} cannot be written to.", f"Use {instead}, or change the folder's permissions.")
