"""Which images a training step takes, from seed and step alone: stable across resumes and process counts."""

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

SPARE_ORDERS = 4  # record orders cached beyond one per lane

_record_orders: collections.OrderedDict[tuple[int, ...], Tensor] = collections.OrderedDict()
_lock = threading.Lock()


def shuffled(count: int, seed: int, step: int, size: int) -> Tensor:
    """Return the indices (size,) int64 of a step, in 0..count - 1.

    Every epoch is a new permutation; a step that reaches the end of one continues in the next.

    Raises:
        ValueError: `count` is 0.
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
    """Return the record indices (size,) int64 of a step over shards that hold `counts` records each.

    Every epoch shuffles the shards, and the records within each shard. The resulting sequence is cut into V lanes of
    equal length, and a step takes the next size / V records of each lane, lane after lane. V is the largest divisor of
    `size` that exceeds neither `lanes`, the number of shards that are not empty, nor the number of records. An epoch
    leaves out up to V - 1 records, different ones each time. So a slice of a step touches few shards, and an epoch
    reads each shard in one go. Indices count through all shards in the order of `counts`.

    Memory grows with the shards being read, not with the number of shards.

    Raises:
        ValueError: No shard has records.
    """
    shard_count, total = _extent(counts)
    if not total:
        raise ValueError("no images to take")
    lane_count = _lane_count(size, min(lanes, shard_count, total))
    length, per_lane = total // lane_count, size // lane_count
    picked: list[Tensor] = []
    layouts: dict[int, _Layout] = {}
    for lane in range(lane_count):
        position, left = step * per_lane, per_lane
        while left:
            epoch, offset = divmod(position, length)
            run = min(left, length - offset)
            if epoch not in layouts:
                layouts[epoch] = _layout(counts, seed, epoch)
            for shard, first, last in layouts[epoch].slices(lane * length + offset, run):
                records = _record_order(counts[shard], seed, epoch, shard, lane_count + SPARE_ORDERS)
                picked.append(records[first:last].long() + int(layouts[epoch].bases[shard]))
            position += run
            left -= run
    return torch.cat(picked)


def starts(counts: tuple[int, ...]) -> np.ndarray:
    """Return the index of each shard's first record, then the total: (len(counts) + 1,) int64."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


@functools.lru_cache(maxsize=2)
def _extent(counts: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of shards that are not empty, and the number of records."""
    return sum(1 for count in counts if count), sum(counts)


def _lane_count(size: int, limit: int) -> int:
    return next(lanes for lanes in range(min(size, limit), 0, -1) if size % lanes == 0)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The sequence of an epoch: its shards in order, where each begins in it, and the first index of each shard."""

    order: np.ndarray
    begins: np.ndarray
    bases: np.ndarray

    def slices(self, first: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (shard, start, end) for the shards that a stretch of the sequence covers."""
        position = int(np.searchsorted(self.begins, first, side="right")) - 1
        while length:
            offset = first - int(self.begins[position])
            taken = min(length, int(self.begins[position + 1]) - first)
            if taken:
                yield int(self.order[position]), offset, offset + taken
            first += taken
            length -= taken
            position += 1


@functools.lru_cache(maxsize=2)
def _layout(counts: tuple[int, ...], seed: int, epoch: int) -> _Layout:
    order = torch.randperm(len(counts), generator=seeds.generator(seed, "shards", epoch)).numpy()
    return _Layout(order, starts(tuple(np.asarray(counts, np.int64)[order].tolist())), starts(counts))


def _record_order(count: int, seed: int, epoch: int, shard: int, cache_size: int) -> Tensor:
    """Return the records (count,) int32 of a shard in an epoch's order, caching the `cache_size` newest orders."""
    key = (count, seed, epoch, shard)
    with _lock:
        order = _record_orders.get(key)
        if order is None:
            generator = seeds.generator(seed, "records", epoch, shard)
            order = _record_orders[key] = torch.randperm(count, generator=generator, dtype=torch.int32)
        _record_orders.move_to_end(key)
        while len(_record_orders) > cache_size:
            _record_orders.popitem(last=False)
        return order
