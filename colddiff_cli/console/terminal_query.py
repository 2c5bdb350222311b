"""Ask the terminal, once, what pictures it draws, and keep its answer apart from the user's keys.

textual-image would ask when it is imported, up to three times, print a traceback about some answers, and leave a late
one to the shell. So `terminal_images` keeps it from asking, and chooses its classes by the answer to this module's
question.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import select
import struct
import sys
import time
from typing import NamedTuple

with contextlib.suppress(ImportError):  # Windows
    import fcntl
    import termios

QUESTION = (
    b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"  # does it draw Kitty's pictures?
    b"\r\x1b[K"  # a terminal that cannot read this question shows it as text: wipe it
    b"\x1b[16t"  # how large is a cell?
    b"\x1b[c"  # what is it? The last question, because every terminal answers this one
)
KITTY = re.compile(rb"\x1b_Gi=31;OK\x1b\\")
CELL = re.compile(rb"\x1b\[6;(\d{1,4});(\d{1,4})t")  # height and width
KIND = re.compile(rb"\x1b\[\?([\d;]*)c")
SIXEL = b"4"  # among the features in the answer to the last question
WAIT_SECONDS = 0.3  # for the answer
LATE_SECONDS = 1.0  # after the question, for a late answer to be taken off the input
MOST_BYTES = 4096  # of an answer; what sends more is no terminal
CELL_PIXELS = range(2, 256)  # believable widths and heights of a cell
# Without real pixels, or unable to read the question: these show it as text, or as a window's title.
NEVER_ASKED = re.compile(r"(dumb|unknown|linux|screen|tmux|vt\d).*|")


class TerminalAnswer(NamedTuple):
    """What a terminal draws, and the width and height of a cell in pixels, None if it did not say."""

    has_sixel: bool = False
    has_kitty: bool = False
    cell: tuple[int, int] | None = None


@functools.cache
def ask() -> TerminalAnswer:
    """Return what the terminal draws. It is asked at the first call only, and has `WAIT_SECONDS` to answer."""
    if not _is_worth_asking():
        return TerminalAnswer()
    try:
        sys.stdout.flush()
        answer = _Question(sys.stdin.fileno(), sys.stdout.fileno()).answer()
        return answer._replace(cell=_cell_by_system(sys.stdout.fileno()) or answer.cell)
    except (OSError, ValueError, termios.error):  # the terminal is gone, or a stream is closed
        return TerminalAnswer()


def is_answer_due() -> bool:
    """Wait for a late answer, and return whether it may still come, to be taken for keys."""
    return any(question.is_due() for question in _unanswered)


def _is_worth_asking() -> bool:
    variables = os.environ
    if "termios" not in globals() or NEVER_ASKED.fullmatch(variables.get("TERM", "")) or variables.get("NO_COLOR"):
        return False
    if variables.get("TMUX") or variables.get("STY") or variables.get("TERM_PROGRAM") == "Apple_Terminal":
        return False
    try:
        given, shown = sys.stdin.fileno(), sys.stdout.fileno()
        is_one = os.isatty(given) and os.isatty(shown) and os.fstat(given).st_rdev == os.fstat(shown).st_rdev
        return is_one and _is_ours(given)
    except (AttributeError, OSError, ValueError):  # closed streams, or those of a test
        return False


def _is_ours(terminal: int) -> bool:
    """Return whether this process is in the terminal's foreground: one in the background is stopped if it reads."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


def _cell_by_system(terminal: int) -> tuple[int, int] | None:
    """Return the size of a cell if the system knows it; many terminals set only rows and columns."""
    rows, columns, width, height = struct.unpack("HHHH", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
    return _believable(width // max(1, columns), height // max(1, rows))


def _believable(width: int, height: int) -> tuple[int, int] | None:
    return (width, height) if width in CELL_PIXELS and height in CELL_PIXELS else None


class _Question:
    """A question that was asked, and the terminal's modes before it."""

    def __init__(self, terminal: int, output: int) -> None:
        """Ask, unless keys are waiting, which would be read with the answer."""
        self.terminal, self.asked = terminal, time.monotonic()
        self.modes = termios.tcgetattr(terminal)
        self.text = b""
        self._set_quiet(is_by_line=False)
        try:
            self.is_asked = not select.select([terminal], [], [], 0)[0]
            if self.is_asked:
                os.write(output, QUESTION)
        except BaseException:
            self._restore()
            raise

    def answer(self) -> TerminalAnswer:
        """Return the answer, empty if it does not come in time."""
        if not self.is_asked:
            self._restore()
            return TerminalAnswer()
        try:
            self._read(WAIT_SECONDS)
        finally:
            if self._is_complete():
                self._restore()
            else:
                _unanswered.append(self)
                self._set_quiet(is_by_line=True)  # so that a late answer is not echoed
                atexit.register(self._end)
        kind = KIND.search(self.text)
        if kind is None:
            return TerminalAnswer()
        size = CELL.search(self.text)
        return TerminalAnswer(
            has_sixel=SIXEL in kind[1].split(b";")[1:],
            has_kitty=KITTY.search(self.text) is not None,
            cell=_believable(int(size[2]), int(size[1])) if size else None,
        )

    def is_due(self) -> bool:
        """Read a late answer; return whether it is still to come."""
        if not self._is_complete() and _is_ours(self.terminal):
            with contextlib.suppress(OSError, termios.error):
                self._set_quiet(is_by_line=False)
                self._read(LATE_SECONDS)
        return not self._is_complete()

    def _end(self) -> None:
        """Leave the terminal to the shell as it was, without the late answer among its keys."""
        with contextlib.suppress(OSError, termios.error, KeyboardInterrupt):
            self.is_due()
        if _is_ours(self.terminal):
            with contextlib.suppress(OSError, termios.error):
                self._restore()

    def _read(self, seconds: float) -> None:
        """Read until the answer is complete, or until some seconds after the question."""
        while not self._is_complete() and len(self.text) < MOST_BYTES:
            left = max(0.0, self.asked + seconds - time.monotonic())
            if not select.select([self.terminal], [], [], left)[0]:
                return
            more = os.read(self.terminal, MOST_BYTES)
            if not more:  # hung up
                return
            self.text += more
        if len(self.text) >= MOST_BYTES:
            termios.tcflush(self.terminal, termios.TCIFLUSH)

    def _is_complete(self) -> bool:
        return KIND.search(self.text) is not None

    def _set_quiet(self, *, is_by_line: bool) -> None:
        """Do not echo what is typed, and pass it on byte by byte or line by line."""
        flags = self.modes[3] & ~(termios.ECHO | termios.ICANON) | (self.modes[3] & termios.ICANON if is_by_line else 0)
        controls = list(self.modes[6])
        if not is_by_line:
            controls[termios.VMIN], controls[termios.VTIME] = 1, 0
        termios.tcsetattr(self.terminal, termios.TCSANOW, [*self.modes[:3], flags, *self.modes[4:6], controls])

    def _restore(self) -> None:
        termios.tcsetattr(self.terminal, termios.TCSANOW, self.modes)


_unanswered: list[_Question] = []
