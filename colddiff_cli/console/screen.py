"""What commands show: tables and pictures on the terminal, JSON for programs."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console
from rich.table import Table

from colddiff_core.distributed import environment
from colddiff_core.errors import ColddiffWarning, MachineError
from colddiff_core.text import harmless

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

COLUMNS = 80
LOG_COLUMNS = 120  # where there is no terminal to fit
SHOWN = 4  # images on a terminal with room for them
PROMPT_LINES = 4  # what a picture leaves to the text after it


def _silence(stream: TextIO) -> None:
    """Have what is written to a stream from now on, and what waits in it, go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a test's has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Stream:
    """A stream that may fail, as when a terminal went away or a disk is full: the words are lost, the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure = ""  # why words were lost, in the system's words

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text; one that cannot be written is lost."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream; what cannot be written is lost."""
        self._try(self.stream.flush)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BrokenPipeError:  # no failure: whoever read has had enough
            raise
        except OSError as error:
            if error.errno != errno.EIO:  # that is a terminal which went away, with whoever read
                self.failure = error.strerror or str(error)
            _silence(self.stream)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence: whoever read the output has had enough, and the work is still wanted."""
        _silence(sys.stdout)
        self.quiet = True


class Screen:
    """Text for people on stdout, or on stderr where stdout is one JSON object."""

    def __init__(self, is_json: bool = False) -> None:
        self.is_json = is_json
        self._stream = _Stream(sys.stderr if is_json else sys.stdout)
        self.is_silent = not environment.process_info().is_first  # the first process of a job speaks for all
        self._held: list[list[str]] | None = None
        self.console = _Console(file=cast(TextIO, self._stream), highlight=False, soft_wrap=True, quiet=self.is_silent)
        if not self.console.is_terminal:
            self.console.width = LOG_COLUMNS

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal and not self.is_silent

    def say(self, text: str = "") -> None:
        """Print a line."""
        if self._held is not None:
            self._held.append(["say", text])
            return
        self.console.print(harmless(text), markup=False)

    def explain(self, text: str) -> None:
        """Print a sentence, broken between words where the terminal is narrower; nothing in it is to be copied."""
        self.console.print(harmless(text), markup=False, soft_wrap=False)

    def warn(self, text: str) -> None:
        """Print a line that wants attention."""
        if self._held is not None:
            self._held.append(["warn", text])
            return
        self.console.print(harmless(f"warning: {text}"), markup=False, style="yellow")

    @contextlib.contextmanager
    def hold_lines(self) -> Iterator[list[list[str]]]:
        """Hold back the lines of the context, and draw nothing; yields what `tell` takes, in this process or another.

        So each line is told in its place whichever process of a job has it to tell.
        """
        held: list[list[str]] = []
        before, self._held = self._held, held
        try:
            yield held
        finally:
            self._held = before

    def print_held(self, held: list[list[str]]) -> None:
        """Print lines that were held back."""
        for kind, text in held:
            (self.warn if kind == "warn" else self.say)(text)

    def show(self, table: Table) -> None:
        """Print a table."""
        if table.box is None:
            table.padding = (0, 2 if self.console.width > COLUMNS else 1, 0, 0)
        self.console.print(table)

    def picture(self, picture: Image.Image) -> None:
        """Draw a picture where there is a terminal: Kitty, Sixel, else half-blocks."""
        if not self.is_terminal or self._held is not None:
            return
        from colddiff_cli.console import terminal_images

        # A cell is about twice as high as wide; a picture higher than the screen would scroll out of sight.
        fitting = 2 * (self.console.height - PROMPT_LINES) * picture.width // picture.height
        width = max(1, min(self.console.width, COLUMNS, fitting))
        # Some terminals do not say how large their cells are, and a strip may be less than one high.
        with contextlib.suppress(ValueError, ArithmeticError, OSError):
            self.console.print(terminal_images.renderable()(picture, width=width, height="auto"))

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
        """End a command: the JSON object where it was asked for, else the path of what was written.

        Raises MachineError where what the command said could not be written.
        """
        if self.is_silent:
            return
        if self.is_json:
            told = _Stream(sys.stdout)
            told.write(json.dumps(_plain(values), allow_nan=False, default=str) + "\n")
            told.flush()
        else:
            told = self._stream
            if last is not None:
                self.say(str(last))
        if told.failure:
            raise MachineError(f"The output could not be written: {told.failure}.", "The work itself is done.")


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
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
            if not environment.is_news(str(message)):
                return
            with contextlib.suppress(OSError):  # nobody is there to be warned
                # Above a progress bar, which takes stderr over while it lives.
                sys.stderr.write(harmless(f"warning: {message}\n"))
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", ColddiffWarning)
        warnings.filterwarnings(
            "ignore", module=r"PIL\."
        )  # of damaged pictures, which are told of as such or can be read
        warnings.showwarning = show
        yield


def _plain(value: Any) -> Any:
    """Return values that JSON can hold: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
