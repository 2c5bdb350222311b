"""Requests to a run's trainer: files in control/, each answered by an event of the trainer's own.

A reader makes an empty file `control/<request>`, with anything after a dot to tell it from others:
`control/pause.4f2a`. The trainer removes it after the step in hand, does what it says and names it under
`answers` in the event that tells so. What is asked is never assumed to be done.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from colddiff_core.errors import UsageError
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
    """Ask the trainer of the run at `run` for something; returns the name that its answer will carry.

    Raises UsageError for an unknown request, MachineError where the run cannot be written to.
    """
    if request not in ANSWERS:
        raise UsageError(f"No such request: {request}.", nearest(request, ANSWERS))
    name = f"{request}.{uuid.uuid4().hex[:8]}"
    path = run / FOLDER / name
    with refusals(path):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return name


def withdraw(run: Path, name: str) -> None:
    """Take back a request that the trainer has not taken yet."""
    (run / FOLDER / name).unlink(missing_ok=True)


def word(name: str) -> str:
    """Return what the request file of that name asks for."""
    return name.partition(".")[0]


def take(run: Path) -> list[str]:
    """Return the names of all requests and remove them, in alphabetical order.

    Hidden files are left, and so is what cannot be removed: nothing that lies there may harm the training.
    """
    taken = []
    with contextlib.suppress(OSError):  # an older run without the folder, or someone cleaned up
        # Cheap enough for every step; a folder's time of change is too coarse to go by.
        for name in sorted(os.listdir(run / FOLDER)):
            if not name.startswith("."):
                with contextlib.suppress(OSError):
                    (run / FOLDER / name).unlink()
                    taken.append(name)
    return taken
