"""Image files in folders and tar archives, decoded in parallel, broken ones skipped and counted."""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from colddiff_core.datasets.base import ImageSet, Request
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.images import SUFFIXES, read_bytes

ARCHIVES = (".tar", ".tar.gz", ".tgz")
COLOUR = 3
Entry = tuple[Path, bytes | None]


def list_images(root: Path) -> list[Path]:
    """Return the files under `root` that are named like images, sorted; hidden ones are left out."""
    return sorted(path for path in root.rglob("*") if _is_image(path) and path.is_file())


def decode(paths: Sequence[Path], request: Request, where: Path) -> ImageSet:
    """Return files as one set; raises UsageError where none of them can be read."""
    return _decode([(path, None) for path in paths], request, where)


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
    return _decode(list(_members(archive)), request, archive)


def _members(archive: Path) -> Iterator[Entry]:
    """Read an archive's images straight into memory: nothing is unpacked, so no name in it can do harm."""
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                path = archive / PurePosixPath(member.name).name
                if member.isfile() and _is_image(path):
                    stream = opened.extractfile(member)
                    assert stream is not None
                    yield path, stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"Cannot read {archive}: {error}.", "The archive may be cut short; fetch it again.") from None


def _decode(entries: list[Entry], request: Request, where: Path) -> ImageSet:
    def one(entry: Entry) -> np.ndarray | None:
        try:
            return read_bytes(entry[0], size=request.size, channels=request.channels or COLOUR, content=entry[1])
        except ColddiffError:
            return None

    with ThreadPoolExecutor() as pool:
        kept = [picture for picture in pool.map(one, entries) if picture is not None]
    if not kept:
        raise UsageError(f"None of the {len(entries)} images in {where} can be read.", "Check the files.")
    return ImageSet(torch.from_numpy(np.stack(kept)), skipped=len(entries) - len(kept))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
