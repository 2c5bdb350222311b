"""Command lines as the processes of one job, started from a process that has imported everything already."""

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

# What a command line imports when it comes to that.
MORE = ["launches", "sklearn.datasets", "sklearn.mixture", "torchmetrics.image", "colddiff_core.evaluation.evaluate"]
STEPS = 20  # of a classifier's training
PATIENCE = 60  # seconds


@dataclasses.dataclass
class LaunchedJob:
    """The processes of one command line, by rank; what each said is in files of their own."""

    processes: list[BaseProcess]
    folder: Path

    def wait(self) -> list[int | None]:
        """Return the exit codes; where one process fails, the others are ended as torchrun does it."""
        end = time.monotonic() + PATIENCE
        left = list(self.processes)
        while left and time.monotonic() < end:
            multiprocessing.connection.wait([process.sentinel for process in left], timeout=end - time.monotonic())
            if any(process.exitcode for process in left):
                for process in left:
                    process.terminate()
            left = [process for process in left if process.exitcode is None]
        for process in left:
            process.kill()
        assert not left, self.told("err")
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def interrupt(self) -> None:
        """Send what Ctrl-C does, to all; a second time at once, as torchrun passes it on."""
        for _ in range(2):
            for process in self.processes:
                assert process.pid
                os.kill(process.pid, signal.SIGINT)

    def told(self, stream: str) -> str:
        """Return what all said on a stream, "out" or "err"."""
        return "".join((self.folder / f"{stream}-{rank}.txt").read_text() for rank in range(len(self.processes)))


def start(arguments: Sequence[str], folder: Path, count: int = 1, threads: int = 1) -> LaunchedJob:
    """Start a command line in a folder as so many processes of a job; one by itself is none. threads: of each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*calls.IMPORTED, *MORE])
    environment = dict(os.environ)
    if count > 1:
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        environment["LOCAL_WORLD_SIZE"] = str(count)
    processes = []
    for rank in range(count):
        own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})
        process = context.Process(target=_call, args=(list(arguments), str(folder), own, rank, threads))
        process.start()
        processes.append(process)
    return LaunchedJob(processes, folder)


def finish(arguments: Sequence[str], folder: Path, count: int = 1, threads: int = 1) -> tuple[str, str]:
    """Run a command line that is to succeed to its end; returns what it said on stdout and on stderr."""
    job = start(arguments, folder, count, threads)
    codes = job.wait()
    assert codes == [0] * count, job.told("err")
    return job.told("out"), job.told("err")


def _call(arguments: list[str], folder: str, environment: dict[str, str], rank: int, threads: int) -> None:
    import torch

    from colddiff_cli.__main__ import run
    from colddiff_core.distributed import group
    from colddiff_core.evaluation import classifier

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(threads)
    classifier.STEPS = STEPS
    with open(f"out-{rank}.txt", "w", encoding="utf-8") as out, open(f"err-{rank}.txt", "w", encoding="utf-8") as err:
        sys.stdout, sys.stderr = out, err
        code = run(arguments)
        if code == 0:
            group.leave()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])
