"""Images out of tar shards, read while they are used: a set may be larger than memory, and lie behind commands."""

from __future__ import annotations

import collections
import contextlib
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

from colddiff_core import devices
from colddiff_core.datasets import cache, epoch_order
from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.decoding import COLOR, SMALL_FILE, Entry, decode_entries
from colddiff_core.datasets.shards import counts, listing
from colddiff_core.datasets.shards.archive import Shard, ShardOpener
from colddiff_core.errors import ColddiffError, ColddiffWarning, UsageError
from colddiff_core.images import read_bytes
from colddiff_core.text import counted, shown

MOST_HELD = 50_000  # records of a split that is held as one tensor
SPARE = 4  # shards kept open beyond one for each lane
OPENERS = 8  # shards opened at a time: what is waited for is the disk or the network
AHEAD = 32  # images that wait to be decoded
PATIENCE = 60.0  # seconds that a shard may take to be opened before that is told
RECENT = 1 << 16  # labels remembered of what was read last


def open_shards(request: DatasetRequest, lanes: int) -> Shards:
    """Return a split of the shards in a folder; at most `lanes` of them are read side by side.

    Raises UsageError as `shardlists.places` and `counts.counted` do, and where there is no folder or no record.
    """
    root = request.directory
    if root is None:
        raise UsageError("The dataset 'shards' needs a folder.", "Name it with --data-dir.")
    if not root.is_dir():
        raise UsageError(f"No such folder: {root}.", "Name an existing one with --data-dir.")
    places = listing.places(root, request)
    held, classes = counts.counted(places, root, request.split)
    if not any(count.records for count in held):
        what = f"The {request.split} shards in {root} hold no records ({places[0].name} and all others)."
        raise UsageError(what, "Are they tar archives of images?")
    empty = [place.name for place, count in zip(places, held, strict=True) if not count.records]
    if empty:
        what = f"{len(empty)} of {counted(len(places), 'shard')} in {root} without records, such as {shown(empty[0])}"
        warnings.warn(ColddiffWarning(what), stacklevel=2)
    return Shards(places, held, classes, request, lanes)


@register("shards")
def load(request: DatasetRequest) -> ImageSet:
    """Return the records of a split as one tensor, at most MOST_HELD of them, evenly spread.

    Those that cannot be read are skipped and counted. Raises UsageError as `open_shards`, and where none can be read.
    """
    with contextlib.closing(open_shards(request, 1)) as found:
        return found.held(MOST_HELD)


class Shards:
    """Records of shards by their number, counted through all of them: a `TrainingSet` of any length.

    A shard is opened when its first record is wanted, and stays open as long as it is among those used last. In place
    of a record that cannot be read comes the next sound one of its shard, round the end; in place of a shard that
    cannot be opened, or holds something else than was counted, the next shard.
    """

    def __init__(
        self,
        places: Sequence[listing.ShardLocation],
        held: Sequence[counts.ShardCount],
        classes: tuple[str, ...],
        request: DatasetRequest,
        lanes: int,
    ) -> None:
        self._places, self._held, self._request, self._lanes = places, held, request, lanes
        self._counts = tuple(count.records for count in held)
        self._starts = epoch_order.starts(self._counts)
        self._most_open = min(lanes, len(places)) + SPARE
        full = [count for count in held if count.records]
        self.class_count = max(count.classes for count in full) if all(count.classes for count in full) else 0
        self.classes = classes if 0 < self.class_count <= len(classes) else ()
        self.class_count = max(self.class_count, len(self.classes))  # a split may lack the last of them
        self.suffixes = frozenset[str]().union(*(count.suffixes for count in held))
        self.channels = request.channels or COLOR
        self.shape = (self.channels, request.size, request.size)
        self.note = ""
        stamps = [cache.stamp(place.path) if place.path else None for place in places]
        self._told = [
            (place.name, stamp, count.table()) for place, stamp, count in zip(places, stamps, held, strict=True)
        ]
        self._opener = ShardOpener()
        self._opening = threading.Semaphore(OPENERS)
        self._pool = ThreadPoolExecutor(devices.processors(), thread_name_prefix="shards")
        self._lock = threading.Lock()
        self._is_closed = False
        self._open: collections.OrderedDict[int, Future[Shard | None]] = collections.OrderedDict()
        self._failures: dict[int, str] = {}  # shards that gave nothing when they were opened last
        self._news: list[str] = []
        self._broken: dict[int, np.ndarray] = {}  # of each shard that has some: which records cannot be read
        self._recent: collections.OrderedDict[int, int] = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def has_labels(self) -> bool:
        return self.class_count > 0

    @property
    def skipped(self) -> int:
        """How many records this process has met so far that others stand in for."""
        with self._lock:
            single = sum(int(broken.sum()) for shard, broken in self._broken.items() if shard not in self._failures)
            return single + sum(self._counts[shard] for shard in self._failures)

    def order(self, seed: int, step: int, size: int) -> Tensor:
        """Return the numbers (size,) int64 of the images that a step takes, of few shards: `orders.in_lanes`."""
        return epoch_order.in_lanes(self._counts, self._lanes, seed, step, size)

    def rows(self, numbers: Tensor) -> Tensor:
        """Return images (B, C, H, W) uint8 by their numbers (B,) int64, in that order.

        Raises UsageError where no record of any shard can be read, MachineError where the disk has no room for one.
        """
        try:
            return self._rows(numbers)
        except (RuntimeError, CancelledError):
            if self._is_closed:
                raise UsageError("The shards were closed while they were read.", "Open them again.") from None
            raise

    def labels_of(self, numbers: Tensor) -> Tensor:
        """Return the labels (B,) int64 of what `rows` gives for these numbers; of what it gave last, at no cost.

        Raises ValueError where there are none, and what `rows` raises.
        """
        if not self.has_labels:
            raise ValueError("these images have no labels")
        found: list[int] = []
        for number in numbers.tolist():
            with self._lock:
                label = self._recent.get(number)
            found.append(self._sound(*self._place(number))[1] if label is None else label)
        return torch.tensor(found, dtype=torch.int64)

    def held(self, most: int) -> ImageSet:
        """Return at most so many records as one tensor, evenly spread; errors as `load`."""
        root, count = self._request.directory, min(most, len(self))
        assert root is not None
        numbers = [place * len(self) // count for place in range(count)]
        stamps = ("shards", most, self._told)
        try:
            found = decode_entries(self._entries(numbers), self._request, root, stamps, lambda: not self._failures)
        except UsageError as error:
            raise self._unreadable() if self._failures else error from None
        self._tell("its images are left out")
        labels = None
        if self.has_labels and found.labels is None:  # they are all of one class
            labels = self.labels_of(torch.tensor(numbers[:1])).expand(len(found)).contiguous()
        elif found.labels is not None:
            labels = torch.tensor([int(name) for name in found.classes])[found.labels]
        return dataclasses.replace(found, labels=labels, classes=self.classes, suffixes=self.suffixes)

    def digest(self, most: int | None = None) -> str:
        """Return a short name of the shards: what they are called, how large the files are, what they hold."""
        told = [(name, stamp and stamp[0], table) for name, stamp, table in self._told]  # copies are as good
        return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()

    def close(self) -> None:
        """Let go of the shards, and end what is being read."""
        self._is_closed = True
        self._opener.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._open.clear()

    def _rows(self, numbers: Tensor) -> Tensor:
        found = np.empty((len(numbers), *self.shape), np.uint8)
        labels = [0] * len(numbers)

        def one(slot: int, shard: int, record: int, opened: Shard | None) -> None:
            found[slot], labels[slot] = self._sound(shard, record, opened)

        pending: collections.deque[Future[None]] = collections.deque()
        for shard, wanted in self._by_shard(numbers):
            opened = self._awaited(shard)
            is_small = opened is not None and opened.index.sizes[[record for _, record in wanted]].mean() < SMALL_FILE
            for slot, record in wanted:
                if is_small:  # as `files` has it: threads would wait for each other
                    one(slot, shard, record, opened)
                    continue
                pending.append(self._pool.submit(one, slot, shard, record, opened))
                if len(pending) > AHEAD:
                    pending.popleft().result()
        for job in pending:
            job.result()
        if self.has_labels:
            with self._lock:
                self._recent |= zip(numbers.tolist(), labels, strict=True)
                while len(self._recent) > RECENT:
                    self._recent.popitem(last=False)
        self._tell("other images stand in for these")
        return torch.from_numpy(found)

    def _by_shard(self, numbers: Tensor) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield each shard that numbers lie in, with their places among the numbers and in the shard.

        Those that are open come first, so that what is opened then does not close what is wanted still; the first of
        the others begin to be opened, several at a time.
        """
        found: dict[int, list[tuple[int, int]]] = {}
        for slot, number in enumerate(numbers.tolist()):
            shard, record = self._place(number)
            found.setdefault(shard, []).append((slot, record))
        with self._lock:
            are_open = set(self._open)
        wanted = sorted(found, key=lambda shard: shard not in are_open)
        for place, shard in enumerate(wanted):
            for following in wanted[place : place + min(OPENERS, self._most_open)]:
                self._opened(following)
            yield shard, found[shard]

    def _place(self, number: int) -> tuple[int, int]:
        """Return the shard that a number lies in, and its place there."""
        if not 0 <= number < len(self):
            raise IndexError(f"no image {number} of {len(self)}")
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def _opened(self, shard: int) -> Future[Shard | None]:
        """Return an open shard, None for one that gives nothing, or what is to become it."""
        with self._lock:
            found = self._open.get(shard)
            if found is None:
                found = self._open[shard] = Future()
                # Not by a pool: the end of the process would wait for its threads, and they for the network.
                try:
                    threading.Thread(target=self._open_now, args=(shard, found), daemon=True).start()
                except BaseException:
                    del self._open[shard]  # or it would be waited for without end
                    raise
            self._open.move_to_end(shard)
            while len(self._open) > self._most_open:
                self._open.popitem(last=False)
            return found

    def _awaited(self, shard: int) -> Shard | None:
        """Return an open shard, None for one that gives nothing; warn while that takes long."""
        found = self._opened(shard)
        if not wait([found], PATIENCE).done:
            what = f"waiting for {shown(self._places[shard].name)} for {PATIENCE:.0f} s"
            warnings.warn(ColddiffWarning(what), stacklevel=4)
        return found.result()

    def _open_now(self, shard: int, future: Future[Shard | None]) -> None:
        place = self._places[shard]
        try:
            with self._opening:
                opened, why = self._opener.open(place), ""
            found, told = counts.ShardCount.of(opened.index), self._held[shard]
            if found.records != told.records or (self.has_labels and not 0 < found.classes <= self.class_count):
                why = f"{place.name} holds {found.records} records of {found.classes} classes"
                why += f", where {told.records} of {told.classes} were counted: "
                assert self._request.directory is not None
                why += counts.forget(place, self._request.directory, self._request.split)
        except UsageError as error:
            why = error.what
        except BaseException as error:
            with self._lock:
                if self._open.get(shard) is future:  # asked again, it is tried again
                    del self._open[shard]
            future.set_exception(error)
            return
        with self._lock:
            if why:
                if shard not in self._failures:
                    self._news.append(why.rstrip("."))
                self._failures[shard] = why
            else:
                self._failures.pop(shard, None)
        future.set_result(None if why else opened)

    def _tell(self, outcome: str) -> None:
        """Warn of shards that gave nothing when they were opened, once of each, and of what comes of it."""
        with self._lock:
            told, self._news = self._news, []
        for why in told:
            warnings.warn(ColddiffWarning(f"{why}; {outcome}"), stacklevel=4)

    def _sound(self, shard: int, record: int, held: Shard | None = None) -> tuple[np.ndarray, int]:
        """Return the pixels (C, H, W) and the label of a record, or of the next one that can be read.

        held: the shard, where it is known to be open.
        """
        for at in itertools.chain(range(shard, len(self._counts)), range(shard)):
            opened = held if at == shard else None
            if opened is None and self._counts[at]:
                opened = self._awaited(at)
            if opened is None:
                continue
            first = record % self._counts[at]
            for candidate in itertools.chain(range(first, self._counts[at]), range(first)):
                picture = self._decoded(opened, at, candidate)
                if picture is not None:
                    return picture, int(opened.index.labels[candidate])
        raise self._unreadable()

    def _unreadable(self) -> UsageError:
        why = next(iter(self._failures.values()), "")
        return UsageError(f"None of the {len(self)} records can be read. {why}".strip(), "Check the shards.")

    def _decoded(self, opened: Shard, shard: int, record: int) -> np.ndarray | None:
        """Return a record's pixels, None where it cannot be read, which is remembered."""
        broken = self._broken.get(shard)
        if broken is not None and broken[record]:
            return None
        content = opened.read(record)
        with contextlib.suppress(ColddiffError):
            path = Path(self._places[shard].name)  # for messages
            return read_bytes(path, size=self._request.size, channels=self.channels, content=content)
        with self._lock:
            self._broken.setdefault(shard, np.zeros(self._counts[shard], np.bool_))[record] = True
        return None

    def _entries(self, numbers: Sequence[int]) -> Iterator[Entry]:
        """Yield records for `files` to decode; their folder is their class."""
        for number in numbers:
            shard, record = self._place(number)
            opened = self._awaited(shard)
            label = int(opened.index.labels[record]) if opened else 0
            folder = f"{label:010d}" if self.has_labels else "."
            yield Entry(Path(f"{number}"), folder, opened.read(record) if opened else b"")
