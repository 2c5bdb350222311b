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

import torch

from colddiff_core import seeds
from colddiff_core.datasets import decoding
from colddiff_core.datasets.base import Split
from colddiff_core.datasets.shards import counts
from colddiff_core.datasets.shards.archive import ShardOpener
from colddiff_core.datasets.shards.counts import ShardCount
from colddiff_core.datasets.shards.listing import ShardLocation
from colddiff_core.datasets.shards.sources import PackSource, Record, Refusal
from colddiff_core.datasets.shards.tar_index import ShardIndex
from colddiff_core.datasets.splits import ARCHIVES, SPLITS
from colddiff_core.distributed import environment
from colddiff_core.errors import UsageError
from colddiff_core.files import drafted, refusals, whole
from colddiff_core.text import MOST_NAMED, named

CHUNK_FILES = 64  # read and checked at a time


CHUNK_BYTES = 1 << 26  # after which a chunk ends early


MOST_DIGITS = 18  # of the position of an image
MEGABYTE_BYTES = 1_000_000


_NAME = re.compile(r"(train|test)-\d{6}\.tar")


_BLOCK_BYTES = tarfile.BLOCKSIZE  # also the size of a header


_END_BLOCKS = 2  # after the last record


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
        skipped_files: The first few of them, each with the reason, but not those of an earlier run.
        kept: Number of shards that were there already.
    """

    shards: dict[str, tuple[int, ShardCount]] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    kept: int = 0
    skipped_files: list[str] = dataclasses.field(default_factory=list)

    @property
    def records(self) -> int:
        """Number of records in all shards."""
        return sum(count.records for _, count in self.shards.values())


def existing_shards(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the shards in a folder that `pack_split` may have written, and any other shards or lists; sorted."""
    endings = [f"-*{ending}" for ending in ARCHIVES] + [".urls"]
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
    packed, start = _resume(folder, split, len(source))
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
        first = named(packed.skipped_files, packed.skipped)
        raise UsageError(f"None of the {len(source)} {split} images can be read: {first}.", "Check the files.")
    return packed


def finish(folder: Path, packed: Mapping[Split, PackedSplit], classes: Sequence[str]) -> None:
    """Write shards.json, which marks the folder as complete."""
    shards = {name: entry for split in packed.values() for name, entry in split.shards.items()}
    with whole(folder / counts.COUNTS_FILE) as draft:
        draft.write_text(counts.counts_json(shards, classes), encoding="utf-8")


def _resume(folder: Path, split: Split, count: int) -> tuple[PackedSplit, int]:
    """Return the complete shards of an earlier run, and the position of the first image that is not in them.

    Shards after a missing or damaged one are removed, and so are drafts. One is damaged too if the positions in it
    cannot be those of its records among `count` images.
    """
    packed, start = PackedSplit(), 0
    for path in [folder / f"{split}-{number:06}.tar" for number in range(len(list(folder.glob(f"{split}-*.tar"))))]:
        try:
            index = ShardOpener().open(ShardLocation(path.name, folder, path)).index
            end = _last_position(path, index) + 1
            if not start + len(index) <= end <= count:
                break
            start = end
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
        name = file.read(_BLOCK_BYTES).partition(b".")[0]
    if not name.isdigit() or len(name) > MOST_DIGITS:  # bytes: ASCII alone
        raise ValueError(f"{path} is not ours")
    return int(name)


def _readable(
    source: PackSource, order: torch.Tensor, start: int, packed: PackedSplit, on_progress: Callable[[int], None]
) -> Iterator[tuple[int, Record]]:
    """Yield positions and their records, read ahead in parallel; unreadable ones are counted in `packed`."""
    with ThreadPoolExecutor(environment.processors()) as pool:
        for positions in _chunks(source, order, start):
            indices = [int(order[position]) for position in positions]
            is_small = sum(map(source.size_of, indices)) < decoding.SMALL_FILE_BYTES * len(indices)
            records = map(source.record, indices) if is_small else pool.map(source.record, indices)
            for position, record in zip(positions, records, strict=True):
                on_progress(position + 1)
                if isinstance(record, Refusal):
                    packed.skipped += 1
                    if len(packed.skipped_files) < MOST_NAMED:
                        packed.skipped_files.append(f"{record.name} ({record.why})")
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
