"""Pick how to draw images in this terminal: Kitty, Sixel or half-blocks."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import sys
from types import ModuleType
from typing import Any

from colddiff_cli.console import terminal_query

HALF_BLOCK = (1, 2)  # pixels per cell, width and height
CELL = (10, 20)  # about the pixels per cell in terminals that draw real pixels
SIZES = ("TEXTUAL_CELL_WIDTH", "TEXTUAL_CELL_HEIGHT")  # textual-image reads the size of a cell from these


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
    return ImageBackend(_widgets(CELL).HalfcellImage, HALF_BLOCK)


def detect() -> ImageBackend:
    """Return the best backend for this terminal. It asks the terminal, so call it before the dashboard starts."""
    answer = terminal_query.ask()
    if not (answer.has_sixel or answer.has_kitty):
        return half_blocks()
    cell = _cell(answer)
    widgets = _widgets(cell)
    return ImageBackend(widgets.SixelImage if answer.has_sixel else widgets.TGPImage, cell)


def renderable() -> type[Any]:
    """Return the Rich renderable that draws an image in this terminal."""
    answer = terminal_query.ask()
    renderables = _renderables(_cell(answer))
    # Konsole and WezTerm claim to draw Kitty's pictures, but draw only Sixel as textual-image uses them.
    chosen: type[Any] = renderables.SixelImage if answer.has_sixel else renderables.HalfcellImage
    return renderables.TGPImage if answer.has_kitty and not answer.has_sixel else chosen


def _cell(answer: terminal_query.TerminalAnswer) -> tuple[int, int]:
    return answer.cell or CELL


@functools.cache
def _renderables(cell: tuple[int, int]) -> ModuleType:
    """Import textual-image's renderables and let it remember the size of a cell.

    It asks the terminal about both, unless stdout is none.
    """
    before = {name: os.environ.get(name) for name in SIZES}
    stdout, sys.__stdout__ = sys.__stdout__, io.TextIOWrapper(io.BytesIO())  # type: ignore[misc]
    try:
        os.environ.update(zip(SIZES, map(str, cell), strict=True))
        from textual_image import renderable
        from textual_image._terminal import get_cell_size

        get_cell_size()  # keeps what it finds
    finally:
        sys.__stdout__ = stdout  # type: ignore[misc]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return renderable


def _widgets(cell: tuple[int, int]) -> ModuleType:
    _renderables(cell)
    from textual_image import widget

    return widget
