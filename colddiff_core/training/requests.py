"""Requests from readers of a run, such as `colddiff monitor`: files in control/, answered by events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from colddiff_core.errors import reason
from colddiff_core.runs import FollowerRun, RunWriter, control
from colddiff_core.training.log_meter import TrainingLog

Action = Callable[[dict[str, Any]], None]  # called with the part of an event that names the request


class RequestHandler:
    """Answers the requests that arrive after one step, and remembers when a pause began.

    Args:
        actions: What to do for "sample", "checkpoint" and "stop".
    """

    def __init__(self, run: RunWriter | FollowerRun, step: int, actions: Mapping[str, Action]) -> None:
        self.run, self.step, self.actions = run, step, actions
        self.paused_at: float | None = None

    def answer(self, meter: TrainingLog) -> Iterator[bool]:
        """Answer all waiting requests; after each pause or resume, yield whether the run is paused."""
        for name in self.run.requests():
            word, answer = control.word(name), {"answers": [name]}
            if word == "pause":
                self.paused_at = self.paused_at or time.monotonic()
                self.run.event("paused", step=self.step, **answer)
                yield True
            elif word == "resume":
                meter.skip_since(self.paused_at)
                self.paused_at = None
                self.run.event("resumed", step=self.step, **answer)
                yield False
            elif word == "stop":
                self.actions[word](answer)
            elif word in self.actions:
                self._try(word, answer)
            else:
                known = ", ".join(control.ANSWERS)
                self.run.event("warning", message=f"control/{name} is not a request; known: {known}")

    def _try(self, word: str, answer: dict[str, Any]) -> None:
        """Sample or save; a failure is logged and training continues."""
        try:
            self.actions[word](answer)
        except Exception as error:
            self.run.event("warning", step=self.step, message=f"the requested {word} failed: {reason(error)}", **answer)
