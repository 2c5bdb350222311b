"""Command lines as processes that can be killed, started from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

IMPORTED = ["torch", "colddiff_cli.app", "colddiff_core.experiment", "colddiff_core.inference.generate", "calls"]


def start(arguments: list[str], folder: Path) -> multiprocessing.process.BaseProcess:
    """Start a command line in a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_call, args=(arguments, str(folder), str(folder / "told.txt")))
    process.start()
    return process


def finish(arguments: list[str], folder: Path) -> float:
    """Run a command line that is to succeed, and return the seconds that it took."""
    started = time.monotonic()
    process = start(arguments, folder)
    process.join()
    assert process.exitcode == 0, (folder / "told.txt").read_text()
    return time.monotonic() - started


def _call(arguments: list[str], folder: str, log: str) -> None:
    from colddiff_cli.__main__ import run

    os.chdir(folder)
    with open(log, "w", encoding="utf-8") as told:
        sys.stdout = sys.stderr = told
        code = run(arguments)
    sys.exit(code)
