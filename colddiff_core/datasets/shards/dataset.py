"""Images in tar shards, read during training: the set may be larger than memory, and come from commands."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colddiff_core.datasets import cache, epoch_order
from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.datasets.damage import reason_for
from colddiff_core.datasets.decoding import COLOR, SMALL_FILE_BYTES, Entry, EntrySource, decode_entries
from colddiff_core.datasets.shards import counts, listing
from colddiff_core.datasets.shards.archive import Shard, ShardOpener
from colddiff_core.distributed import environment
from colddiff_core.errors import ColddiffError, ColddiffWarning, UsageError
from colddiff_core.images import read_bytes
from colddiff_core.text import NameTally, shown

SPARE_SHARDS = 4  # kept open beyond one per lane
OPENING_SHARDS = 8  # opened at a time, bound by the disk or the network
AHEAD_IMAGES = 32  # queued for decoding
SLOW_OPEN_SECONDS = 60.0  # after which a shard that is still being opened is reported
RECENT_LABELS = 1 << 16  # remembered for the records read last


class Shards:
    """Records of shards, indexed through all of them: a `TrainingSet` of any length.

    A shard is opened when first needed, and stays open while it is among the most recently used. The next readable
    record of its shard, wrapping around, replaces an unreadable one; the next shard replaces one that fails to open.
    """

    def __init__(
        self,
        locations: Sequence[listing.ShardLocation],
        shard_counts: Sequence[counts.ShardCount],
        classes: tuple[str, ...],
        request: DatasetRequest,
        lanes: int,
        remarks: tuple[str, ...] = (),
    ) -> None:
        self._locations, self._shard_counts, self._request, self._lanes = locations, shard_counts, request, lanes
        self._record_counts = tuple(count.records for count in shard_counts)
        self._starts = epoch_order.starts(self._record_counts)
        self._max_open = min(lanes, len(locations)) + SPARE_SHARDS
        class_counts = [count.classes for count in shard_counts if count.records]
        self.class_count = max(class_counts) if all(class_counts) else 0
        self.classes = classes if 0 < self.class_count <= len(classes) else ()
        self.class_count = max(self.class_count, len(self.classes))  # a split may lack the last classes
        self.suffixes = frozenset[str]().union(*(count.suffixes for count in shard_counts))
        self.channels = request.channels or COLOR
        self.shape = (self.channels, *request.sides)
        self.note = ""
        self.remarks = remarks
        stamps = [cache.stamp(shard.path) if shard.path else None for shard in locations]
        rows = zip(locations, stamps, shard_counts, strict=True)
        self._fingerprint = [(shard.name, stamp, count.to_json()) for shard, stamp, count in rows]
        self._opener = ShardOpener()
        self._opening = threading.Semaphore(OPENING_SHARDS)
        self._pool = ThreadPoolExecutor(environment.processors(), thread_name_prefix="shards")
        self._lock = threading.Lock()
        self._is_closed = False
        self._open: collections.OrderedDict[int, Future[Shard | None]] = collections.OrderedDict()
        self._failures: dict[int, str] = {}  # shards that failed when they were last opened, and why
        self._unreported: list[str] = []
        self._skipped_files = NameTally()
        self._broken: dict[int, np.ndarray] = {}  # by shard: a mask of its unreadable records
        self._recent: collections.OrderedDict[int, int] = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def has_labels(self) -> bool:
        """Whether every record has a label."""
        return self.class_count > 0

    @property
    def skipped(self) -> int:
        """Number of records that this process has replaced by others so far."""
        with self._lock:
            single = sum(int(broken.sum()) for shard, broken in self._broken.items() if shard not in self._failures)
            return single + sum(self._record_counts[shard] for shard in self._failures)

    @property
    def skipped_files(self) -> tuple[str, ...]:
        """The first few of these records, each with the reason."""
        with self._lock:
            return tuple(self._skipped_files.names)

    def order(self, seed: int, step: int, size: int) -> Tensor:
        """Return the record indices (size,) int64 of a training step, from few shards: see `epoch_order.in_lanes`."""
        return epoch_order.in_lanes(self._record_counts, self._lanes, seed, step, size)

    def rows(self, indices: Tensor) -> Tensor:
        """Return the images (B, C, H, W) uint8 at the indices (B,) int64, in that order.

        Raises:
            UsageError: No record of any shard can be read, or the shards are closed.
            MachineError: The disk has no room for a shard.
        """
        try:
            return self._rows(indices)
        except (RuntimeError, CancelledError):
            if self._is_closed:
                raise UsageError("The shards were closed while they were read.", "Open them again.") from None
            raise

    def labels_of(self, indices: Tensor) -> Tensor:
        """Return the labels (B,) int64 of the images that `rows` returns; free for records that it returned recently.

        Raises:
            ValueError: The records have no labels. Other errors are those of `rows`.
        """
        if not self.has_labels:
            raise ValueError("these images have no labels")
        labels: list[int] = []
        for index in indices.tolist():
            with self._lock:
                label = self._recent.get(index)
            labels.append(self._read(*self._locate(index))[1] if label is None else label)
        return torch.tensor(labels, dtype=torch.int64)

    def load_images(self, max_records: int) -> ImageSet:
        """Return up to `max_records` evenly spaced records as one tensor, (N, C, H, W) uint8.

        Raises:
            UsageError: No record can be read. Other errors are those of `rows`.
        """
        root, count = self._request.directory, min(max_records, len(self))
        assert root is not None
        indices = [position * len(self) // count for position in range(count)]
        stamps = ("shards", max_records, self._fingerprint)
        try:
            source = EntrySource(self._entries(indices), is_complete=lambda: not self._failures)
            images = decode_entries(source, self._request, root, stamps)
        except UsageError as error:
            raise self._nothing_readable() if self._failures else error from None
        self._report_failures("its images are left out")
        labels = None
        if self.has_labels and images.labels is None:  # all images are of one class
            labels = self.labels_of(torch.tensor(indices[:1])).expand(len(images)).contiguous()
        elif images.labels is not None:
            labels = torch.tensor([int(name) for name in images.classes])[images.labels]
        return dataclasses.replace(
            images, labels=labels, classes=self.classes, suffixes=self.suffixes, remarks=self.remarks
        )

    def digest(self, max_images: int | None = None) -> str:
        """Return a short hex digest of the names, sizes and counts of the shards; it reads no images."""
        shards = [(name, stamp and stamp[0], count) for name, stamp, count in self._fingerprint]  # times may differ
        return hashlib.blake2b(repr(shards).encode(), digest_size=8).hexdigest()

    def close(self) -> None:
        """Close the shards and stop all reading."""
        self._is_closed = True
        self._opener.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._open.clear()

    def _rows(self, indices: Tensor) -> Tensor:
        pixels = np.empty((len(indices), *self.shape), np.uint8)
        labels = [0] * len(indices)

        def read_into(slot: int, shard: int, record: int, opened: Shard | None) -> None:
            pixels[slot], labels[slot] = self._read(shard, record, opened)

        pending: collections.deque[Future[None]] = collections.deque()
        for shard, slots in self._by_shard(indices):
            opened = self._wait_for(shard)
            is_small = opened is not None and opened.index.sizes[[r for _, r in slots]].mean() < SMALL_FILE_BYTES
            for slot, record in slots:
                if is_small:  # threads would wait for each other, as in `decoding`
                    read_into(slot, shard, record, opened)
                    continue
                pending.append(self._pool.submit(read_into, slot, shard, record, opened))
                if len(pending) > AHEAD_IMAGES:
                    pending.popleft().result()
        for job in pending:
            job.result()
        if self.has_labels:
            with self._lock:
                self._recent |= zip(indices.tolist(), labels, strict=True)
                while len(self._recent) > RECENT_LABELS:
                    self._recent.popitem(last=False)
        self._report_failures("other images are used instead")
        return torch.from_numpy(pixels)

    def _by_shard(self, indices: Tensor) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield each shard that the indices fall in, with pairs (slot in the batch, record in the shard)."""
        # Open shards first, or opening others would close them before use; the next ones open during the read.
        slots: dict[int, list[tuple[int, int]]] = {}
        for slot, index in enumerate(indices.tolist()):
            shard, record = self._locate(index)
            slots.setdefault(shard, []).append((slot, record))
        with self._lock:
            are_open = set(self._open)
        queue = sorted(slots, key=lambda shard: shard not in are_open)
        for position, shard in enumerate(queue):
            for following in queue[position : position + min(OPENING_SHARDS, self._max_open)]:
                self._start_opening(following)
            yield shard, slots[shard]

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard that an index falls in, and the record in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"no image {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _start_opening(self, shard: int) -> Future[Shard | None]:
        """Return the future of an open shard, opening it if needed; its result is None if the shard failed."""
        with self._lock:
            future = self._open.get(shard)
            if future is None:
                future = self._open[shard] = Future()
                # Not in a pool: the exit of the process would wait for its threads, and they for the network.
                try:
                    threading.Thread(target=self._open_now, args=(shard, future), daemon=True).start()
                except BaseException:
                    del self._open[shard]  # a future without a thread never completes
                    raise
            self._open.move_to_end(shard)
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return future

    def _wait_for(self, shard: int) -> Shard | None:
        """Return an open shard, or None if it failed; warn if opening it takes long."""
        future = self._start_opening(shard)
        if not wait([future], SLOW_OPEN_SECONDS).done:
            what = f"waiting for {shown(self._locations[shard].name)} for {SLOW_OPEN_SECONDS:.0f} s"
            warnings.warn(ColddiffWarning(what), stacklevel=4)
        return future.result()

    def _open_now(self, shard: int, future: Future[Shard | None]) -> None:
        location = self._locations[shard]
        try:
            with self._opening:
                opened, why = self._opener.open(location), ""
            actual, expected = counts.ShardCount.of(opened.index), self._shard_counts[shard]
            if actual.records != expected.records or (self.has_labels and not 0 < actual.classes <= self.class_count):
                why = f"{location.name} holds {actual.records} records of {actual.classes} classes"
                why += f", where {expected.records} of {expected.classes} were counted: "
                assert self._request.directory is not None
                why += counts.forget(location, self._request.directory, self._request.split)
        except UsageError as error:
            why = error.what
        except BaseException as error:
            with self._lock:
                if self._open.get(shard) is future:  # the next request tries again
                    del self._open[shard]
            future.set_exception(error)
            return
        with self._lock:
            if why:
                if shard not in self._failures:
                    self._unreported.append(why.rstrip("."))
                self._failures[shard] = why
            else:
                self._failures.pop(shard, None)
        future.set_result(None if why else opened)

    def _report_failures(self, outcome: str) -> None:
        """Warn once about each shard that failed to open, and say what happens to its images."""
        with self._lock:
            failures, self._unreported = self._unreported, []
        for why in failures:
            warnings.warn(ColddiffWarning(f"{why}; {outcome}"), stacklevel=4)

    def _read(self, shard: int, record: int, opened_shard: Shard | None = None) -> tuple[np.ndarray, int]:
        """Return the pixels (C, H, W) and the label of a record, or of the next readable one."""
        for candidate_shard in itertools.chain(range(shard, len(self._record_counts)), range(shard)):
            opened, count = opened_shard if candidate_shard == shard else None, self._record_counts[candidate_shard]
            if opened is None and count:
                opened = self._wait_for(candidate_shard)
            if opened is None:
                continue
            first = record % count
            for candidate in itertools.chain(range(first, count), range(first)):
                picture = self._decode(opened, candidate_shard, candidate)
                if picture is not None:
                    return picture, int(opened.index.labels[candidate])
        raise self._nothing_readable()

    def _nothing_readable(self) -> UsageError:
        why = next(iter(self._failures.values()), "")
        return UsageError(f"None of the {len(self)} records can be read. {why}".strip(), "Check the shards.")

    def _decode(self, opened: Shard, shard: int, record: int) -> np.ndarray | None:
        """Return the pixels of a record, or None if it is unreadable, which is remembered."""
        broken = self._broken.get(shard)
        if broken is not None and broken[record]:
            return None
        content = opened.read(record)
        path = Path(self._locations[shard].name)  # for messages
        try:
            return read_bytes(path, size=self._request.size, channels=self.channels, content=content)
        except ColddiffError as error:
            why = reason_for(error, path, content)
        with self._lock:
            self._skipped_files.add(f"{self._title(shard, record)} ({why})")
            self._broken.setdefault(shard, np.zeros(self._record_counts[shard], np.bool_))[record] = True
        return None

    def _entries(self, indices: Sequence[int]) -> Iterator[Entry]:
        """Yield records as entries to decode, with the class as the folder."""
        for index in indices:
            shard, record = self._locate(index)
            opened = self._wait_for(shard)
            label = int(opened.index.labels[record]) if opened else 0
            folder = f"{label:010d}" if self.has_labels else "."
            content = opened.read(record) if opened else b""
            yield Entry(Path(f"{index}"), folder, content, self._title(shard, record))

    def _title(self, shard: int, record: int) -> str:
        """Return what a record is called in messages."""
        return f"image {record + 1} of {shown(self._locations[shard].name)}"
