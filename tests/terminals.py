"""Run a command line on a pty whose other side plays a terminal with scripted answers."""

from __future__ import annotations

import atexit
import dataclasses
import fcntl
import functools
import logging
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
import tty
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import processes

LAST_QUESTION = b"\x1b[c"
TIMEOUT_SECONDS = 120
DASHBOARD = b"\x1b[?1049h"  # the dashboard's screen is on
QUIT = [(seconds, b"q") for seconds in (3.0, 8.0, 20.0, 50.0)]  # for a dashboard: a busy one may miss the first
COLOR = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
DROPPED = ("NO_COLOR", "FORCE_COLOR", "TMUX", "STY", "TERM_PROGRAM", "COLUMNS", "LINES", "TTY_COMPATIBLE")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a terminal answers when it is asked what it is, how late, and the pixels that the system says it has."""

    text: bytes = b""
    seconds: float = 0.0
    pixels: tuple[int, int] = (0, 0)


@dataclasses.dataclass
class Session:
    """What happened on a terminal.

    Attributes:
        code: The exit code.
        output: What the terminal was sent.
        left: What a shell would read as typed after the command.
        seconds: From the question to its end.
        modes: Whether the terminal's modes are as before.
    """

    code: int
    output: bytes
    left: bytes
    seconds: float
    has_modes: bool

    @property
    def questions(self) -> int:
        """How often the terminal was asked something."""
        return sum(self.output.count(question) for question in (LAST_QUESTION, b"\x1b[16t", b"a=q"))


def run(
    act: Callable[[], int],
    folder: Path,
    answer: Answer | None = None,
    *,
    variables: Mapping[str, str] | None = None,
    typed: Sequence[tuple[float, bytes]] = (),
    shown: bytes = b"",
    size: tuple[int, int] = (80, 24),
    streams: Sequence[int] = (0, 1, 2),
    is_background: bool = False,
) -> Session:
    """Run `act` in a process on a terminal, and return what came of it.

    Args:
        act: What the process does; it returns an exit code.
        folder: The current folder of the process.
        answer: What the terminal answers.
        variables: Added to the environment.
        typed: Keys, and how many seconds later than `shown` they are typed, in order.
        shown: The keys are typed after the terminal was sent this; empty for the start.
        size: Columns and lines.
        streams: The standard streams that are the terminal; the others are /dev/null.
        is_background: Whether another process group is in the foreground.
    """
    answer = answer or Answer()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], *answer.pixels))
    before = termios.tcgetattr(theirs)
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    environment = kept | COLOR | dict(variables or {})
    place = _Place(os.ttyname(theirs), tuple(streams), str(folder), environment, is_background)
    process = processes.fork(functools.partial(_act, act, place))
    output, due, asked, begun = b"", list(typed), 0.0, time.monotonic()
    typing = 0.0 if shown else begun
    replies: list[float] = []
    while process.poll() is None:
        assert time.monotonic() < begun + TIMEOUT_SECONDS, output[-2000:]
        if select.select([ours], [], [], 0.02)[0]:
            output += (more := os.read(ours, 65536))
            if LAST_QUESTION in output and not asked:
                asked = time.monotonic()
                replies.append(asked + answer.seconds)
            del more
        if replies and time.monotonic() >= replies[0]:
            replies.pop()
            if answer.text:
                os.write(ours, answer.text)
        typing = typing or (time.monotonic() if shown in output else 0.0)
        if due and typing and time.monotonic() >= typing + due[0][0]:
            os.write(ours, due.pop(0)[1])
    end = time.monotonic()
    while select.select([ours], [], [], 0.02)[0]:
        output += os.read(ours, 65536)
    after = termios.tcgetattr(theirs)
    tty.setcbreak(theirs, termios.TCSANOW)
    left = b""
    while select.select([theirs], [], [], 0.02)[0]:
        left += os.read(theirs, 65536)
    for descriptor in (ours, theirs):
        os.close(descriptor)
    assert process.returncode is not None
    return Session(process.returncode, output, left, end - asked if asked else 0.0, before == after)


def command(arguments: Sequence[str]) -> int:
    """Run a command line as `colddiff` does; an `act` with functools.partial."""
    from colddiff_cli.__main__ import run as run_command

    return run_command(list(arguments))


@dataclasses.dataclass(frozen=True)
class _Place:
    terminal: str
    streams: tuple[int, ...]
    folder: str
    variables: dict[str, str]
    is_background: bool


def _act(act: Callable[[], int], place: _Place) -> int:
    atexit._clear()  # what the tests registered
    logging.root.handlers.clear()  # pytest's, which would keep a library's messages from the terminal
    os.setsid()
    terminal = os.open(place.terminal, os.O_RDWR)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(terminal if number in place.streams else nothing, number)
    processes.open_streams()
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.environ.clear()
    os.environ.update(place.variables)
    os.chdir(place.folder)
    if place.is_background:
        _leave_foreground(terminal)
    code = act()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    atexit._run_exitfuncs()
    return code


def _leave_foreground(terminal: int) -> None:
    """Put another process into the terminal's foreground."""
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        time.sleep(TIMEOUT_SECONDS)
        os._exit(0)
    os.setpgid(pid, pid)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(terminal, pid)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    atexit.register(os.kill, pid, signal.SIGKILL)
