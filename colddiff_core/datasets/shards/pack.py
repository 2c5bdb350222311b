"""Pack image files or a data set into tar shards, in a shuffled order: same seed, same bytes.

A record is named by its position in that order, so the last record of a shard marks where to resume. Complete shards of
an interrupted run are kept, and the remaining ones come out with the same bytes as in an uninterrupted run.
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

CHUNK_FILES = 64  # read and checked at a time
CHUNK_BYTES = 1 << 26  # after which a chunk ends early
MEGABYTE_BYTES = 1_000_000
SPLITS: tuple[Split, ...] = ("train", "test")
_NAME = re.compile(r"(train|test)-\d{6}\.tar")
_BLOCK_BYTES = tarfile.BLOCKSIZE  # also the size of a header
_END_BLOCKS = 2  # after the last record


@dataclasses.dataclass(frozen=True)
class Record:
    """An encoded image, its suffix, and its class number if there are classes."""

    content: bytes
    suffix: str
    label: int | None


class PackSource(Protocol):
    """Images to pack, by index."""

    def __len__(self) -> int: ...

    def size_of(self, index: int) -> int:
        """Return the approximate size of an image in bytes."""
        ...

    def record(self, index: int) -> Record | None:
        """Return an image, or None if it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class FileList:
    """Image files, packed unchanged unless `size` or `channels` is set.

    Changed images, and formats that shards do not support, are stored as PNG.
    """

    paths: Sequence[Path]
    labels: Sequence[int] | None
    size: int = 0
    channels: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def size_of(self, index: int) -> int:
        """Return the size of a file in bytes; 0 if it is missing."""
        try:
            return self.paths[index].stat().st_size
        except OSError:
            return 0

    def record(self, index: int) -> Record | None:
        """Return an image, or None if it cannot be read."""
        path, label = self.paths[index], self.labels[index] if self.labels is not None else None
        try:
            content = read_ordinary(path, decoding.MAX_MEMBER_BYTES)
            pixels = read_bytes(path, size=self.size, channels=self.channels, content=content)
        except (OSError, ColddiffError):
            return None
        suffix = path.suffix.lower()
        if self.size or self.channels or suffix not in SUFFIXES:
            return Record(_png(pixels), ".png", label)
        return Record(content, suffix, label)


@dataclasses.dataclass(frozen=True)
class PackedPixels:
    """The images of a data set, stored as PNG."""

    images: ImageSet

    def __len__(self) -> int:
        return len(self.images)

    def size_of(self, index: int) -> int:
        """Return the size of the pixels in bytes."""
        return self.images.pixels[0].nbytes

    def record(self, index: int) -> Record | None:
        """Return an image."""
        labels = self.images.labels
        label = int(labels[index]) if labels is not None else None
        return Record(_png(self.images.pixels[index].numpy()), ".png", label)


@dataclasses.dataclass(frozen=True)
class Splits:
    """The images to pack, by split, and the class names; empty without classes or if they are unnamed."""

    sources: Mapping[Split, PackSource]
    classes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ShardLimits:
    """The most records and bytes in a shard; a single larger record still gets a shard."""

    records: int
    bytes: int


@dataclasses.dataclass
class PackedSplit:
    """The shards of a split.

    Attributes:
        shards: Size in bytes and counts of each shard, by file name.
        skipped: Number of unreadable files that were left out.
        kept: Number of shards that were there already.
    """

    shards: dict[str, tuple[int, ShardCount]] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    kept: int = 0

    @property
    def records(self) -> int:
        """Number of records in all shards."""
        return sum(count.records for _, count in self.shards.values())


def from_folder(root: Path, size: int = 0, channels: int = 0) -> Splits:
    """Return the images under a folder, with the splits and classes of the data set `folder`.

    Both splits number the classes alike.

    Raises:
        UsageError: A split has no images or is an archive.
    """
    folders = {split: root / split for split in SPLITS}
    if all(decoding.find_split(root, [split]) for split in SPLITS):
        for folder in folders.values():
            if not folder.is_dir():
                raise UsageError(f"{folder} is not a folder.", "Unpack the archive first.")
        paths = {split: decoding.list_images(folder) for split, folder in folders.items()}
    else:
        all_paths = decoding.list_images(root)
        paths = {split: hashed_split(all_paths, root, split) for split in SPLITS}
        folders = dict.fromkeys(SPLITS, root)
    for split in SPLITS:
        if not paths[split]:
            raise UsageError(f"No images in {folders[split]}.", "Name images, folders of images or globs.")
    return _with_classes(paths, folders, size, channels)


def from_files(paths: Sequence[Path], size: int = 0, channels: int = 0) -> Splits:
    """Return image files from anywhere, about a tenth of them for testing, chosen by a hash of their relative paths.

    Paths are relative to the folder that all files share. If its subfolders contain every file, they are the classes.

    Raises:
        UsageError: There are fewer than two files.
    """
    absolute = [Path(path) for path in dict.fromkeys(map(os.path.abspath, paths))]
    root = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    split_paths = {split: hashed_split(absolute, root, split) for split in SPLITS}
    return _with_classes(split_paths, dict.fromkeys(SPLITS, root), size, channels)


def from_dataset(name: str, request: DatasetRequest) -> Splits:
    """Return both splits of the data set `name`.

    Raises:
        UsageError: See `datasets.load`; or the data set is shards already.
        MachineError: See `datasets.load`.
    """
    if name == "shards":
        raise UsageError("The images of 'shards' are packed already.", "Copy the files instead.")
    images = {split: base.load(name, dataclasses.replace(request, split=split)) for split in SPLITS}
    return Splits({split: PackedPixels(images[split]) for split in SPLITS}, images["train"].classes)


def _with_classes(
    paths: Mapping[Split, Sequence[Path]], roots: Mapping[Split, Path], size: int, channels: int
) -> Splits:
    folders = {split: decoding.relative_folders(paths[split], roots[split]) for split in paths}
    classes = tuple(sorted(set().union(*folders.values())))
    if len(classes) < 2 or "." in classes:
        return Splits({split: FileList(paths[split], None, size, channels) for split in paths})
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {split: [numbers[name] for name in names] for split, names in folders.items()}
    return Splits({split: FileList(paths[split], labels[split], size, channels) for split in paths}, classes)


def existing_shards(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the shards in a folder that `pack_split` may have written, and any other shards or lists; sorted."""
    endings = [f"-*{ending}" for ending in decoding.ARCHIVES] + [".urls"]
    paths = sorted(path for split in SPLITS for ending in endings for path in folder.glob(split + ending))
    packed = [path for path in paths if _NAME.fullmatch(path.name)]
    return packed, [path for path in paths if path not in packed]


def pack_split(
    source: PackSource, split: Split, folder: Path, limits: ShardLimits, seed: int, on_progress: Callable[[int], None]
) -> PackedSplit:
    """Write the images of a split as shards, shuffled by `seed`; keep the complete shards of an earlier run.

    A shard gets its final name once it is complete.

    Args:
        source: The images.
        split: "train" or "test".
        folder: Where the shards go.
        limits: The most records and bytes in a shard.
        seed: Determines the order.
        on_progress: Called with the number of images done.

    Raises:
        UsageError: None of the images can be read.
        MachineError: The disk is full, or a write fails.
    """
    packed, start = _resume(folder, split)
    order = torch.randperm(len(source), generator=seeds.generator(seed, "pack", split))
    on_progress(start)
    records = _readable(source, order, start, packed, on_progress)
    pending = next(records, None)
    while pending is not None:
        path = folder / f"{split}-{len(packed.shards):06}.tar"
        with whole(path) as draft:
            written: list[Record] = []
            with tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as archive:
                while pending is not None and _fits(archive, len(written), pending[1], limits):
                    _add(archive, *pending)
                    written.append(dataclasses.replace(pending[1], content=b""))
                    pending = next(records, None)
            size = draft.stat().st_size
        packed.shards[path.name] = (size, _count(written))
    if not packed.shards:
        raise UsageError(f"None of the {len(source)} {split} images can be read.", "Check the files.")
    return packed


def finish(folder: Path, packed: Mapping[Split, PackedSplit], classes: Sequence[str]) -> None:
    """Write shards.json, which marks the folder as complete."""
    shards = {name: entry for split in packed.values() for name, entry in split.shards.items()}
    with whole(folder / counts.COUNTS_FILE) as draft:
        draft.write_text(counts.counts_json(shards, classes), encoding="utf-8")


def _resume(folder: Path, split: Split) -> tuple[PackedSplit, int]:
    """Return the complete shards of an earlier run, and the position of the first image that is not in them.

    Shards after a missing or damaged one are removed, and so are drafts.
    """
    packed, start = PackedSplit(), 0
    for path in [folder / f"{split}-{number:06}.tar" for number in range(len(list(folder.glob(f"{split}-*.tar"))))]:
        try:
            index = ShardOpener().open(ShardLocation(path.name, folder, path)).index
            start = _last_position(path, index) + 1
        except (UsageError, OSError, ValueError):
            break
        packed.shards[path.name] = (path.stat().st_size, ShardCount.of(index))
    packed.skipped, packed.kept = start - packed.records, len(packed.shards)
    with refusals(folder), contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            final_name = drafted(name) or name
            if _NAME.fullmatch(final_name) and final_name.startswith(split) and name not in packed.shards:
                (folder / name).unlink()
    return packed, start


def _last_position(path: Path, index: ShardIndex) -> int:
    """Return the position in the name of the last record. Raises ValueError if the shard is truncated or empty."""
    if index.is_truncated or not len(index):
        raise ValueError(f"{path} is truncated")
    with path.open("rb") as file:
        file.seek(int(index.offsets[-1]) - _BLOCK_BYTES)
        return int(file.read(_BLOCK_BYTES).partition(b".")[0])


def _readable(
    source: PackSource, order: torch.Tensor, start: int, packed: PackedSplit, on_progress: Callable[[int], None]
) -> Iterator[tuple[int, Record]]:
    """Yield positions and their records, read ahead in parallel; unreadable ones are counted in `packed`."""
    with ThreadPoolExecutor(devices.processors()) as pool:
        for positions in _chunks(source, order, start):
            indices = [int(order[position]) for position in positions]
            is_small = sum(map(source.size_of, indices)) < decoding.SMALL_FILE_BYTES * len(indices)
            records = map(source.record, indices) if is_small else pool.map(source.record, indices)
            for position, record in zip(positions, records, strict=True):
                on_progress(position + 1)
                if record is None:
                    packed.skipped += 1
                else:
                    yield position, record


def _chunks(source: PackSource, order: torch.Tensor, start: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    size = 0
    for position in range(start, len(order)):
        chunk.append(position)
        size += source.size_of(int(order[position]))
        if len(chunk) == CHUNK_FILES or size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _fits(archive: tarfile.TarFile, count: int, record: Record, limits: ShardLimits) -> bool:
    """Return whether a record fits in a shard that has `count` records; the first one always does."""
    blocks = -(-len(record.content) // _BLOCK_BYTES) + 1 + (0 if record.label is None else 2) + _END_BLOCKS
    size = -(-(archive.offset + blocks * _BLOCK_BYTES) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return not count or (count < limits.records and size <= limits.bytes)


def _add(archive: tarfile.TarFile, position: int, record: Record) -> None:
    """Append a record; its bytes depend only on position, suffix, content and label."""
    files = {record.suffix: record.content}
    if record.label is not None:
        files[".cls"] = str(record.label).encode()
    for suffix, content in files.items():
        member = tarfile.TarInfo(f"{position:09}{suffix}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def _count(records: Sequence[Record]) -> ShardCount:
    labels = [record.label for record in records if record.label is not None]
    classes = max(labels) + 1 if len(labels) == len(records) else 0
    return ShardCount(len(records), classes, frozenset(record.suffix for record in records))


def _png(pixels: np.ndarray) -> bytes:
    """Encode pixels (C, H, W) uint8 as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(stream, "png")
    return stream.getvalue()
