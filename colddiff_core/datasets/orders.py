"""Which images a training step takes, from its number alone: a resumed run and any number of processes agree."""

from __future__ import annotations

import collections
import functools
import threading

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
    held, total = sum(1 for count in counts if count), sum(counts)
    if not total:
        raise ValueError("no images to take")
    breadth = _breadth(size, min(lanes, held, total))
    length, each = total // breadth, size // breadth
    picked: list[Tensor] = []
    for lane in range(breadth):
        place, left = step * each, each
        while left:
            epoch, offset = divmod(place, length)
            run = min(left, length - offset)
            picked += _stretch(counts, seed, epoch, lane * length + offset, run, breadth + SPARE)
            place += run
            left -= run
    return torch.cat(picked)


def starts(counts: tuple[int, ...]) -> np.ndarray:
    """Return the number of each shard's first record, and how many there are in all: (len(counts) + 1,) int64."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _breadth(size: int, most: int) -> int:
    return next(breadth for breadth in range(min(size, most), 0, -1) if size % breadth == 0)


def _stretch(counts: tuple[int, ...], seed: int, epoch: int, first: int, length: int, kept: int) -> list[Tensor]:
    """Return a stretch of an epoch's sequence, in the parts that lie in one shard each."""
    order, begins, bases = _layout(counts, seed, epoch)
    place = int(np.searchsorted(begins, first, side="right")) - 1
    parts: list[Tensor] = []
    while length:
        shard, offset = int(order[place]), first - int(begins[place])
        part = _records(counts[shard], seed, epoch, shard, kept)[offset : offset + length]
        parts.append(part.long() + int(bases[shard]))
        first += len(part)
        length -= len(part)
        place += 1
    return parts


@functools.lru_cache(maxsize=2)
def _layout(counts: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the shards in an epoch's order, where each begins in its sequence, and the first number of each."""
    order = torch.randperm(len(counts), generator=seeds.generator(seed, "shards", epoch)).numpy()
    return order, starts(tuple(np.asarray(counts, np.int64)[order].tolist())), starts(counts)


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
