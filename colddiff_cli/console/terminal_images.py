"""Pick how to draw images in this terminal: Kitty, Sixel or half-blocks."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

HALF_BLOCK = (1, 2)  # pixels per cell, width and height
CELL = (10, 20)  # about the pixels per cell in terminals that draw real pixels


@dataclasses.dataclass(frozen=True)
class ImageBackend:
    """A Textual widget class that draws an image, and the pixels per cell of the terminal."""

    widget: type[Any]
    cell: tuple[int, int]

    @property
    def is_half_blocks(self) -> bool:
        """Whether pictures are drawn as half blocks, two pixels per cell."""
        return self.cell == HALF_BLOCK


def half_blocks() -> ImageBackend:
    """Return the backend that works in every color terminal."""
    from textual_image.widget import HalfcellImage

    return ImageBackend(HalfcellImage, HALF_BLOCK)


def detect() -> ImageBackend:
    """Return the best backend for this terminal. It queries the terminal, so call it before the dashboard starts."""
    chosen = renderable()
    from textual_image import renderable as renderables
    from textual_image import widget

    has_pixels = chosen in (renderables.SixelImage, renderables.TGPImage)
    return ImageBackend(widget.Image, CELL) if has_pixels else half_blocks()


def renderable() -> type[Any]:
    """Return the Rich renderable that draws an image in this terminal."""
    is_multiplexed = bool(os.environ.get("TMUX") or os.environ.get("STY"))
    if not is_multiplexed:
        from textual_image.renderable import Image

        return Image
    # The import queries the terminal, and tmux and screen would show the query as a window title.
    stdout, sys.__stdout__ = sys.__stdout__, None  # type: ignore[misc]
    try:
        from textual_image.renderable import HalfcellImage
    finally:
        sys.__stdout__ = stdout  # type: ignore[misc]
    return HalfcellImage
