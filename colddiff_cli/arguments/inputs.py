"""The picture files that a command line names."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from colddiff_core.errors import ColddiffWarning, UsageError

Files = Sequence[tuple[Path, bool]]  # (file, whether the user named it, rather than a folder or a glob)


def agreed(find: Callable[[], Files]) -> list[tuple[Path, bool]]:
    """Return the files that rank 0 finds: other ranks might see files that arrived in the meantime."""
    from colddiff_core.distributed import group

    ranks = group.current()
    if ranks.is_alone:
        return list(find())
    files = ranks.on_first(lambda: [[str(file), is_named] for file, is_named in find()])
    return [(Path(str(file)), bool(is_named)) for file, is_named in files]


def listed(names: list[str], *, is_silent: bool = False) -> list[tuple[Path, bool]]:
    """Return the files of all names; those found in folders or by globs may be left out if they cannot be read.

    Warns about what is left out of folders, unless it `is_silent`.

    Raises:
        UsageError: A folder or glob has no images, or there are no names.
    """
    from colddiff_core.datasets.picture_files import find_pictures

    files: list[tuple[Path, bool]] = []
    for name in names:
        path = Path(name)
        found = None
        if path.is_dir():
            found = find_pictures(path)
            inside = found.paths
            for remark in found.remarks if inside and not is_silent else ():
                warnings.warn(ColddiffWarning(remark), stacklevel=2)
        elif not path.exists() and glob.has_magic(name):
            inside = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
        else:
            files.append((path, True))
            continue
        if not inside:
            left_out = f": {found.left_out}" if found and found.left_out else ""
            raise UsageError(f"No images in {name}{left_out}.", "Name images, folders of images or globs.")
        files += [(path, False) for path in inside]
    if not files:
        raise UsageError("No image was named.", "Name images, folders of images or globs.")
    return files


def names_images(name: str) -> bool:
    """Return whether a name refers to images: an image suffix, a file, a glob that matches, or a folder, but no run."""
    from colddiff_core.datasets.picture_files import find_pictures, is_picture_name

    path = Path(name)
    if path.is_dir():
        return not (path / "run.toml").exists() and bool(find_pictures(path).paths)
    return is_picture_name(path.name) or path.is_file() or bool(glob.has_magic(name) and glob.glob(name))
