"""Decode image files in folders and tar archives, in parallel; broken ones are skipped and counted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import lzma
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from colddiff_core.config.sizes import in_words
from colddiff_core.datasets import cache, crops
from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.distributed import environment
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.images import SUFFIXES, count_pixels, read_bytes
from colddiff_core.text import counted

ARCHIVES = (".tar", ".tar.gz", ".tgz")
COLOR = 3
SMALL_FILE_BYTES = 8192  # below this, threads cost more than they save
MAX_MEMBER_BYTES = 1 << 26  # larger files in archives are not read
MAX_CHUNK_BYTES = 1 << 28  # of file contents, pictures or tiles held at a time
ClassNaming = Callable[[set[str]], dict[str, str]]  # maps folders to class names


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image file.

    Attributes:
        path: Its path, or its name in an archive.
        folder: Its folder relative to the split.
        content: Its bytes if it comes from an archive, else None.
    """

    path: Path
    folder: str
    content: bytes | None = None

    @property
    def name(self) -> str:
        """Path relative to the split or archive, unique within it."""
        return PurePosixPath(self.folder, self.path.name).as_posix()


def list_images(root: Path) -> list[Path]:
    """Return the files under `root` with image suffixes, sorted by path; hidden files are left out.

    Links to files are followed, links to folders are not. Unreadable folders are skipped.
    """
    paths: list[Path] = []
    _list(root, paths)
    return paths


def _list(folder: Path, paths: list[Path]) -> None:
    # Walking folders in name order gives path order, which saves sorting half a million paths.
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                _list(folder / entry.name, paths)
            elif _is_image(entry.name) and entry.is_file():
                paths.append(folder / entry.name)


def decode(
    paths: Sequence[Path], request: DatasetRequest, root: Path, all_paths: Sequence[Path] | None = None
) -> ImageSet:
    """Decode files under `root` into one set, (N, C, H, W) uint8.

    If every file lies in one of several subfolders, these are the classes, sorted by name.

    Args:
        paths: The files to decode.
        request: Size, channels and crop of the images.
        root: The folder that they are in.
        all_paths: The files of all splits, if `paths` is only a part, so that all splits number the classes alike.

    Raises:
        UsageError: None of the files can be read.
    """
    folders = relative_folders(paths, root)
    return _decode_files(paths, folders, request, root, {*folders, *relative_folders(all_paths or [], root)})


def decode_by_name(paths: Sequence[Path], request: DatasetRequest, source: Path) -> ImageSet:
    """Decode files from anywhere, each identified by its file name, into one set without classes.

    `source` stands for all of them in messages and as the cache key.

    Raises:
        UsageError: None of the files can be read.
    """
    return _decode_files(paths, ["."] * len(paths), request, source, {"."})


def decode_entries(
    entries: Iterator[Entry],
    request: DatasetRequest,
    source: Path,
    stamps: Sequence[object],
    is_complete: Callable[[], bool],
) -> ImageSet:
    """Decode entries into one set, with their folders as classes; cached as long as `stamps` stay the same.

    Args:
        entries: The images.
        request: Size, channels and crop of the images.
        source: Stands for all entries in messages and as the cache key.
        stamps: What the pixels depend on.
        is_complete: Called after the last entry; if it returns False, the images are not cached.

    Raises:
        UsageError: None of the entries can be read.
    """
    key = cache.key(source, request, _channels(request), stamps)
    return _load(entries, request, source, key, lambda folders: {folder: folder for folder in folders}, is_complete)


def _decode_files(
    paths: Sequence[Path], folders: Sequence[str], request: DatasetRequest, source: Path, all_folders: set[str]
) -> ImageSet:
    if len(paths) * max(1, request.crop) <= cache.CHUNK_IMAGES:
        key = None
    else:
        stamps = [(folder, path.name, cache.stamp(path)) for path, folder in zip(paths, folders, strict=True)]
        key = cache.key(source, request, _channels(request), (sorted(all_folders), stamps))
    entries = map(Entry, paths, folders)
    return _load(entries, request, source, key, lambda _: {folder: folder for folder in all_folders})


def find_split(root: Path, names: Sequence[str]) -> Callable[[DatasetRequest], ImageSet] | None:
    """Return a loader for the first of `names` that is a folder or tar archive in `root`, or None."""
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
    return _load(_members(archive), request, archive, key, _without_split_folder)


def _without_split_folder(folders: set[str]) -> dict[str, str]:
    """Map the folders of an archive to class names, dropping a single outer folder if there is one."""
    outer = {PurePosixPath(folder).parts[:1] for folder in folders}
    if len(outer) != 1 or outer == {()}:
        return {folder: folder for folder in folders}
    return {folder: PurePosixPath(*PurePosixPath(folder).parts[1:]).as_posix() for folder in folders}


def _members(archive: Path) -> Iterator[Entry]:
    """Yield the images of an archive, read into memory: nothing is unpacked, so no name in it can do harm."""
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                inner = PurePosixPath(member.name)
                path = archive / inner.name
                if member.isfile() and _is_image(inner.name):
                    # A larger file may be a decompression bomb, so it counts as unreadable.
                    stream = opened.extractfile(member) if member.size <= MAX_MEMBER_BYTES else None
                    yield Entry(path, inner.parent.as_posix(), stream.read() if stream else b"")
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError) as error:
        raise UsageError(f"Cannot read {archive}: {error}.", "It may be truncated: download it again.") from None


def _load(
    entries: Iterator[Entry],
    request: DatasetRequest,
    source: Path,
    key: cache.CacheKey | None,
    class_naming: ClassNaming,
    is_complete: Callable[[], bool] = lambda: True,
) -> ImageSet:
    """Return the cached images, or decode the entries."""
    cached = cache.load(key) if key else None
    return cached or _decode(entries, request, source, key, class_naming, is_complete)


def _decode(
    entries: Iterator[Entry],
    request: DatasetRequest,
    source: Path,
    key: cache.CacheKey | None,
    class_naming: ClassNaming,
    is_complete: Callable[[], bool],
) -> ImageSet:
    size = 0 if request.crop else request.size
    max_images = max(
        1, min(cache.CHUNK_IMAGES, MAX_CHUNK_BYTES // (_channels(request) * math.prod(request.sides)))
    )  # written at once

    def read(entry: Entry) -> np.ndarray | None:
        try:
            return read_bytes(entry.path, size=size, channels=_channels(request), content=entry.content)
        except ColddiffError:
            return None

    seen: set[str] = set()  # folders, including those of broken files
    image_folders: list[str] = []  # one per image
    suffixes: set[str] = set()
    count = used = 0
    with cache.CacheDraft(key) as draft:
        with ThreadPoolExecutor(environment.processors()) as pool:
            for chunk in _chunks(entries, request):
                count += len(chunk)
                seen.update(entry.folder for entry in chunk)
                tiles: list[np.ndarray] = []
                pictures = map(read, chunk) if _are_small(chunk) else pool.map(read, chunk)
                for entry, picture in zip(chunk, pictures, strict=True):
                    corners = [] if picture is None else _corners(picture, entry, request)
                    if picture is None or not corners:
                        continue
                    used += 1
                    suffixes.add(entry.path.suffix.lower())
                    image_folders += [entry.folder] * len(corners)
                    for corner in corners:
                        tiles.append(crops.cut(picture, corner, request.sides))
                        if len(tiles) == max_images:
                            draft.add(np.stack(tiles))
                            tiles = []
                if tiles:
                    draft.add(np.stack(tiles))
        if not used:
            raise _no_images(count, source, request)
        if not is_complete():
            draft.skip_cache()
        metadata = ImageSet(torch.empty(0), skipped=count - used, suffixes=frozenset(suffixes))
        names = class_naming(seen)
        classes = tuple(sorted(set(names.values())))
        if len(classes) < 2 or "." in classes:  # the folders are not classes
            return draft.finish(crops.order(len(image_folders)) if request.crop else None, metadata)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[names[folder]] for folder in image_folders]
        order = _interleaved(labels)
        return draft.finish(order, dataclasses.replace(metadata, labels=torch.tensor(labels)[order], classes=classes))


def _corners(picture: np.ndarray, entry: Entry, request: DatasetRequest) -> list[tuple[int, int]]:
    """Return the corners of the images to cut from a picture (C, H, W): (0, 0), the whole of it, without a crop."""
    return crops.corners(picture.shape[-2:], request, entry.name) if request.crop else [(0, 0)]


def _no_images(count: int, source: Path, request: DatasetRequest) -> UsageError:
    what = f"No readable image in {source}"
    tried = f"({counted(count, 'image')} tried)."
    if not request.crop:
        return UsageError(f"{what} {tried}", "Check the files.")
    height, width = request.sides
    least = f"{height} x {width}" if height == width else in_words(request.size)
    what = f"{what} has at least {least} pixels {tried}"
    return UsageError(what, "Check the files, or set a smaller data.size or data.margin.")


def _chunks(entries: Iterator[Entry], request: DatasetRequest) -> Iterator[list[Entry]]:
    """Yield entries in chunks, smaller ones if the files are large or large pictures are cropped."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += len(entry.content or b"")
        if request.crop:  # without a crop, only the scaled picture stays in memory
            size += count_pixels(entry.path, entry.content) * _channels(request)
        if len(chunk) == cache.CHUNK_IMAGES or size > MAX_CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _channels(request: DatasetRequest) -> int:
    return request.channels or COLOR


def relative_folders(paths: Sequence[Path], root: Path) -> list[str]:
    """Return the folder of each path, relative to `root`."""
    relative: dict[str, str] = {}  # computed once per folder
    folders = []
    for path in paths:
        parent = os.path.dirname(path)
        if parent not in relative:
            relative[parent] = Path(parent).relative_to(root).as_posix()
        folders.append(relative[parent])
    return folders


def _interleaved(labels: Sequence[int]) -> list[int]:
    """Return an order in which the classes take turns, so that the first images are not all of one class."""
    seen: collections.Counter[int] = collections.Counter()
    turns = []
    for label in labels:
        turns.append((seen[label], label))
        seen[label] += 1
    return sorted(range(len(turns)), key=turns.__getitem__)


def _are_small(entries: Sequence[Entry]) -> bool:
    """Return whether files are so small that one thread decodes them faster than several.

    Measured on two cores, one thread against six: .09 and .19 ms a file at .9 kB, .20 and .23 at 2.8 kB, .24 and .22 at
    11 kB.
    """
    sizes = []
    for entry in entries[:: len(entries) // 16 + 1]:
        with contextlib.suppress(OSError):
            sizes.append(len(entry.content) if entry.content is not None else entry.path.stat().st_size)
    return bool(sizes) and sum(sizes) < SMALL_FILE_BYTES * len(sizes)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
