"""Requests to trainers. One counts as done when the trainer's own event says so."""

from __future__ import annotations

import contextlib
import dataclasses

from colddiff_cli.monitor.data.run_state import RunState
from colddiff_core.runs import BEGINNINGS, control

LATE_AFTER = 10.0  # seconds without an answer before the user is warned


@dataclasses.dataclass
class ControlRequest:
    """A request to the trainer of a run; `name` is its file in control/."""

    run: RunState
    name: str
    sent: float
    events_before: int
    is_late: bool = False

    @property
    def word(self) -> str:
        return control.word(self.name)


@dataclasses.dataclass(frozen=True)
class RequestOutcome:
    """The result of a request, as a message for the user."""

    text: str
    is_success: bool


class PendingRequests:
    """Requests that have no answer yet."""

    def __init__(self) -> None:
        self.pending: list[ControlRequest] = []

    def ask(self, run: RunState, word: str) -> ControlRequest:
        """Send a request to the trainer of a run.

        Raises:
            MachineError: The run's folder cannot be written to.
        """
        request = ControlRequest(run, control.ask(run.path, word), run.clock.monotonic(), len(run.events))
        self.pending.append(request)
        return request

    @property
    def is_waiting(self) -> bool:
        """Whether an answer may come at any moment."""
        return any(not request.is_late for request in self.pending)

    def waiting(self, run: RunState) -> list[str]:
        """Return the requests that a run's trainer has not answered yet."""
        return [request.word for request in self.pending if request.run is run]

    def settle(self) -> list[RequestOutcome]:
        """Return the outcomes since the last call, and drop the requests that are settled."""
        outcomes = []
        for request in list(self.pending):
            outcome = self._outcome(request)
            if outcome is not None:
                outcomes.append(outcome)
                if not request.is_late:
                    self.pending.remove(request)
                    with contextlib.suppress(OSError):
                        control.withdraw(request.run.path, request.name)
        return outcomes

    def _outcome(self, request: ControlRequest) -> RequestOutcome | None:
        run = request.run
        is_replaced = False  # a new trainer discards the requests to the old one
        for event in run.events[request.events_before :]:
            answers = event.get("answers")
            if isinstance(answers, list) and request.name in answers:
                request.is_late = False
                if event["event"] == "warning":
                    return RequestOutcome(f"{run.name}: {event.get('message')}", False)
                return RequestOutcome(f"{run.name}: {event['event']} at step {event.get('step', '?')}", True)
            is_replaced = is_replaced or (event["event"] in BEGINNINGS and not answers)
        if not run.has_trainer or is_replaced:
            request.is_late = False
            reason = "another trainer took over the run" if is_replaced else f"the run is {run.state}"
            return RequestOutcome(f"{run.name}: no answer to {request.word}; {reason}", False)
        if not request.is_late and run.clock.monotonic() - request.sent > LATE_AFTER:
            request.is_late = True
            return RequestOutcome(
                f"{run.name}: no answer to {request.word} yet; the current step may be a long one", False
            )
        return None
