"""Batches of numbered images, the same however many are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from colddiff_core.distributed.group import Group

BatchFilter = Callable[[range], bool]


def every_batch(numbers: range) -> bool:
    """Tell that of images of these numbers some are wanted: of any."""
    return True


def batches(count: int, size: int, accepts: BatchFilter = every_batch) -> Iterator[range]:
    """Return the numbers of the batches of images 0..count - 1, `size` in each and so some beyond `count` in the last.

    An image is thus computed among as many others, and at the same place, however many are asked for: bit for bit the
    same. Batches whose numbers below `count` are not accepted are left out.
    """
    for first in range(0, count, size):
        if accepts(range(first, min(first + size, count))):
            yield range(first, first + size)


def round_robin(together: Group, count: int, size: int, accepts: BatchFilter) -> BatchFilter:
    """Return what tells which batches are this process's: of those that hold something wanted each has as many.

    They are dealt out whole, so that an image is computed as it is where one process has them all.
    """
    if together.is_alone:
        return accepts
    own = {numbers.start for numbers in together.round_robin(batches(count, size, accepts))}
    return lambda numbers: numbers.start in own
