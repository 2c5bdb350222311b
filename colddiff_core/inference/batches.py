"""Batches of numbered images, such that an image does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from colddiff_core.distributed.group import Group

# Images at a time, if they fit in memory. Batches are always full, so a large one wastes time on few images.
MOST = {"cpu": 16, "cuda": 256}
BatchFilter = Callable[[range], bool]  # by the numbers of the images in a batch


def every_batch(numbers: range) -> bool:
    """Accept every batch."""
    return True


def batches(count: int, size: int, accepts: BatchFilter = every_batch) -> Iterator[range]:
    """Yield the image numbers of each accepted batch of images 0 to count - 1.

    Every batch has `size` numbers, so the last one may go past `count`: an image is always computed in a batch of the
    same size and at the same place in it, bit for bit the same for any `count`. `accepts` gets numbers below `count`.
    """
    for first in range(0, count, size):
        if accepts(range(first, min(first + size, count))):
            yield range(first, first + size)


def round_robin(ranks: Group, count: int, size: int, accepts: BatchFilter) -> BatchFilter:
    """Return a filter that assigns accepted batches to processes round-robin.

    Batches stay whole, so that an image comes out as it does in a single process.
    """
    if ranks.is_alone:
        return accepts
    own = {numbers.start for numbers in ranks.round_robin(batches(count, size, accepts))}
    return lambda numbers: numbers.start in own
