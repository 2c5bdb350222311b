"""Image files in folders and tar archives, decoded in parallel, broken ones skipped and counted."""

from __future__ import annotations

import collections
import dataclasses
import functools
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from colddiff_core.datasets.base import ImageSet, Request
from colddiff_core.errors import ColddiffError, UsageError, counted
from colddiff_core.images import SUFFIXES, read_bytes

ARCHIVES = (".tar", ".tar.gz", ".tgz")
COLOUR = 3


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image file: its path, the folder it lies in below the split's, and its content where it is in an archive."""

    path: Path
    folder: str
    content: bytes | None = None


def list_images(root: Path) -> list[Path]:
    """Return the files under `root` that are named like images, sorted; hidden ones are left out."""
    return sorted(path for path in root.rglob("*") if _is_image(path) and path.is_file())


def decode(paths: Sequence[Path], request: Request, where: Path, among: Sequence[Path] | None = None) -> ImageSet:
    """Return files under `where` as one set; raises UsageError where none of them can be read.

    Where every file lies in a folder, and there are several folders, those are the classes, in the order of their
    names; `among` are all the files where `paths` is a part of them, so that every part numbers the classes alike.
    """
    names = {path: path.parent.relative_to(where).as_posix() for path in [*paths, *(among or [])]}
    entries = [Entry(path, names[path]) for path in paths]
    return _decode(entries, request, where, set(names.values()))


def find_split(root: Path, names: Sequence[str]) -> Callable[[Request], ImageSet] | None:
    """Return what reads the first of `names` that is a folder or a tar archive in `root`, or None."""
    for name in names:
        folder = root / name
        if folder.is_dir():
            return functools.partial(_decode_folder, folder)
        for suffix in ARCHIVES:
            archive = root / (name + suffix)
            if archive.is_file():
                return functools.partial(_decode_archive, archive)
    return None


def _decode_folder(folder: Path, request: Request) -> ImageSet:
    return decode(list_images(folder), request, folder)


def _decode_archive(archive: Path, request: Request) -> ImageSet:
    entries = list(_members(archive))
    # Archives are made with the split's folder around everything or without it.
    outer = {PurePosixPath(entry.folder).parts[:1] for entry in entries}
    if len(outer) == 1 and outer != {()}:
        entries = [
            dataclasses.replace(entry, folder=PurePosixPath(*PurePosixPath(entry.folder).parts[1:]).as_posix())
            for entry in entries
        ]
    return _decode(entries, request, archive, {entry.folder for entry in entries})


def _members(archive: Path) -> Iterator[Entry]:
    """Read an archive's images straight into memory: nothing is unpacked, so no name in it can do harm."""
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                inner = PurePosixPath(member.name)
                path = archive / inner.name
                if member.isfile() and _is_image(path):
                    stream = opened.extractfile(member)
                    assert stream is not None
                    yield Entry(path, inner.parent.as_posix(), stream.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"Cannot read {archive}: {error}.", "The archive may be cut short; fetch it again.") from None


def _decode(entries: list[Entry], request: Request, where: Path, folders: set[str]) -> ImageSet:
    def one(entry: Entry) -> np.ndarray | None:
        try:
            channels = request.channels or COLOUR
            return read_bytes(entry.path, size=request.size, channels=channels, content=entry.content)
        except ColddiffError:
            return None

    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(one, entries))
    kept = [picture for picture in pictures if picture is not None]
    if not kept:
        raise UsageError(f"None of {counted(len(entries), 'image')} in {where} can be read.", "Check the files.")
    pixels, skipped = torch.from_numpy(np.stack(kept)), len(entries) - len(kept)
    classes = tuple(sorted(folders))
    read = [entry for entry, picture in zip(entries, pictures, strict=True) if picture is not None]
    suffixes = frozenset(entry.path.suffix.lower() for entry in read)
    if len(classes) < 2 or "." in classes:  # folders do not sort the images
        return ImageSet(pixels, skipped=skipped, suffixes=suffixes)
    labels = torch.tensor([classes.index(entry.folder) for entry in read])
    order = _in_turn(labels.tolist())
    return ImageSet(pixels[order], labels[order], classes, skipped, suffixes)


def _in_turn(labels: Sequence[int]) -> list[int]:
    """Return an order in which the classes take turns: folder after folder, the first images would be of one class."""
    seen: collections.Counter[int] = collections.Counter()
    turns = []
    for label in labels:
        turns.append((seen[label], label))
        seen[label] += 1
    return sorted(range(len(turns)), key=turns.__getitem__)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
