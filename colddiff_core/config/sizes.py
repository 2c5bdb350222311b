"""The size of a run's pictures: a side for squares, else a height and a width.

Squares are kept as one number, so that what is stored under a size (caches, runs) stays valid.
"""

from __future__ import annotations

from typing import Any

Size = int | tuple[int, int]


def sides(size: Size) -> tuple[int, int]:
    """Return the height and the width."""
    return (size, size) if isinstance(size, int) else size


def simplest(height: int, width: int) -> Size:
    """Return the size of pictures with these sides."""
    return height if height == width else (height, width)


def grown(size: Size, margin: int) -> Size:
    """Return a size that is larger by as many pixels in height and width."""
    height, width = sides(size)
    return simplest(height + margin, width + margin)


def plain(size: Size) -> Any:
    """Return a size as TOML and JSON keep it: a number, or a list of two."""
    return size if isinstance(size, int) else list(size)


def typed(size: Size) -> str:
    """Return a size as a user types it: "32", or "48,64" for a height of 48."""
    return ",".join(map(str, (size,) if isinstance(size, int) else size))


def in_words(size: Size) -> str:
    """Return a size for a message: "32x32", or "48 high x 64 wide"."""
    height, width = sides(size)
    return f"{height}x{width}" if height == width else f"{height} high x {width} wide"
