"""Which pictures a command line means."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from colddiff_core.errors import UsageError

Files = Sequence[tuple[Path, bool]]


def agreed(find: Callable[[], Files]) -> list[tuple[Path, bool]]:
    """Return the files that the first process of a job finds: others might find more, of those that come meanwhile."""
    from colddiff_core.distributed import group

    together = group.current()
    if together.is_alone:
        return list(find())
    told = together.on_first(lambda: [[str(file), is_named] for file, is_named in find()])
    return [(Path(str(file)), bool(is_named)) for file, is_named in told]


def listed(names: list[str]) -> list[tuple[Path, bool]]:
    """Return the files meant, and whether each was named itself: one found in a folder may be left out.

    Raises UsageError for an empty name, a folder or glob without images, and where nothing is named.
    """
    from colddiff_core.datasets.decoding import list_images

    found: list[tuple[Path, bool]] = []
    for name in names:
        if not name:
            raise UsageError("An image's name is empty.", "Was a variable of the shell not set?")
        path = Path(name)
        if path.is_dir():
            inside = list_images(path)
        elif not path.exists() and glob.has_magic(name):
            inside = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
        else:
            found.append((path, True))
            continue
        if not inside:
            raise UsageError(f"No images in {name}.", "Name images, folders of images or globs.")
        found += [(path, False) for path in inside]
    if not found:
        raise UsageError("No image was named.", "Name images, folders of images or globs.")
    return found
