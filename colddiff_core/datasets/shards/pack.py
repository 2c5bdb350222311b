"""Tar shards out of image files or a known data set: records in a mixed order, the same bytes every time.

A record is called after its place in that order, so that the last one of a shard tells where to go on: what is left of
a packing that was killed is kept, and the rest comes to the same bytes as undisturbed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from colddiff_core import devices, seeds
from colddiff_core.datasets import base, decoding
from colddiff_core.datasets.base import DatasetRequest, ImageSet, Split
from colddiff_core.datasets.folder import hashed_split
from colddiff_core.datasets.shards import counts
from colddiff_core.datasets.shards.archive import ShardIndex, ShardOpener
from colddiff_core.datasets.shards.counts import ShardCount
from colddiff_core.datasets.shards.listing import ShardLocation
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.files import drafted, read_ordinary, refusals, whole
from colddiff_core.images import SUFFIXES, read_bytes

CHUNK = 64  # files read and checked at a time, fewer where they are large
LARGEST_CHUNK = 1 << 26  # bytes of them
MEGABYTE = 1_000_000
SPLITS: tuple[Split, ...] = ("train", "test")
_NAME = re.compile(r"(train|test)-\d{6}\.tar")
_HEADER = tarfile.BLOCKSIZE
_END = 2  # blocks after the last record


@dataclasses.dataclass(frozen=True)
class Record:
    """An image file's content and suffix, and its class where there are some."""

    content: bytes
    suffix: str
    label: int | None


class PackSource(Protocol):
    """Images to pack, by number."""

    def __len__(self) -> int: ...

    def size_of(self, number: int) -> int:
        """Return about how many bytes an image takes."""
        ...

    def record(self, number: int) -> Record | None:
        """Return an image, None where it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class FileList:
    """Image files, as they are, or scaled to `size` and made of `channels` where these are not 0.

    Those that a reader of shards would not know by their suffix are made PNG.
    """

    paths: Sequence[Path]
    labels: Sequence[int] | None
    size: int = 0
    channels: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def size_of(self, number: int) -> int:
        try:
            return self.paths[number].stat().st_size
        except OSError:
            return 0

    def record(self, number: int) -> Record | None:
        path, label = self.paths[number], self.labels[number] if self.labels is not None else None
        try:
            content = read_ordinary(path, decoding.LARGEST_MEMBER)
            pixels = read_bytes(path, size=self.size, channels=self.channels, content=content)
        except (OSError, ColddiffError):
            return None
        suffix = path.suffix.lower()
        if self.size or self.channels or suffix not in SUFFIXES:
            return Record(_png(pixels), ".png", label)
        return Record(content, suffix, label)


@dataclasses.dataclass(frozen=True)
class PackedPixels:
    """The images of a data set, as PNG."""

    images: ImageSet

    def __len__(self) -> int:
        return len(self.images)

    def size_of(self, number: int) -> int:
        return self.images.pixels[0].nbytes

    def record(self, number: int) -> Record | None:
        labels = self.images.labels
        label = int(labels[number]) if labels is not None else None
        return Record(_png(self.images.pixels[number].numpy()), ".png", label)


@dataclasses.dataclass(frozen=True)
class Splits:
    """What is to be packed, and the names of the classes, none where there are no classes or they have no names."""

    sources: Mapping[Split, PackSource]
    classes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ShardLimits:
    """How many records a shard has at most, and how many bytes, unless a single record has more."""

    records: int
    bytes: int


@dataclasses.dataclass
class PackedSplit:
    """The shards of a split: the bytes of each and what it holds; how many files were left out as unreadable.

    kept: how many of the shards were there already.
    """

    shards: dict[str, tuple[int, ShardCount]] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    kept: int = 0

    @property
    def records(self) -> int:
        return sum(count.records for _, count in self.shards.values())


def of_tree(root: Path, size: int = 0, channels: int = 0) -> Splits:
    """Return the images under a folder, split and with the classes that the data set `folder` gives them.

    Both splits number their classes alike. Raises UsageError where there are none, or a split is an archive.
    """
    given = [root / split for split in SPLITS]
    if all(decoding.find_split(root, [split]) for split in SPLITS):
        for place in given:
            if not place.is_dir():
                raise UsageError(f"{place} is not a folder.", "Unpack the archive first.")
        listed = {split: decoding.list_images(place) for split, place in zip(SPLITS, given, strict=True)}
        wheres = dict(zip(SPLITS, given, strict=True))
    else:
        every = decoding.list_images(root)
        listed = {split: hashed_split(every, root, split) for split in SPLITS}
        wheres = dict.fromkeys(SPLITS, root)
    for split in SPLITS:
        if not listed[split]:
            raise UsageError(f"No images in {wheres[split]}.", "Name images, folders of images or globs.")
    return _sorted_by_folder(listed, wheres, size, channels)


def of_files(paths: Sequence[Path], size: int = 0, channels: int = 0) -> Splits:
    """Return image files that may lie anywhere: a tenth is for testing, by a hash of the paths below what they share.

    Where folders there sort them all, those are the classes. Raises UsageError for fewer than two.
    """
    absolute = [Path(path) for path in dict.fromkeys(map(os.path.abspath, paths))]
    root = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    listed = {split: hashed_split(absolute, root, split) for split in SPLITS}
    return _sorted_by_folder(listed, dict.fromkeys(SPLITS, root), size, channels)


def of_set(name: str, request: DatasetRequest) -> Splits:
    """Return both splits of a known data set; errors as `datasets.load`, and for what is packed already."""
    if name == "shards":
        raise UsageError("The images of shards are packed already.", "Copy the files.")
    held = {split: base.load(name, dataclasses.replace(request, split=split)) for split in SPLITS}
    return Splits({split: PackedPixels(images) for split, images in held.items()}, held["train"].classes)


def _sorted_by_folder(
    listed: Mapping[Split, Sequence[Path]], wheres: Mapping[Split, Path], size: int, channels: int
) -> Splits:
    inner = {split: decoding.folders_of(paths, wheres[split]) for split, paths in listed.items()}
    classes = tuple(sorted(set().union(*inner.values())))
    if len(classes) < 2 or "." in classes:
        return Splits({split: FileList(paths, None, size, channels) for split, paths in listed.items()})
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {split: [numbers[name] for name in names] for split, names in inner.items()}
    made = {split: FileList(paths, labels[split], size, channels) for split, paths in listed.items()}
    return Splits(made, classes)


def in_the_way(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the shards in a folder that `pack` may have written, and others that a data set would have; sorted."""
    endings = [f"-*{ending}" for ending in decoding.ARCHIVES] + [".urls"]
    found = sorted(path for split in SPLITS for ending in endings for path in folder.glob(split + ending))
    own = [path for path in found if _NAME.fullmatch(path.name)]
    return own, [path for path in found if path not in own]


def pack(
    source: PackSource, split: Split, folder: Path, limits: ShardLimits, seed: int, at_record: Callable[[int], None]
) -> PackedSplit:
    """Write a split's images as shards, mixed by `seed`; those that are there already, one after the other, are kept.

    at_record: told how many images are done. A shard has its name once it is whole. Raises UsageError where no image
    can be read, MachineError where the disk is full.
    """
    made, begin = _kept(folder, split)
    order = torch.randperm(len(source), generator=seeds.generator(seed, "pack", split))
    at_record(begin)
    numbered = _sound(source, order, begin, made, at_record)
    following = next(numbered, None)
    while following is not None:
        path = folder / f"{split}-{len(made.shards):06}.tar"
        with whole(path) as draft:
            held: list[Record] = []
            with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as archive:
                while following is not None and _has_room(archive, len(held), following[1], limits):
                    _add(archive, *following)
                    held.append(dataclasses.replace(following[1], content=b""))
                    following = next(numbered, None)
            size = draft.stat().st_size
        made.shards[path.name] = (size, _count(held))
    if not made.shards:
        raise UsageError(f"None of the {len(source)} {split} images can be read.", "Check the files.")
    return made


def finish(folder: Path, packed: Mapping[Split, PackedSplit], classes: Sequence[str]) -> None:
    """Write the list of all shards, which tells that they are all there."""
    shards = {name: told for split in packed.values() for name, told in split.shards.items()}
    with whole(folder / counts.LIST) as draft:
        draft.write_text(counts.listing(shards, classes), encoding="utf-8")


def _kept(folder: Path, split: Split) -> tuple[PackedSplit, int]:
    """Return the whole shards that are there, and the place of the first image that is in none of them.

    What comes after one that is missing or damaged is removed, and what a killed packing was writing.
    """
    made, begin = PackedSplit(), 0
    for path in [folder / f"{split}-{number:06}.tar" for number in range(len(list(folder.glob(f"{split}-*.tar"))))]:
        try:
            index = ShardOpener().open(ShardLocation(path.name, folder, path)).index
            begin = _last(path, index) + 1
        except (UsageError, OSError, ValueError):
            break
        made.shards[path.name] = (path.stat().st_size, ShardCount.of(index))
    made.skipped, made.kept = begin - made.records, len(made.shards)
    with refusals(folder), contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            wanted = drafted(name) or name
            if _NAME.fullmatch(wanted) and wanted.startswith(split) and name not in made.shards:
                (folder / name).unlink()
    return made, begin


def _last(path: Path, index: ShardIndex) -> int:
    """Return the place that the last record of a shard is called after; raises ValueError for one that is not whole."""
    if index.is_cut or not len(index):
        raise ValueError(f"{path} is cut")
    with path.open("rb") as file:
        file.seek(int(index.offsets[-1]) - _HEADER)
        return int(file.read(_HEADER).partition(b".")[0])


def _sound(
    source: PackSource, order: torch.Tensor, begin: int, made: PackedSplit, at_record: Callable[[int], None]
) -> Iterator[tuple[int, Record]]:
    """Yield places in the order and the records there, read ahead in parallel; what cannot be read is counted."""
    with ThreadPoolExecutor(devices.processors()) as pool:
        for places in _chunks(source, order, begin):
            numbers = [int(order[place]) for place in places]
            is_small = sum(map(source.size_of, numbers)) < decoding.SMALL_FILE * len(numbers)
            found = map(source.record, numbers) if is_small else pool.map(source.record, numbers)
            for place, record in zip(places, found, strict=True):
                at_record(place + 1)
                if record is None:
                    made.skipped += 1
                else:
                    yield place, record


def _chunks(source: PackSource, order: torch.Tensor, begin: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    size = 0
    for place in range(begin, len(order)):
        chunk.append(place)
        size += source.size_of(int(order[place]))
        if len(chunk) == CHUNK or size > LARGEST_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _has_room(archive: tarfile.TarFile, held: int, record: Record, limits: ShardLimits) -> bool:
    """Tell whether a record belongs into a shard; the first one always does."""
    blocks = -(-len(record.content) // _HEADER) + 1 + (0 if record.label is None else 2) + _END
    size = -(-(archive.offset + blocks * _HEADER) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return not held or (held < limits.records and size <= limits.bytes)


def _add(archive: tarfile.TarFile, place: int, record: Record) -> None:
    """Write a record: names, sizes and contents are all that its bytes depend on."""
    parts = {record.suffix: record.content}
    if record.label is not None:
        parts[".cls"] = str(record.label).encode()
    for suffix, content in parts.items():
        member = tarfile.TarInfo(f"{place:09}{suffix}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def _count(held: Sequence[Record]) -> ShardCount:
    labels = [record.label for record in held if record.label is not None]
    classes = max(labels) + 1 if len(labels) == len(held) else 0
    return ShardCount(len(held), classes, frozenset(record.suffix for record in held))


def _png(pixels: np.ndarray) -> bytes:
    """Return a PNG of pixels (C, H, W) uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(stream, "png")
    return stream.getvalue()
