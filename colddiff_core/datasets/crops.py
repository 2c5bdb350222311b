"""Tiles of large pictures at full resolution: where they are, and their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from colddiff_core import seeds
from colddiff_core.datasets.base import DatasetRequest


def corners(sides: Sequence[int], request: DatasetRequest, name: str) -> list[tuple[int, int]]:
    """Return the upper left corners (row, column) of the tiles of a picture, in reading order.

    Tiles are of `request.size` and `request.margin + 1` pixels apart, the last ones flush with the border, so that
    every window smaller by `margin` lies within a tile. If that takes more than `request.crop` tiles, as many
    distinct ones are drawn at random, seeded by `name`. A picture smaller than a tile has none.

    Args:
        sides: Height and width of the picture.
        request: Its size, margin and crop are used.
        name: What the picture is called; the same name always gives the same tiles.
    """
    pitch = request.margin + 1
    rows, columns = (_count(side, size, pitch) for side, size in zip(sides, request.sides, strict=True))
    lowest, rightmost = (side - size for side, size in zip(sides, request.sides, strict=True))
    count = rows * columns
    chosen: Iterable[int] = range(count) if count <= request.crop else _sample(count, request.crop, name)
    cells = (divmod(number, columns) for number in chosen)
    return [(min(row * pitch, lowest), min(column * pitch, rightmost)) for row, column in cells]


def cut(picture: np.ndarray, corner: tuple[int, int], sides: tuple[int, int]) -> np.ndarray:
    """Return the tile at a corner of a picture (C, H, W), as a view: (C, *sides)."""
    (row, column), (height, width) = corner, sides
    return picture[:, row : row + height, column : column + width]


def order(count: int) -> list[int]:
    """Return a fixed random order of `count` tiles, so that the first ones come from many pictures."""
    return torch.randperm(count, generator=seeds.generator("tiles", count)).tolist()


def _count(side: int, size: int, pitch: int) -> int:
    """Return how many tiles cover a side, one every `pitch` pixels and the last flush with the end."""
    return -(-(side - size) // pitch) + 1 if side >= size else 0


def _sample(count: int, size: int, name: str) -> list[int]:
    """Return `size` distinct numbers below `count` in ascending order; `size` must be smaller than `count`."""
    generator = seeds.generator("crop", name)
    drawn: dict[int, None] = {}
    while len(drawn) < size:  # a permutation would take memory for every position in a large picture
        drawn |= dict.fromkeys(torch.randint(count, (size,), generator=generator).tolist())
    return sorted(list(drawn)[:size])
