"""What commands show: tables and pictures on the terminal, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table

from colddiff_core.errors import ColddiffWarning

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

COLUMNS = 80
LOG_COLUMNS = 120  # where there is no terminal to fit
SHOWN = 4  # images on a terminal with room for them
PROMPT_LINES = 4  # what a picture leaves to the text after it


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence: whoever read the output has had enough, and the work is still wanted."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self.quiet = True


class Screen:
    """Text for people on stdout, or on stderr where stdout is one JSON object."""

    def __init__(self, is_json: bool = False) -> None:
        self.is_json = is_json
        self.console = _Console(stderr=is_json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = LOG_COLUMNS

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal

    def say(self, text: str = "") -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    def explain(self, text: str) -> None:
        """Print a sentence, broken between words where the terminal is narrower; nothing in it is to be copied."""
        self.console.print(text, markup=False, soft_wrap=False)

    def warn(self, text: str) -> None:
        """Print a line that wants attention."""
        self.console.print(f"warning: {text}", markup=False, style="yellow")

    def show(self, table: Table) -> None:
        """Print a table."""
        if table.box is None:
            table.padding = (0, 2 if self.console.width > COLUMNS else 1, 0, 0)
        self.console.print(table)

    def picture(self, picture: Image.Image) -> None:
        """Draw a picture where there is a terminal: Kitty, Sixel, else half-blocks."""
        if not self.is_terminal:
            return
        from colddiff_cli import drawing

        # A cell is about twice as high as wide; a picture higher than the screen would scroll out of sight.
        fitting = 2 * (self.console.height - PROMPT_LINES) * picture.width // picture.height
        width = max(1, min(self.console.width, COLUMNS, fitting))
        self.console.print(drawing.renderable()(picture, width=width, height="auto"))

    def rows(self, columns: Mapping[str, Tensor]) -> None:
        """Draw the first images of a sheet where there is a terminal: a row each, a column per kind."""
        if not self.is_terminal:
            return
        import torch

        from colddiff_core import images

        lines = COLUMNS // len(columns) // 2  # of one image at full width
        count = max(1, min(SHOWN, (self.console.height - PROMPT_LINES) // lines))
        framed = [torch.nn.functional.pad(stack[:count], (1, 1, 1, 1), value=-1.0) for stack in columns.values()]
        abreast = torch.cat(framed, dim=-1)
        each = min(self.console.width, COLUMNS) // len(columns)
        self.say("".join(f"{name:<{each}}" for name in columns))
        self.picture(images.to_pillow(images.tile(abreast, columns=1)))

    def result(self, values: Mapping[str, Any], last: Path | None = None) -> None:
        """End a command: the JSON object where it was asked for, else the path of what was written."""
        if self.is_json:
            sys.stdout.write(json.dumps(_plain(values), allow_nan=False, default=str) + "\n")
        elif last is not None:
            self.say(str(last))


@contextlib.contextmanager
def telling_warnings() -> Iterator[None]:
    """Have the library's warnings told in a line each on stderr; others are shown as Python shows them."""
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, ColddiffWarning):
            sys.stderr.write(f"warning: {message}\n")  # above a progress bar, which takes stderr over while it lives
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", ColddiffWarning)
        warnings.showwarning = show
        yield


def _plain(value: Any) -> Any:
    """Return values that JSON can hold: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
