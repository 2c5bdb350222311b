"""The status: how the run stands, the machine under it, its events and its configuration."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll

from colddiff_cli.monitor.data.run_state import RunState
from colddiff_cli.monitor.panes.text import LiveText
from colddiff_cli.monitor.render import text as words


class StatusPane(VerticalScroll, can_focus=True):
    """All there is to know of the run that is looked at; what changes with every line stands apart."""

    def __init__(self) -> None:
        super().__init__(id="status", classes="pane")
        self.border_title = "4 Status"

    def compose(self) -> ComposeResult:
        yield LiveText(id="facts")
        yield LiveText(id="attention")
        yield LiveText(id="events")
        yield LiveText(id="configuration")

    def show(self, watched: RunState | None, machine: Iterable[tuple[str, str]], waiting: Iterable[str]) -> None:
        """Show that run as it stands now; `waiting` is what its trainer has not answered yet."""
        if watched is None:
            return
        asked = ", ".join(waiting)
        odd = [Text(f"\nasked the trainer: {asked} ...", style="yellow")] if asked else []
        if watched.oddities:
            odd.append(Text.assemble("\n", words.oddities(watched)))
        for name, text in (
            ("facts", words.pairs(words.facts(watched, machine))),
            ("attention", Text("\n").join(odd)),
            ("events", _under("Events", words.events(watched))),
            ("configuration", _under("Configuration", words.configuration(watched))),
        ):
            self.query_one(f"#{name}", LiveText).tell(text)


def _under(heading: str, text: Text) -> Text:
    return Text.assemble("\n", (f"{heading}\n", "bold underline"), text)
