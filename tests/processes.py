"""Command lines as processes, forked from a server that has imported everything: they start at once.

A fresh Python takes seconds to import torch; only tests of how a command starts or exits need one. The server is forked
from the tests' own process before the first test.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import gc
import importlib
import multiprocessing.connection
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colddiff_core.training.log_meter import TrainingLog

# For this process and those it starts: waiting threads would spin and take the processors from others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = [f"colddiff_cli.commands.{name}" for name in ("degrade", "evaluate", "generate", "sample", "train")]
LATE = ["sklearn.datasets.data", "sklearn.mixture", "torchmetrics.image"]  # what commands import late
# What any command line imports late.
PARSER = [
    "colddiff_cli.app",
    "typer._adapters",
    "pydantic.types",
    "pydantic._internal._validators",
    "rich._emoji_codes",
]
OWN = ["evaluation.comparison", "evaluation.evaluate", "inference.generate", "inference.photograph", "training.start"]
OWN += ["evaluation.reference", "evaluation.resumable", "inference.restore"]
IMPORTED = ["torch", *LATE, *PARSER, *COMMANDS, *(f"colddiff_core.{name}" for name in OWN)]
NUMBER = struct.Struct("!q")


@dataclasses.dataclass
class CommandProcess:
    """A running command line, with the methods of subprocess.Popen that tests need.

    Attributes:
        sentinel: a descriptor that can be read once the process has ended.
    """

    pid: int
    sentinel: int
    out: Path
    err: Path
    _code: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code, None while the process runs."""
        if self._code is None and multiprocessing.connection.wait([self.sentinel], 0):
            self._code = _read_number(self.sentinel)
            os.close(self.sentinel)
        return self._code

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise TimeoutExpired if the process does not end in time."""
        if self._code is None:
            multiprocessing.connection.wait([self.sentinel], timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("colddiff", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait; return what was printed on stdout and on stderr."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _logs() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for what processes print, removed when the tests end."""
    return tempfile.TemporaryDirectory(prefix="colddiff-tests-")


def start(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> CommandProcess:
    """Start a command line in a folder; `prepare` is called in its process before the command."""
    variables = dict(os.environ if environment is None else environment)
    return fork(functools.partial(_command, list(arguments), str(folder), variables, prepare))


def fork(act: Callable[[], int]) -> CommandProcess:
    """Start a process that calls `act` and ends with the exit code that it returns, 1 for an error."""
    log = Path(tempfile.mkdtemp(dir=_logs().name))
    ours, theirs = os.pipe()
    content = ForkingPickler.dumps((act, log / "out", log / "err"))
    server = start_server()
    socket.send_fds(server, [NUMBER.pack(len(content))], [theirs])
    server.sendall(content)
    os.close(theirs)
    return CommandProcess(_read_number(ours), ours, log / "out", log / "err")


@functools.cache
def start_server() -> socket.socket:
    """Fork the server from this process and return the connection to it.

    Call it before the first test: torch computes no gradients in a process that was forked after a training, and what
    a test patches would be in the fork. multiprocessing's own server would import everything again.
    """
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or garbage collection would write to shared pages, which copies them
    ours, theirs = socket.socketpair()
    if not os.fork():
        try:
            _serve(theirs)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork a process for each request; write its pid, then its exit code, to the descriptor that came with it."""
    woken, wake = os.pipe()
    _forget_parent({requests.fileno(), woken, wake})
    for descriptor in (woken, wake):
        os.set_blocking(descriptor, False)
    usual = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGINT)}
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that a process that ends wakes this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _write_number(running[ended[0]], os.waitstatus_to_exitcode(ended[1]))
                os.close(running.pop(ended[0]))
        if requests not in ready:
            continue
        header, answer = socket.recv_fds(requests, NUMBER.size, 1)[:2]
        if not header:  # the tests have ended
            os._exit(0)
        content = requests.recv(NUMBER.unpack(header)[0], socket.MSG_WAITALL)
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for number, handler in usual.items():
                signal.signal(number, handler)
            for descriptor in (woken, wake, *answer, *running.values()):
                os.close(descriptor)
            requests.close()
            _act(*pickle.loads(content))  # noqa: S301 - our own
        _write_number(answer[0], pid)
        running[pid] = answer[0]


def _forget_parent(kept: set[int]) -> None:
    """Drop the files inherited from the tests, and undo pytest's hooks."""
    faulthandler.disable()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in {int(name) for name in os.listdir("/dev/fd")} - kept - {1, 2, nothing}:
        with contextlib.suppress(OSError):  # the one that listed them is closed
            os.fstat(descriptor)
            # Not closed: a new file would get the same number.
            os.dup2(nothing, descriptor, inheritable=descriptor == 0)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__


def _read_number(descriptor: int) -> int:
    return NUMBER.unpack(os.read(descriptor, NUMBER.size))[0]


def _write_number(descriptor: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(descriptor, NUMBER.pack(number))


def finish(arguments: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None) -> str:
    """Run a command line that must succeed; return what it printed on stdout."""
    out, err = (process := start(arguments, folder, prepare=prepare)).communicate()
    assert process.returncode == 0, err
    return out


def add_packages(folder: Path) -> None:
    """Make the packages in a folder importable, as if they were installed; a `prepare` for `start`."""
    from colddiff_core.degradations import registry

    sys.path.insert(0, str(folder))
    registry._entry_points.cache_clear()


def signal_in_step(number: signal.Signals, step: int) -> None:
    """Send this process a signal in a training step, counted from 0; a `prepare` for `start`."""
    from colddiff_core.training.step import Stepper

    take = Stepper.take

    def signalled(stepper: Stepper, current: int, meter: TrainingLog) -> None:
        if current == step:
            os.kill(os.getpid(), number)
        take(stepper, current, meter)

    Stepper.take = signalled  # type: ignore[method-assign]


def _command(arguments: list[str], folder: str, variables: dict[str, str], prepare: Callable[[], None] | None) -> int:
    from colddiff_cli.__main__ import run
    from colddiff_core.distributed import environment

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    if prepare:
        prepare()
    code = run(arguments)
    group = environment.joined()
    if code == 0 and group:
        group.leave()
    return code


def open_streams() -> None:
    """Reopen sys.stdout and sys.stderr on descriptors 1 and 2, with Python's usual buffering."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        lines = 1 if descriptor == 2 or os.isatty(descriptor) else -1
        setattr(sys, name, os.fdopen(descriptor, "w", lines, encoding="utf-8", closefd=False))


def _act(act: Callable[[], int], out: Path, err: Path) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    open_streams()
    code = 1
    try:
        code = act()
    except Exception:
        traceback.print_exc()
    try:
        sys.stdout.flush()
    except OSError as error:  # as at Python's own exit
        print(f"Exception ignored in {sys.stdout!r}: {error}", file=sys.stderr)  # noqa: T201
        code = 120
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)
