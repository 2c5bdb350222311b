"""Squares of pictures at their own resolution: where they lie, the same every time, and the pixels there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from colddiff_core import seeds
from colddiff_core.datasets.base import DatasetRequest


def corners(sides: Sequence[int], request: DatasetRequest, name: str) -> list[tuple[int, int]]:
    """Return the upper left corners (row, column) of the tiles of a picture of `sides` (H, W), in the order of reading.

    They lie on a grid as wide as a window may move within a tile, the last ones flush with the border: every window
    lies within one. Where that takes more than `request.crop`, so many of them are drawn at random by the picture's
    `name`, all of them unlike. None where the picture is smaller than a tile.
    """
    pitch = request.margin + 1
    rows, columns = (_count(side, request.size, pitch) for side in sides)
    lowest, rightmost = (side - request.size for side in sides)
    count = rows * columns
    chosen: Iterable[int] = range(count) if count <= request.crop else _drawn(count, request.crop, name)
    places = (divmod(number, columns) for number in chosen)
    return [(min(row * pitch, lowest), min(column * pitch, rightmost)) for row, column in places]


def cut(picture: np.ndarray, corner: tuple[int, int], size: int) -> np.ndarray:
    """Return the tile of a picture (C, H, W) that has an upper left corner: (C, size, size), a view of it."""
    row, column = corner
    return picture[:, row : row + size, column : column + size]


def order(count: int) -> list[int]:
    """Return the numbers below `count` mixed, the same every time: file after file, the first ones would be of one."""
    return torch.randperm(count, generator=seeds.generator("tiles", count)).tolist()


def _count(side: int, size: int, pitch: int) -> int:
    """Return how many tiles cover a side, one every `pitch` pixels and the last flush with its end."""
    return -(-(side - size) // pitch) + 1 if side >= size else 0


def _drawn(count: int, most: int, name: str) -> list[int]:
    """Return `most` of the numbers below `count`, which is more, in ascending order."""
    numbers = seeds.generator("crop", name)
    found: dict[int, None] = {}
    while len(found) < most:  # a permutation would take memory for every place of a large picture
        found |= dict.fromkeys(torch.randint(count, (most,), generator=numbers).tolist())
    return sorted(list(found)[:most])
