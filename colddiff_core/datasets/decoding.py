"""Image files in folders and tar archives, decoded in parallel, broken ones skipped and counted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from colddiff_core import devices
from colddiff_core.datasets import cache, crops
from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.images import SUFFIXES, count_pixels, read_bytes
from colddiff_core.text import counted

ARCHIVES = (".tar", ".tar.gz", ".tgz")
COLOR = 3
SMALL_FILE = 8192  # bytes
LARGEST_MEMBER = 1 << 26  # bytes of a file in an archive that are held in memory
LARGEST_CHUNK = 1 << 28  # bytes of such files, of whole pictures and of tiles at a time
Naming = Callable[[set[str]], dict[str, str]]  # what the folders of a place are called as classes


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image file: its path, the folder it lies in below the split's, and its content where it is in an archive."""

    path: Path
    folder: str
    content: bytes | None = None

    @property
    def name(self) -> str:
        """Return its path below the split's folder or in the archive, which no other file there has."""
        return PurePosixPath(self.folder, self.path.name).as_posix()


def list_images(root: Path) -> list[Path]:
    """Return the files under `root` that are named like images, sorted; hidden ones are left out.

    Links to files count as files; links to folders are not followed, and folders that cannot be read are passed over.
    """
    found: list[Path] = []
    _list(root, found)
    return found


def _list(folder: Path, found: list[Path]) -> None:
    # Folder by folder in the order of names, which is the order of paths: half a million of those need not be sorted.
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                _list(folder / entry.name, found)
            elif _is_image(entry.name) and entry.is_file():
                found.append(folder / entry.name)


def decode(
    paths: Sequence[Path], request: DatasetRequest, where: Path, among: Sequence[Path] | None = None
) -> ImageSet:
    """Return files under `where` as one set; raises UsageError where none of them can be read.

    Where every file lies in a folder, and there are several folders, those are the classes, in the order of their
    names; `among` are all the files where `paths` is a part of them, so that every part numbers the classes alike.
    """
    inner = folders_of(paths, where)
    return _decode_files(paths, inner, request, where, {*inner, *folders_of(among or [], where)})


def decode_apart(paths: Sequence[Path], request: DatasetRequest, where: Path) -> ImageSet:
    """Return files that may lie anywhere as one set without classes, each known by its name alone; errors as `decode`.

    `where` stands for them all in messages and in the cache.
    """
    here = "."
    return _decode_files(paths, [here] * len(paths), request, where, {here})


def decode_entries(
    entries: Iterator[Entry],
    request: DatasetRequest,
    where: Path,
    stamps: Sequence[object],
    is_whole: Callable[[], bool],
) -> ImageSet:
    """Return entries as one set, by the cache for as long as `stamps` are the same; errors as `decode`.

    Their folders are the classes. `where` stands for them all in messages and in the cache, where they are kept if
    `is_whole` says so once all were read.
    """
    key = cache.key(where, request, _channels(request), stamps)
    return _load(entries, request, where, key, lambda folders: {folder: folder for folder in folders}, is_whole)


def _decode_files(
    paths: Sequence[Path], inner: Sequence[str], request: DatasetRequest, where: Path, folders: set[str]
) -> ImageSet:
    if len(paths) * max(1, request.crop) <= cache.CHUNK_IMAGES:
        key = None
    else:
        stamps = [(folder, path.name, cache.stamp(path)) for path, folder in zip(paths, inner, strict=True)]
        key = cache.key(where, request, _channels(request), (sorted(folders), stamps))
    return _load(map(Entry, paths, inner), request, where, key, lambda _: {folder: folder for folder in folders})


def find_split(root: Path, names: Sequence[str]) -> Callable[[DatasetRequest], ImageSet] | None:
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


def _decode_folder(folder: Path, request: DatasetRequest) -> ImageSet:
    return decode(list_images(folder), request, folder)


def _decode_archive(archive: Path, request: DatasetRequest) -> ImageSet:
    key = cache.key(archive, request, _channels(request), (cache.stamp(archive),))
    return _load(_members(archive), request, archive, key, _inside)


def _inside(folders: set[str]) -> dict[str, str]:
    """Return folders of an archive by what they are called in it: it may be made with the split's around everything."""
    outer = {PurePosixPath(folder).parts[:1] for folder in folders}
    if len(outer) != 1 or outer == {()}:
        return {folder: folder for folder in folders}
    return {folder: PurePosixPath(*PurePosixPath(folder).parts[1:]).as_posix() for folder in folders}


def _members(archive: Path) -> Iterator[Entry]:
    """Read an archive's images straight into memory: nothing is unpacked, so no name in it can do harm."""
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                inner = PurePosixPath(member.name)
                path = archive / inner.name
                if member.isfile() and _is_image(inner.name):
                    # What declares to be larger may be a bomb: it is counted as a file that cannot be read.
                    stream = opened.extractfile(member) if member.size <= LARGEST_MEMBER else None
                    yield Entry(path, inner.parent.as_posix(), stream.read() if stream else b"")
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError) as error:
        raise UsageError(f"Cannot read {archive}: {error}.", "The archive may be cut short; fetch it again.") from None


def _load(
    entries: Iterator[Entry],
    request: DatasetRequest,
    where: Path,
    key: cache.CacheKey | None,
    naming: Naming,
    is_whole: Callable[[], bool] = lambda: True,
) -> ImageSet:
    """Return the images kept under a key, else decode them."""
    found = cache.load(key) if key else None
    return found or _decode(entries, request, where, key, naming, is_whole)


def _decode(
    entries: Iterator[Entry],
    request: DatasetRequest,
    where: Path,
    key: cache.CacheKey | None,
    naming: Naming,
    is_whole: Callable[[], bool],
) -> ImageSet:
    size = 0 if request.crop else request.size
    most = max(
        1, min(cache.CHUNK_IMAGES, LARGEST_CHUNK // (_channels(request) * request.size**2))
    )  # images of a portion

    def one(entry: Entry) -> np.ndarray | None:
        try:
            return read_bytes(entry.path, size=size, channels=_channels(request), content=entry.content)
        except ColddiffError:
            return None

    seen: set[str] = set()  # folders, those of broken files too
    inner: list[str] = []  # the folder of each image
    suffixes: set[str] = set()
    count = used = 0
    with cache.CacheDraft(key) as draft:
        with ThreadPoolExecutor(devices.processors()) as pool:
            for chunk in _chunks(entries, request):
                count += len(chunk)
                seen.update(entry.folder for entry in chunk)
                kept: list[np.ndarray] = []
                pictures = map(one, chunk) if _are_small(chunk) else pool.map(one, chunk)
                for entry, picture in zip(chunk, pictures, strict=True):
                    corners = [] if picture is None else _corners(picture, entry, request)
                    if picture is None or not corners:
                        continue
                    used += 1
                    suffixes.add(entry.path.suffix.lower())
                    inner += [entry.folder] * len(corners)
                    for corner in corners:
                        kept.append(crops.cut(picture, corner, request.size))
                        if len(kept) == most:
                            draft.add(np.stack(kept))
                            kept = []
                if kept:
                    draft.add(np.stack(kept))
        if not used:
            raise _nothing(count, where, request)
        if not is_whole():
            draft.refuse()
        rest = ImageSet(torch.empty(0), skipped=count - used, suffixes=frozenset(suffixes))
        names = naming(seen)
        classes = tuple(sorted(set(names.values())))
        if len(classes) < 2 or "." in classes:  # folders do not sort the images
            return draft.keep(crops.order(len(inner)) if request.crop else None, rest)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[names[folder]] for folder in inner]
        order = _in_turn(labels)
        return draft.keep(order, dataclasses.replace(rest, labels=torch.tensor(labels)[order], classes=classes))


def _corners(picture: np.ndarray, entry: Entry, request: DatasetRequest) -> list[tuple[int, int]]:
    """Return where in a picture (C, H, W) the images lie that it is to give: the whole of it unless it is cropped."""
    return crops.corners(picture.shape[-2:], request, entry.name) if request.crop else [(0, 0)]


def _nothing(count: int, where: Path, request: DatasetRequest) -> UsageError:
    found = f"None of {counted(count, 'image')} in {where} can be read"
    if not request.crop:
        return UsageError(f"{found}.", "Check the files.")
    what = f"{found} and has {request.size} x {request.size} pixels."
    return UsageError(what, "Check the files; data.size and data.margin together are what a crop needs.")


def _chunks(entries: Iterator[Entry], request: DatasetRequest) -> Iterator[list[Entry]]:
    """Yield entries by the chunk, smaller ones where their contents are large, or the pictures that are cropped."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += len(entry.content or b"")
        if request.crop:  # of what is scaled only the small picture stays in memory
            size += count_pixels(entry.path, entry.content) * _channels(request)
        if len(chunk) == cache.CHUNK_IMAGES or size > LARGEST_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _channels(request: DatasetRequest) -> int:
    return request.channels or COLOR


def folders_of(paths: Sequence[Path], where: Path) -> list[str]:
    """Return the folder of each path below `where`, worked out once for each folder."""
    known: dict[str, str] = {}
    found = []
    for path in paths:
        parent = os.path.dirname(path)
        if parent not in known:
            known[parent] = Path(parent).relative_to(where).as_posix()
        found.append(known[parent])
    return found


def _in_turn(labels: Sequence[int]) -> list[int]:
    """Return an order in which the classes take turns: folder after folder, the first images would be of one class."""
    seen: collections.Counter[int] = collections.Counter()
    turns = []
    for label in labels:
        turns.append((seen[label], label))
        seen[label] += 1
    return sorted(range(len(turns)), key=turns.__getitem__)


def _are_small(entries: Sequence[Entry]) -> bool:
    """Tell whether files are so small that threads would wait for Python, and for each other, longer than they decode.

    Measured on two cores: at .9 kB a file one thread takes .09 ms and six take .19, at 2.8 kB .20 and .23, at 11 kB .24
    and .22.
    """
    sizes = []
    for entry in entries[:: len(entries) // 16 + 1]:
        with contextlib.suppress(OSError):
            sizes.append(len(entry.content) if entry.content is not None else entry.path.stat().st_size)
    return bool(sizes) and sum(sizes) < SMALL_FILE * len(sizes)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
