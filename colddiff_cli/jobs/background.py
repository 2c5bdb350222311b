"""A training in a process of its own, which goes on when the terminal it was started from is gone."""

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
from colddiff_core import runs
from colddiff_core.files import refusals

POLL = 0.1  # seconds between looks at a trainer that starts
LOG = "train.log"  # in the run: what the trainer would have said on a terminal


def start(screen: Screen, arguments: Sequence[str], run: Path) -> subprocess.Popen[bytes]:
    """Start `colddiff train` with these arguments and wait until it trains the run.

    What it says goes to train.log in the run. Where it ends before it trains, its own words are shown and
    this command ends with its exit code.
    """
    before = len(_beginnings(run))
    with _log(run) as log:
        with refusals(log), log.open("ab") as file:
            said = file.tell()
            child = subprocess.Popen(
                [sys.executable, "-m", "colddiff_cli", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C here and the end of this terminal are not its business
            )
        # Waited for, so that it does not seem to be there still when it is gone.
        threading.Thread(target=child.wait, daemon=True).start()
        try:
            with screen.console.status("starting the trainer ..."):
                while len(_beginnings(run)) == before and child.returncode is None:
                    time.sleep(POLL)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
        if len(_beginnings(run)) == before:
            sys.stderr.write(log.read_bytes()[said:].decode(errors="replace"))
            raise typer.Exit(child.returncode if child.returncode > 0 else 1)
    return child


def _beginnings(run: Path) -> list[object]:
    return [event for event in runs.Run(run).events() if event.get("event") in runs.BEGINNINGS]


@contextlib.contextmanager
def _log(run: Path) -> Iterator[Path]:
    """Yield the run's log: beside the run as long as that is not there, and gone again if it never is."""
    if run.is_dir():
        yield run / LOG
        return
    made = [folder for folder in (run.parent, *run.parent.parents) if not folder.exists()]
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
        for folder in made:
            with contextlib.suppress(OSError):  # it is no longer empty
                folder.rmdir()
