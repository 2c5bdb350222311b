"""Print the output of commands: tables and pictures on the terminal, JSON for programs."""

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

from colddiff_core.distributed import environment
from colddiff_core.errors import ColddiffWarning
from colddiff_core.text import HARMFUL, harmless, one_line

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from torch import Tensor

COLUMNS = 80
LOG_COLUMNS = 120  # without a terminal
MOST_COLUMNS = 1000  # that the variable COLUMNS can ask for
SHOWN = 4  # images per column, at most
PROMPT_LINES = 4  # kept free below a picture
HALF_BLOCK = "\N{UPPER HALF BLOCK}"  # what a picture is drawn of where there is no better way


def can_encode(text: str, encoding: str) -> bool:
    """Return whether a text can be printed in an encoding."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _console(stream: TextIO, *, is_silent: bool) -> Console:
    from rich.console import Console, ConsoleOptions, RenderableType  # 40 ms, which completion with TAB need not pay
    from rich.segment import Segment

    class HarmlessConsole(Console):
        """Prints nothing that a terminal would obey but what Rich makes itself; brackets are no markup."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                is_safe = segment.control or not HARMFUL.search(segment.text)
                yield segment if is_safe else Segment(harmless(segment.text), segment.style)

    return HarmlessConsole(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=is_silent)


class Screen:
    """Text for people: on stdout, or with --json, when stdout holds one JSON object, on stderr."""

    def __init__(self, is_json: bool = False) -> None:
        self.is_json = is_json
        self.is_silent = not environment.process_info().is_first  # only rank 0 prints
        self._held: list[list[str]] | None = None
        self.console = _console(sys.stderr if is_json else sys.stdout, is_silent=self.is_silent)
        columns = os.environ.get("COLUMNS", "")
        if columns.isdecimal() and int(columns):
            self.console.size = type(self.console.size)(min(int(columns), MOST_COLUMNS), self.console.height)
        elif not self.console.is_terminal:
            self.console.width = LOG_COLUMNS

    @property
    def is_terminal(self) -> bool:
        """Return whether output goes to a terminal."""
        return self.console.is_terminal and not self.is_silent

    @property
    def has_pictures(self) -> bool:
        """Return whether pictures are drawn: on a terminal in color, for a person."""
        console = self.console
        has_color = console.color_system is not None and not console.no_color
        return self.is_terminal and not self.is_json and has_color and can_encode(HALF_BLOCK, console.encoding)

    def say(self, text: str = "") -> None:
        """Print a line; what the text names may come from anyone."""
        if self._held is not None:
            self._held.append(["say", text])
            return
        self.console.print(one_line(text))

    def say_lines(self, text: str) -> None:
        """Print a text of several lines."""
        self.console.print(text)

    def explain(self, text: str) -> None:
        """Print a sentence wrapped between words; use `say` for lines that users copy."""
        self.console.print(one_line(text), soft_wrap=False)

    def warn(self, text: str) -> None:
        """Print a warning line."""
        if self._held is not None:
            self._held.append(["warn", text])
            return
        self.console.print(one_line(f"warning: {text}"), style="yellow")

    @contextlib.contextmanager
    def hold_lines(self) -> Iterator[list[list[str]]]:
        """Collect the lines of the context instead of printing them, and draw no pictures.

        Yields the lines for `print_held`. Rank 0 can print those of all ranks in order.
        """
        held: list[list[str]] = []
        before, self._held = self._held, held
        try:
            yield held
        finally:
            self._held = before

    def print_held(self, held: list[list[str]]) -> None:
        """Print lines collected by `hold_lines`."""
        for kind, text in held:
            (self.warn if kind == "warn" else self.say)(text)

    def show(self, table: Table) -> None:
        """Print a table."""
        if table.box is None:
            table.padding = (0, 2 if self.console.width > COLUMNS else 1, 0, 0)
        self.console.print(table)

    def progress(self, *, is_shown: bool = True) -> Progress:
        """Return a progress bar that disappears when it is done; it draws only on a terminal."""
        from rich.progress import Progress, TextColumn  # 30 ms, which --help need not pay

        name = TextColumn("{task.description}", style="progress.description", markup=False)
        columns = name, *Progress.get_default_columns()[1:]
        is_off = not (is_shown and self.is_terminal)
        return Progress(*columns, console=self.console, transient=True, disable=is_off)

    def picture(self, picture: Image.Image) -> None:
        """Draw a picture if there is a terminal in color: with Kitty, Sixel or half-blocks."""
        if not self.has_pictures or self._held is not None:
            return
        from colddiff_cli.console import terminal_images

        # A cell is about twice as high as wide. A picture higher than the screen would scroll out of view.
        fitting = 2 * (self.console.height - PROMPT_LINES) * picture.width // picture.height
        width = max(1, min(self.console.width, COLUMNS, fitting))
        # A strip may be lower than a cell.
        with contextlib.suppress(ValueError, ArithmeticError, OSError):
            self.console.print(terminal_images.renderable()(picture, width=width, height="auto"))

    def rows(self, columns: Mapping[str, Tensor]) -> None:
        """Draw the first images of each column if there is a terminal in color: one row per image.

        columns: (B, C, H, W) float32 in [-1, 1] by name.
        """
        if not self.has_pictures:
            return
        import torch

        from colddiff_core import images

        lines = COLUMNS // len(columns) // 2  # height of an image at full width
        count = max(1, min(SHOWN, (self.console.height - PROMPT_LINES) // lines))
        framed = [torch.nn.functional.pad(stack[:count], (1, 1, 1, 1), value=-1.0) for stack in columns.values()]
        abreast = torch.cat(framed, dim=-1)
        each = min(self.console.width, COLUMNS) // len(columns)
        self.say("".join(f"{name:<{each}}" for name in columns))
        self.picture(images.to_pillow(images.tile(abreast, columns=1)))

    def result(self, values: Mapping[str, Any], last: Path | None = None) -> None:
        """End a command: print the JSON object with --json, else the path of the last file."""
        if self.is_silent:
            return
        if self.is_json:
            sys.stdout.write(json.dumps(_plain(values), allow_nan=False, default=str) + "\n")
        elif last is not None:
            self.say(str(last))


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print the library's warnings on stderr, one line each; leave others to Python."""
    usual, formatted = warnings.showwarning, warnings.formatwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, ColddiffWarning):
            if not environment.is_news(str(message)):
                return
            # Not through a saved stream: a progress bar replaces sys.stderr to print above itself.
            sys.stderr.write(one_line(f"warning: {message}") + "\n")
        else:
            usual(message, category, filename, lineno, file, line)

    def write(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return harmless(formatted(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.simplefilter("always", ColddiffWarning)
        # Damaged pictures are reported as such, or can be read.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.showwarning, warnings.formatwarning = show, write
        try:
            yield
        finally:
            warnings.formatwarning = formatted


def _plain(value: Any) -> Any:
    """Return values that JSON can hold, with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
