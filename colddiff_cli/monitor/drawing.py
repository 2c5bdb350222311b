"""How this terminal draws pictures: Kitty, Sixel, else half-blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

HALF_BLOCK = (1, 2)  # pixels that a cell shows, across and down
CELL = (10, 20)  # pixels of a cell, about, where the terminal draws pixels itself


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A Textual widget that is made with a picture, and the pixels that a cell of it shows."""

    widget: type[Any]
    cell: tuple[int, int]

    @property
    def is_half_blocks(self) -> bool:
        return self.cell == HALF_BLOCK


def half_blocks() -> Drawing:
    """Return the way that any terminal with colours knows."""
    from textual_image.widget import HalfcellImage

    return Drawing(HalfcellImage, HALF_BLOCK)


def best() -> Drawing:
    """Return the best way of this terminal; asks it, so this comes before the dashboard takes it."""
    from textual_image import renderable, widget

    if renderable.Image in (renderable.SixelImage, renderable.TGPImage):
        return Drawing(widget.Image, CELL)
    return half_blocks()
