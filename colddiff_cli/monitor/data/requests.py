"""Requests to trainers that wait for their answer: an event of the trainer's own, never our assumption."""

from __future__ import annotations

import contextlib
import dataclasses

from colddiff_cli.monitor.data.run_state import RunState
from colddiff_core.runs import BEGINNINGS, control

LONG = 10.0  # seconds after which a request without an answer is told of


@dataclasses.dataclass
class ControlRequest:
    """Something that a trainer was asked for."""

    watched: RunState
    name: str
    asked: float
    after: int  # events that were there before
    is_late: bool = False

    @property
    def word(self) -> str:
        return control.word(self.name)


@dataclasses.dataclass(frozen=True)
class RequestOutcome:
    """What became of a request, in the user's words."""

    text: str
    is_good: bool


class PendingRequests:
    """The requests that are out."""

    def __init__(self) -> None:
        self.open: list[ControlRequest] = []

    def ask(self, watched: RunState, word: str) -> ControlRequest:
        """Ask the trainer of a run; raises MachineError where the run's folder cannot be written to."""
        request = ControlRequest(
            watched, control.ask(watched.run.path, word), watched.clock.ticking(), len(watched.events)
        )
        self.open.append(request)
        return request

    @property
    def is_waiting(self) -> bool:
        """Whether an answer may come any moment."""
        return any(not request.is_late for request in self.open)

    def waiting(self, watched: RunState) -> list[str]:
        """Return what a run's trainer was asked for and has not answered yet."""
        return [request.word for request in self.open if request.watched is watched]

    def settle(self) -> list[RequestOutcome]:
        """Return what became of requests since the last call."""
        outcomes = []
        for request in list(self.open):
            outcome = self._outcome(request)
            if outcome is not None:
                outcomes.append(outcome)
                if not request.is_late:
                    self.open.remove(request)
                    with contextlib.suppress(OSError):
                        control.withdraw(request.watched.run.path, request.name)
        return outcomes

    def _outcome(self, request: ControlRequest) -> RequestOutcome | None:
        watched = request.watched
        is_another = False  # trainer, who throws away what its predecessor was asked
        for event in watched.events[request.after :]:
            answers = event.get("answers")
            if isinstance(answers, list) and request.name in answers:
                request.is_late = False
                if event["event"] == "warning":
                    return RequestOutcome(f"{watched.name}: {event.get('message')}", False)
                return RequestOutcome(f"{watched.name}: {event['event']} at step {event.get('step', '?')}", True)
            is_another = is_another or (event["event"] in BEGINNINGS and not answers)
        if not watched.has_trainer or is_another:
            request.is_late = False
            why = "another trainer has the run now" if is_another else f"the run is {watched.state}"
            return RequestOutcome(f"{watched.name}: no answer to {request.word}; {why}", False)
        if not request.is_late and watched.clock.ticking() - request.asked > LONG:
            request.is_late = True
            return RequestOutcome(
                f"{watched.name}: still no answer to {request.word}; the step in hand may be long", False
            )
        return None
