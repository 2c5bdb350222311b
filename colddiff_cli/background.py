"""A training in a process of its own, which goes on when the terminal it was started from is gone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from colddiff_cli.screen import Screen
from colddiff_core import runs
from colddiff_core.files import refusals

POLL = 0.1  # seconds between looks at a trainer that starts
LOG = "train.log"  # in the run: what the trainer would have said on a terminal


def start(screen: Screen, arguments: Sequence[str], run: Path) -> subprocess.Popen[bytes]:
    """Start `colddiff train` with these arguments and wait until it holds the run.

    What it says goes to train.log in the run. Where it ends before that, its own words are shown and this
    command ends with its exit code.
    """
    with _draft(run) as log:
        with refusals(log), log.open("ab") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "colddiff_cli", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C here and the end of this terminal are not its business
            )
        try:
            with screen.console.status("starting the trainer ..."):
                while not _holds(child.pid, run) and child.poll() is None:
                    time.sleep(POLL)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
        if child.poll() is not None and not _holds(child.pid, run):
            sys.stderr.write(log.read_text(encoding="utf-8", errors="replace"))
            raise typer.Exit(child.returncode)
        log.replace(run / LOG)
    return child


def _holds(pid: int, run: Path) -> bool:
    holder = runs.Run(run).holder()
    return holder is not None and holder.pid == pid and holder.is_here


@contextlib.contextmanager
def _draft(run: Path) -> Iterator[Path]:
    """Yield a place for the log beside the run, which need not be there yet; nothing stays if it is not taken."""
    made = [folder for folder in (run.parent, *run.parent.parents) if not folder.exists()]
    with refusals(run):
        run.parent.mkdir(parents=True, exist_ok=True)
    log = run.with_name(f".{run.name}-{uuid.uuid4().hex[:8]}.log")
    try:
        yield log
    finally:
        log.unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):  # it is no longer empty
                folder.rmdir()
