"""Start command lines as the processes of one job, without torchrun."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing.connection
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import processes

TIMEOUT_SECONDS = 60


@dataclasses.dataclass
class LaunchedJob:
    """The processes of one command line, by rank."""

    processes: list[processes.CommandProcess]
    is_interrupted: bool = False

    def wait(self) -> list[int | None]:
        """Return the exit codes; if one process fails, terminate the others as torchrun does, but not after Ctrl-C."""
        end = time.monotonic() + TIMEOUT_SECONDS
        left = list(self.processes)
        while left and time.monotonic() < end:
            sentinels = [process.sentinel for process in left]
            multiprocessing.connection.wait(sentinels, timeout=end - time.monotonic())
            if any(process.returncode for process in left) and not self.is_interrupted:
                for process in left:
                    process.terminate()
            left = [process for process in left if process.returncode is None]
        for process in left:
            process.kill()
        assert not left, self.output("err")
        return [process.wait() for process in self.processes]

    def interrupt(self) -> None:
        """Send SIGINT to all processes, twice, because torchrun passes it on."""
        self.is_interrupted = True
        for _ in range(2):
            for process in self.processes:
                process.send_signal(signal.SIGINT)

    def output(self, stream: str) -> str:
        """Return the output of all processes on a stream, "out" or "err"."""
        return "".join(getattr(process, stream).read_text() for process in self.processes)


def start(
    arguments: Sequence[str],
    folder: Path,
    count: int = 1,
    threads: int = 1,
    *,
    variables: Mapping[str, str] | None = None,
    prepares: Mapping[int, Callable[[], None]] | None = None,
) -> LaunchedJob:
    """Start a command line in a folder as `count` processes of a job, with `threads` each; one process is no job.

    `variables` are added to the environment; each of `prepares` is called in the process of that rank.
    """
    from colddiff_core.evaluation import classifier

    started = []
    for rank, own in enumerate(environments(count)):
        more = (prepares or {}).get(rank)
        prepare = functools.partial(_prepare, threads, classifier.STEPS, more)  # fewer in tests: see conftest.py
        started.append(processes.start(arguments, folder, own | dict(variables or {}), prepare))
    return LaunchedJob(started)


def environments(count: int) -> list[dict[str, str]]:
    """Return the environments of the processes of a job, by rank; one process is no job."""
    if count == 1:
        return [dict(os.environ)]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port())}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def finish(arguments: Sequence[str], folder: Path, count: int = 1, threads: int = 1) -> tuple[str, str]:
    """Run a command line that must succeed; return its stdout and stderr."""
    job = start(arguments, folder, count, threads)
    codes = job.wait()
    assert codes == [0] * count, job.output("err")
    return job.output("out"), job.output("err")


def _prepare(threads: int, steps: int, more: Callable[[], None] | None) -> None:
    import torch

    from colddiff_core.evaluation import classifier

    torch.set_num_threads(threads)
    classifier.STEPS = steps
    if more:
        more()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])
