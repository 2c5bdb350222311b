"""Start command lines as the processes of one job, forked from a process that has imported everything."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import calls

# Modules that commands import late.
MORE = ["launches", "sklearn.datasets", "sklearn.mixture", "torchmetrics.image", "colddiff_core.evaluation.evaluate"]
CLASSIFIER_STEPS = 20
TIMEOUT_SECONDS = 60


@dataclasses.dataclass
class LaunchedJob:
    """The processes of one command line, by rank; each writes its output to its own files."""

    processes: list[BaseProcess]
    folder: Path

    def wait(self) -> list[int | None]:
        """Return the exit codes; if one process fails, terminate the others as torchrun does."""
        end = time.monotonic() + TIMEOUT_SECONDS
        left = list(self.processes)
        while left and time.monotonic() < end:
            multiprocessing.connection.wait([process.sentinel for process in left], timeout=end - time.monotonic())
            if any(process.exitcode for process in left):
                for process in left:
                    process.terminate()
            left = [process for process in left if process.exitcode is None]
        for process in left:
            process.kill()
        assert not left, self.output("err")
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def interrupt(self) -> None:
        """Send SIGINT to all processes, twice, because torchrun passes it on."""
        for _ in range(2):
            for process in self.processes:
                assert process.pid
                os.kill(process.pid, signal.SIGINT)

    def output(self, stream: str) -> str:
        """Return the output of all processes on a stream, "out" or "err"."""
        return "".join((self.folder / f"{stream}-{rank}.txt").read_text() for rank in range(len(self.processes)))


def start(arguments: Sequence[str], folder: Path, count: int = 1, threads: int = 1) -> LaunchedJob:
    """Start a command line in a folder as `count` processes of a job, with `threads` each; one process is no job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*calls.IMPORTED, *MORE])
    environment = dict(os.environ)
    if count > 1:
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        environment["LOCAL_WORLD_SIZE"] = str(count)
    processes = []
    for rank in range(count):
        variables = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})
        process = context.Process(target=_call, args=(list(arguments), str(folder), variables, rank, threads))
        process.start()
        processes.append(process)
    return LaunchedJob(processes, folder)


def finish(arguments: Sequence[str], folder: Path, count: int = 1, threads: int = 1) -> tuple[str, str]:
    """Run a command line that must succeed; return its stdout and stderr."""
    job = start(arguments, folder, count, threads)
    codes = job.wait()
    assert codes == [0] * count, job.output("err")
    return job.output("out"), job.output("err")


def _call(arguments: list[str], folder: str, environment: dict[str, str], rank: int, threads: int) -> None:
    import torch

    from colddiff_cli.__main__ import run
    from colddiff_core.distributed import group
    from colddiff_core.evaluation import classifier

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(threads)
    classifier.STEPS = CLASSIFIER_STEPS
    with open(f"out-{rank}.txt", "w", encoding="utf-8") as out, open(f"err-{rank}.txt", "w", encoding="utf-8") as err:
        sys.stdout, sys.stderr = out, err
        code = run(arguments)
        if code == 0:
            group.leave()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])
