"""Decode image files in parallel; broken ones are skipped, counted and named."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from colddiff_core.config.sizes import in_words
from colddiff_core.datasets import cache, crops
from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.datasets.damage import reason_for
from colddiff_core.distributed import environment
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.images import count_pixels, read_bytes
from colddiff_core.text import NameTally, counted

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
        title: What it is called in messages; empty for its name.
        refusal: Why it cannot be read, if that is known already.
    """

    path: Path
    folder: str
    content: bytes | None = None
    title: str = ""
    refusal: str = ""

    @property
    def name(self) -> str:
        """Path relative to the split or archive, unique within it."""
        return PurePosixPath(self.folder, self.path.name).as_posix()


def _own_names(folders: set[str]) -> dict[str, str]:
    return {folder: folder for folder in folders}


@dataclasses.dataclass(frozen=True)
class EntrySource:
    """Image files to decode, and what is known once all have been read.

    Attributes:
        entries: The image files.
        name_classes: Maps their folders to class names.
        is_complete: Whether all entries came; otherwise the images are not cached.
        remarks: What a user should know about them, a line each.
    """

    entries: Iterator[Entry]
    name_classes: ClassNaming = _own_names
    is_complete: Callable[[], bool] = lambda: True
    remarks: Callable[[], tuple[str, ...]] = tuple


def decode(paths: Sequence[Path], request: DatasetRequest, root: Path, all_folders: Iterable[str] = ()) -> ImageSet:
    """Decode files under `root` into one set, (N, C, H, W) uint8.

    If every file lies in one of several subfolders, these are the classes, sorted by name.

    Args:
        paths: The files to decode.
        request: Size, channels and crop of the images.
        root: The folder that they are in.
        all_folders: The folders of all splits' files, relative to their roots, so that all number the classes alike.

    Raises:
        UsageError: None of the files can be read.
    """
    folders = relative_folders(paths, root)
    return _decode_files(paths, folders, request, root, {*folders, *all_folders})


def decode_by_name(paths: Sequence[Path], request: DatasetRequest, source: Path) -> ImageSet:
    """Decode files from anywhere, each identified by its file name, into one set without classes.

    `source` stands for all of them in messages and as the cache key.

    Raises:
        UsageError: None of the files can be read.
    """
    return _decode_files(paths, ["."] * len(paths), request, source, {"."})


def decode_entries(entries: EntrySource, request: DatasetRequest, source: Path, stamps: Sequence[object]) -> ImageSet:
    """Decode entries into one set, with their folders as classes; cached as long as `stamps` stay the same.

    Args:
        entries: The images.
        request: Size, channels and crop of the images.
        source: Stands for all entries in messages and as the cache key.
        stamps: What the pixels depend on.

    Raises:
        UsageError: None of the entries can be read.
    """
    return _load(entries, request, source, cache.key(source, request, _channels(request), stamps))


def _decode_files(
    paths: Sequence[Path], folders: Sequence[str], request: DatasetRequest, source: Path, all_folders: set[str]
) -> ImageSet:
    if len(paths) * max(1, request.crop) <= cache.CHUNK_IMAGES:
        key = None
    else:
        stamps = [(folder, path.name, cache.stamp(path)) for path, folder in zip(paths, folders, strict=True)]
        key = cache.key(source, request, _channels(request), (sorted(all_folders), stamps))
    entries = EntrySource(map(Entry, paths, folders), lambda _: _own_names(all_folders))
    return _load(entries, request, source, key)


def _load(source: EntrySource, request: DatasetRequest, place: Path, key: cache.CacheKey | None) -> ImageSet:
    """Return the cached images, or decode the entries."""
    cached = cache.load(key) if key else None
    return cached or _decode(source, request, place, key)


def _decode(source: EntrySource, request: DatasetRequest, place: Path, key: cache.CacheKey | None) -> ImageSet:
    size = 0 if request.crop else request.size
    max_images = max(
        1, min(cache.CHUNK_IMAGES, MAX_CHUNK_BYTES // (_channels(request) * math.prod(request.sides)))
    )  # written at once

    def read(entry: Entry) -> np.ndarray | str:
        """Return a picture, or why it cannot be read."""
        if entry.refusal:
            return entry.refusal
        try:
            return read_bytes(
                entry.path,
                size=size,
                channels=_channels(request),
                content=entry.content,
                note=lambda _: further.add(entry.name),
            )
        except ColddiffError as error:
            return reason_for(error, entry.path, entry.content)

    seen: set[str] = set()  # folders, including those of broken files
    image_folders: list[str] = []  # one per image
    suffixes: set[str] = set()
    skipped, several = NameTally(), NameTally()
    further: set[str] = set()  # files with more than one image, by name; threads add to it
    used = 0
    with cache.CacheDraft(key) as draft:
        with ThreadPoolExecutor(environment.processors()) as pool:
            for chunk in _chunks(source.entries, request):
                seen.update(entry.folder for entry in chunk)
                tiles: list[np.ndarray] = []
                pictures = map(read, chunk) if _are_small(chunk) else pool.map(read, chunk)
                for entry, picture in zip(chunk, pictures, strict=True):
                    corners = [] if isinstance(picture, str) else _corners(picture, entry, request)
                    if isinstance(picture, str) or not corners:
                        why = picture if isinstance(picture, str) else _too_small(picture)
                        skipped.add(f"{entry.title or entry.name} ({why})")
                        continue
                    used += 1
                    if entry.name in further:
                        several.add(entry.title or entry.name)
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
            raise _no_images(skipped, place, request)
        if not source.is_complete():
            draft.skip_cache()
        metadata = ImageSet(
            torch.empty(0),
            skipped=skipped.count,
            suffixes=frozenset(suffixes),
            skipped_files=tuple(skipped.names),
            remarks=(*source.remarks(), *_on_frames(several, place)),
        )
        names = source.name_classes(seen)
        classes = tuple(sorted(set(names.values())))
        if len(classes) < 2 or "." in classes:  # the folders are not classes
            return draft.finish(crops.order(len(image_folders)) if request.crop else None, metadata)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[names[folder]] for folder in image_folders]
        order = _interleaved(labels)
        return draft.finish(order, dataclasses.replace(metadata, labels=torch.tensor(labels)[order], classes=classes))


def _on_frames(several: NameTally, place: Path) -> Iterator[str]:
    """Yield a line about the files that have more images than their first one, if there are any."""
    if several.count:
        have = "has" if several.count == 1 else "have"
        yield f"{place}: {counted(several.count, 'file')} {have} several images, of which the first is used ({several})"


def _corners(picture: np.ndarray, entry: Entry, request: DatasetRequest) -> list[tuple[int, int]]:
    """Return the corners of the images to cut from a picture (C, H, W): (0, 0), the whole of it, without a crop."""
    return crops.corners(picture.shape[-2:], request, entry.name) if request.crop else [(0, 0)]


def _too_small(picture: np.ndarray) -> str:
    return f"only {picture.shape[-1]} x {picture.shape[-2]} pixels"


def _no_images(skipped: NameTally, source: Path, request: DatasetRequest) -> UsageError:
    what = f"No readable image in {source}"
    tried = f"({counted(skipped.count, 'image')} tried{': ' if skipped.count else ''}{skipped})."
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
