"""Which images a training step takes, from its number alone: a resumed run and any number of processes agree."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from colddiff_core import seeds

SPARE = 4  # permutations kept beyond one for each lane

_kept: collections.OrderedDict[tuple[int, ...], Tensor] = collections.OrderedDict()
_lock = threading.Lock()


def shuffled(count: int, seed: int, step: int, size: int) -> Tensor:
    """Return a step's numbers (size,) int64 below `count`: every epoch a new permutation, read on across its end.

    Raises ValueError where there are none to take.
    """
    if count < 1:
        raise ValueError("no images to take")
    picked: list[Tensor] = []
    position = step * size
    while size:
        epoch, offset = divmod(position, count)
        part = _permutation(count, seed, epoch)[offset : offset + size]
        picked.append(part)
        position += len(part)
        size -= len(part)
    return torch.cat(picked)


@functools.lru_cache(maxsize=1)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=seeds.generator(seed, "epoch", epoch))


def in_lanes(counts: tuple[int, ...], lanes: int, seed: int, step: int, size: int) -> Tensor:
    """Return the numbers (size,) int64 of a step, out of shards that hold so many records each.

    Every epoch the shards come in a new order, one after the other, and the records of each in a new order. This
    sequence is cut into V lanes of equal length, V the largest divisor of `size` that is at most `lanes`, the shards
    that hold anything and the records; up to V - 1 records are left out of an epoch, others of the next. A step takes
    the next size / V records of every lane, lane after lane: a part of a step lies in few shards, and an epoch reads
    each shard in one go. Numbers count through all shards in the order of `counts`.

    Memory is that of the shards being read, however many there are. Raises ValueError where there are none to take.
    """
    held, total = _extent(counts)
    if not total:
        raise ValueError("no images to take")
    breadth = _breadth(size, min(lanes, held, total))
    length, each = total // breadth, size // breadth
    picked: list[Tensor] = []
    layouts: dict[int, _Layout] = {}
    for lane in range(breadth):
        place, left = step * each, each
        while left:
            epoch, offset = divmod(place, length)
            run = min(left, length - offset)
            if epoch not in layouts:
                layouts[epoch] = _layout(counts, seed, epoch)
            for shard, first, last in layouts[epoch].parts(lane * length + offset, run):
                records = _records(counts[shard], seed, epoch, shard, breadth + SPARE)
                picked.append(records[first:last].long() + int(layouts[epoch].bases[shard]))
            place += run
            left -= run
    return torch.cat(picked)


def starts(counts: tuple[int, ...]) -> np.ndarray:
    """Return the number of each shard's first record, and how many there are in all: (len(counts) + 1,) int64."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


@functools.lru_cache(maxsize=2)
def _extent(counts: tuple[int, ...]) -> tuple[int, int]:
    """Return how many shards hold anything, and how many records there are."""
    return sum(1 for count in counts if count), sum(counts)


def _breadth(size: int, most: int) -> int:
    return next(breadth for breadth in range(min(size, most), 0, -1) if size % breadth == 0)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """An epoch's sequence: its shards in their order, where each begins in it, and each shard's first number."""

    order: np.ndarray
    begins: np.ndarray
    bases: np.ndarray

    def parts(self, first: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield the shards of a stretch of the sequence, and from where to where in each."""
        place = int(np.searchsorted(self.begins, first, side="right")) - 1
        while length:
            offset = first - int(self.begins[place])
            taken = min(length, int(self.begins[place + 1]) - first)
            if taken:
                yield int(self.order[place]), offset, offset + taken
            first += taken
            length -= taken
            place += 1


@functools.lru_cache(maxsize=2)
def _layout(counts: tuple[int, ...], seed: int, epoch: int) -> _Layout:
    order = torch.randperm(len(counts), generator=seeds.generator(seed, "shards", epoch)).numpy()
    return _Layout(order, starts(tuple(np.asarray(counts, np.int64)[order].tolist())), starts(counts))


def _records(count: int, seed: int, epoch: int, shard: int, kept: int) -> Tensor:
    """Return a shard's records (count,) int32 in an epoch's order; the newest `kept` of such orders stay in memory."""
    key = (count, seed, epoch, shard)
    with _lock:
        found = _kept.get(key)
        if found is None:
            numbers = seeds.generator(seed, "records", epoch, shard)
            found = _kept[key] = torch.randperm(count, generator=numbers, dtype=torch.int32)
        _kept.move_to_end(key)
        while len(_kept) > kept:
            _kept.popitem(last=False)
        return found
