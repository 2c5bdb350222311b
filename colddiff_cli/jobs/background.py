"""Train in a background process that survives the end of the terminal."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import launch
from colddiff_core import runs
from colddiff_core.errors import MachineError
from colddiff_core.files import refusals
from colddiff_core.text import harmless

POLL_SECONDS = 0.1
LOG = "train.log"  # in the run: the trainer's output


def start(screen: Screen, arguments: Sequence[str], run: Path) -> subprocess.Popen[bytes]:
    """Start `colddiff train` with these arguments, wait until training begins, and return the process.

    Its output goes to train.log in the run.

    Raises:
        MachineError: The log cannot be written, or is a link.
        typer.Exit: The process ended before training; its output has been printed.
    """
    before = _start_count(run)
    with _log(run) as log:
        with refusals(log), log.open("ab") as file:
            offset = file.tell()
            child = subprocess.Popen(
                [sys.executable, *launch.program(), "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # not affected by Ctrl-C here or the end of this terminal
            )
        # Reap it when it ends, or it would still look alive.
        threading.Thread(target=child.wait, daemon=True).start()
        try:
            with screen.console.status("starting the trainer ..."):
                while _start_count(run) == before and child.returncode is None:
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
        if _start_count(run) == before:
            sys.stderr.write(harmless(log.read_bytes()[offset:].decode(errors="replace")))
            raise typer.Exit(child.returncode if child.returncode > 0 else 1)
    return child


def _start_count(run: Path) -> int:
    """Return how often the run was started or resumed."""
    return sum(event.get("event") in runs.BEGINNINGS for event in runs.Run(run).events())


@contextlib.contextmanager
def _log(run: Path) -> Iterator[Path]:
    """Yield the log file: beside the run until its folder exists, and removed if it never does."""
    if run.is_dir():
        if (run / LOG).is_symlink():
            raise MachineError(f"{run / LOG} is a link, perhaps someone else's.", "Remove it.")
        yield run / LOG
        return
    created = [folder for folder in (run.parent, *run.parent.parents) if not folder.exists()]
    with refusals(run):
        run.parent.mkdir(parents=True, exist_ok=True)
    log = run.with_name(f".{run.name}-{uuid.uuid4().hex[:8]}.log")
    try:
        yield log
    finally:
        if run.is_dir():
            with refusals(run / LOG):
                log.replace(run / LOG)
        else:
            log.unlink(missing_ok=True)
        for folder in created:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
