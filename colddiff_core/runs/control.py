"""Requests to a run's trainer: files in control/, each answered by an event.

A reader creates an empty file `control/<request>.<id>`, such as `control/pause.4f2a`. After the current step
the trainer removes it, carries it out and names it under `answers` in the event it logs. Until that event, a
request is not done.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import refusals
from colddiff_core.text import nearest

ANSWERS = {  # the event that answers each request
    "pause": "paused",
    "resume": "resumed",
    "sample": "sample",
    "checkpoint": "checkpoint",
    "stop": "stopped",
}
FOLDER = "control"


def ask(run: Path, request: str) -> str:
    """Send a request to the trainer of the run at `run` and return the name its answer will carry.

    Raises:
        UsageError: the request is unknown.
        MachineError: the run cannot be written to, or its control/ is a link.
    """
    if request not in ANSWERS:
        raise UsageError(f"No such request: {request}.", nearest(request, ANSWERS))
    if (run / FOLDER).is_symlink():
        raise MachineError(f"{run / FOLDER} is a link, perhaps someone else's.", "Replace it with a real folder.")
    name = f"{request}.{uuid.uuid4().hex[:8]}"
    path = run / FOLDER / name
    with refusals(path):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return name


def withdraw(run: Path, name: str) -> None:
    """Withdraw a request that the trainer has not taken yet."""
    (run / FOLDER / name).unlink(missing_ok=True)


def word(name: str) -> str:
    """Return the request in a file's name: "pause" for "pause.4f2a"."""
    return name.partition(".")[0]


def take(run: Path) -> list[str]:
    """Remove all requests and return their names, sorted.

    Hidden files and files that cannot be removed are ignored: nothing in the folder may harm the training.
    """
    taken = []
    with contextlib.suppress(OSError):  # an older run has no such folder
        # Cheap enough for every step; the folder's modification time is too coarse.
        for name in sorted(os.listdir(run / FOLDER)):
            if not name.startswith("."):
                with contextlib.suppress(OSError):
                    (run / FOLDER / name).unlink()
                    taken.append(name)
    return taken
