"""Start command lines as the processes of one job, without torchrun."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing.connection
import os
import signal
import socket
import time
from collections.abc import Sequence
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
            sentinels = [process.process.sentinel for process in left]
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


def start(arguments: Sequence[str], folder: Path, count: int = 1, threads: int = 1) -> LaunchedJob:
    """Start a command line in a folder as `count` processes of a job, with `threads` each; one process is no job."""
    from colddiff_core.evaluation import classifier

    prepare = functools.partial(_prepare, threads, classifier.STEPS)  # conftest.py has lessened them
    environment = dict(os.environ)
    if count > 1:
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        environment["LOCAL_WORLD_SIZE"] = str(count)
    started = []
    for rank in range(count):
        variables = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})
        started.append(processes.start(arguments, folder, variables, prepare))
    return LaunchedJob(started)


def finish(arguments: Sequence[str], folder: Path, count: int = 1, threads: int = 1) -> tuple[str, str]:
    """Run a command line that must succeed; return its stdout and stderr."""
    job = start(arguments, folder, count, threads)
    codes = job.wait()
    assert codes == [0] * count, job.output("err")
    return job.output("out"), job.output("err")


def _prepare(threads: int, steps: int) -> None:
    import torch

    from colddiff_core.evaluation import classifier

    torch.set_num_threads(threads)
    classifier.STEPS = steps


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])
