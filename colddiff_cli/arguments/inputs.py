"""The picture files that a command line names."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from colddiff_core.errors import UsageError

Files = Sequence[tuple[Path, bool]]  # (file, whether the user named it, rather than a folder or a glob)


def agreed(find: Callable[[], Files]) -> list[tuple[Path, bool]]:
    """Return the files that rank 0 finds: other ranks might see files that arrived in the meantime."""
    from colddiff_core.distributed import group

    ranks = group.current()
    if ranks.is_alone:
        return list(find())
    files = ranks.on_first(lambda: [[str(file), is_named] for file, is_named in find()])
    return [(Path(str(file)), bool(is_named)) for file, is_named in files]


def listed(names: list[str]) -> list[tuple[Path, bool]]:
    """Return the files of all names; those found in folders or by globs may be left out if they cannot be read.

    Raises:
        UsageError: A folder or glob has no images, or there are no names.
    """
    from colddiff_core.datasets.decoding import list_images

    files: list[tuple[Path, bool]] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = list_images(path)
        elif not path.exists() and glob.has_magic(name):
            inside = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
        else:
            files.append((path, True))
            continue
        if not inside:
            raise UsageError(f"No images in {name}.", "Name images, folders of images or globs.")
        files += [(path, False) for path in inside]
    if not files:
        raise UsageError("No image was named.", "Name images, folders of images or globs.")
    return files


def names_images(name: str) -> bool:
    """Return whether a name refers to images: an image suffix, a file, a glob that matches, or a folder, but no run."""
    from colddiff_core.images import SUFFIXES

    path = Path(name)
    if path.is_dir():
        is_run = (path / "run.toml").exists()
        return not is_run and any(inside.suffix.lower() in SUFFIXES for inside in path.iterdir())
    return path.suffix.lower() in SUFFIXES or path.is_file() or bool(glob.has_magic(name) and glob.glob(name))
