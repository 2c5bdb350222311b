"""Command lines as processes, forked from a server that has imported everything: they start at once.

A fresh Python takes seconds to import torch; only tests of how a command starts or exits need one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colddiff_core.training.log_meter import TrainingLog

# For this process and those it starts: threads that wait would spin, and keep other processes from the processors.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COMMANDS = [f"colddiff_cli.commands.{name}" for name in ("degrade", "evaluate", "generate", "sample", "train")]
LATE = ["sklearn.datasets", "sklearn.mixture", "torchmetrics.image"]  # what commands import late
PARSER = ["colddiff_cli.app", "pydantic.type_adapter", "rich._emoji_codes"]  # what any command line imports late
OWN = ["evaluation.comparison", "evaluation.evaluate", "inference.generate", "inference.photograph", "training.start"]
IMPORTED = ["torch", *LATE, *PARSER, *COMMANDS, *(f"colddiff_core.{name}" for name in OWN)]


@dataclasses.dataclass
class CommandProcess:
    """A running command line, with the methods of subprocess.Popen that tests need."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        assert self.process.pid
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise TimeoutExpired if the process does not end in time."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("colddiff", timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait; return what was printed on stdout and on stderr."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()


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
    context = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(IMPORTED)
    log = Path(tempfile.mkdtemp(dir=_logs().name))
    process = context.Process(target=_act, args=(act, log / "out", log / "err"))
    process.start()
    return CommandProcess(process, log / "out", log / "err")


def warm_up() -> None:
    """Start the server now, so that it imports while other tests run."""
    forkserver.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


def finish(arguments: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None) -> str:
    """Run a command line that must succeed; return what it printed on stdout."""
    out, err = (process := start(arguments, folder, prepare=prepare)).communicate()
    assert process.returncode == 0, err
    return out


def add_packages(folder: Path) -> None:
    """Make the packages in a folder importable; a `prepare` for `start`."""
    sys.path.insert(0, str(folder))


def signal_in_step(number: signal.Signals, step: int) -> None:
    """Have this process get a signal in a training step, counted from 0; a `prepare` for `start`."""
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
