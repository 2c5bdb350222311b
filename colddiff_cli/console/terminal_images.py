"""How this terminal draws pictures: Kitty, Sixel, else half-blocks."""

from __future__ import annotations

import dataclasses
import os
import sys
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
    """Return the way that any terminal with colors knows."""
    from textual_image.widget import HalfcellImage

    return Drawing(HalfcellImage, HALF_BLOCK)


def best() -> Drawing:
    """Return the best way of this terminal; asks it, so this comes before the dashboard takes it."""
    chosen = renderable()
    from textual_image import renderable as known
    from textual_image import widget

    return Drawing(widget.Image, CELL) if chosen in (known.SixelImage, known.TGPImage) else half_blocks()


def renderable() -> type[Any]:
    """Return what Rich prints a picture with on this terminal."""
    is_shared = bool(os.environ.get("TMUX") or os.environ.get("STY"))
    if not is_shared:
        from textual_image.renderable import Image

        return Image
    # The import asks the terminal, and tmux and screen take the question for a new title of the window.
    stdout, sys.__stdout__ = sys.__stdout__, None  # type: ignore[misc]
    try:
        from textual_image.renderable import HalfcellImage
    finally:
        sys.__stdout__ = stdout  # type: ignore[misc]
    return HalfcellImage
