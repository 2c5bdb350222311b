"""The status pane: figures of the run, machine readings, events and configuration."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll

from colddiff_cli.monitor.data.run_state import RunState
from colddiff_cli.monitor.panes.text import LiveText
from colddiff_cli.monitor.render.text import aligned, configuration, event_lines, facts, problem_lines


class StatusPane(VerticalScroll, can_focus=True):
    """Everything about the current run. Parts that change at different rates are separate widgets."""

    def __init__(self) -> None:
        super().__init__(id="status", classes="pane")
        self.border_title = "4 Status"

    def compose(self) -> ComposeResult:
        yield LiveText(id="facts")
        yield LiveText(id="attention")
        yield LiveText(id="events")
        yield LiveText(id="configuration")

    def show(self, run: RunState | None, machine: Iterable[tuple[str, str]], waiting: Iterable[str]) -> None:
        """Show a run; `waiting` lists the requests that its trainer has not answered."""
        if run is None:
            return
        requests = ", ".join(waiting)
        attention = [Text(f"\nwaiting for the trainer: {requests} ...", style="yellow")] if requests else []
        if run.problems:
            attention.append(Text.assemble("\n", problem_lines(run)))
        for name, text in (
            ("facts", aligned(facts(run, machine))),
            ("attention", Text("\n").join(attention)),
            ("events", _section("Events", event_lines(run))),
            ("configuration", _section("Configuration", configuration(run))),
        ):
            self.query_one(f"#{name}", LiveText).set_text(text)


def _section(heading: str, text: Text) -> Text:
    return Text.assemble("\n", (f"{heading}\n", "bold underline"), text)
