"""Start command lines as killable processes, forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

COMMANDS = [f"colddiff_cli.commands.{name}" for name in ("degrade", "evaluate", "generate", "sample", "train")]
IMPORTED = ["torch", *COMMANDS, "colddiff_core.experiment", "colddiff_core.inference.generate", "calls"]


def start(arguments: list[str], folder: Path) -> multiprocessing.process.BaseProcess:
    """Start a command line in a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_call, args=(arguments, str(folder), str(folder / "output.txt")))
    process.start()
    return process


def finish(arguments: list[str], folder: Path) -> float:
    """Run a command line that must succeed; return how many seconds it took."""
    started = time.monotonic()
    process = start(arguments, folder)
    process.join()
    assert process.exitcode == 0, (folder / "output.txt").read_text()
    return time.monotonic() - started


def _call(arguments: list[str], folder: str, log: str) -> None:
    from colddiff_cli.__main__ import run

    os.chdir(folder)
    with open(log, "w", encoding="utf-8") as output:
        sys.stdout = sys.stderr = output
        code = run(arguments)
    sys.exit(code)
