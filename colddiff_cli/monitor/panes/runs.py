"""The runs pane: every run with its state, and the choice of which to show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import DataTable, Input

from colddiff_cli.monitor.data.run_state import RunState, is_named
from colddiff_cli.monitor.panes.text import set_titles
from colddiff_cli.monitor.render import text
from colddiff_core.text import one_line

MARK = "◆"
NAME_CELLS = 22
COLUMNS = {"mark": 2, "name": NAME_CELLS + 1, "state": 11, "done": 6, "reason": 80}  # cut at the edge of the pane


class RunsPane(Vertical):
    """Every run with its state and progress. The highlighted run is shown; marked runs are overlaid."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Overlay"),
        Binding("slash", "filter", "Filter"),
        Binding("escape", "unfilter", show=False),
    ]

    class Chosen(Message):
        """A run was chosen, or (None) the marked runs changed."""

        def __init__(self, run: RunState | None) -> None:
            super().__init__()
            self.run = run

    def __init__(self, pattern: str = "*") -> None:
        super().__init__(id="runs", classes="pane")
        self.border_title = "1 Runs"
        self.pattern = pattern
        self.marked: set[str] = set()
        self.runs: list[RunState] = []
        self.current: RunState | None = None
        self._shown: dict[str, tuple[object, ...]] = {}

    def compose(self) -> ComposeResult:
        yield Input(placeholder="filter by name, such as digits-*", id="filter", compact=True)
        yield DataTable(cursor_type="row", show_header=False, cell_padding=0)

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        for key, width in COLUMNS.items():
            table.add_column(key, key=key, width=width)
        self.query_one("#filter").display = False
        self.query_one("#filter", Input).cursor_blink = False  # saves bytes on a slow connection

    def focus(self, scroll_visible: bool = True) -> RunsPane:
        self.query_one(DataTable).focus(scroll_visible)
        return self

    def matching(self, runs: Iterable[RunState]) -> list[RunState]:
        """Return the runs that match the filter."""
        return [run for run in runs if is_named(run.name, self.pattern)]

    def show(self, runs: Iterable[RunState], current: RunState | None) -> None:
        """Update the list."""
        self.runs, self.current = list(runs), current
        matching = self.matching(self.runs)
        table = self.query_one(DataTable)
        keys = [str(run.path) for run in matching]
        if keys != list(self._shown):
            self._shown = {}
            table.clear()
            with self.prevent(DataTable.RowHighlighted):
                for key, run in zip(keys, matching, strict=True):
                    row = self._row(key, run)
                    table.add_row(*row, key=key)
                    self._shown[key] = row
                if current is not None and str(current.path) in keys:
                    table.move_cursor(row=keys.index(str(current.path)))
        for key, run in zip(keys, matching, strict=True):
            row = self._row(key, run)
            if row != self._shown[key]:
                for column, old, new in zip(COLUMNS, self._shown[key], row, strict=True):
                    if old != new:
                        table.update_cell(key, column, new)
                self._shown[key] = row
        hidden = len(self.runs) - len(matching)
        set_titles(self, subtitle=f"{self.pattern}: {hidden} hidden" if hidden else f"{len(self.runs)}")

    def _row(self, key: str, run: RunState) -> tuple[Text, ...]:
        name = run.name if len(run.name) <= NAME_CELLS else f"{run.name[: NAME_CELLS - 1]}…"
        done = f"{min(run.step / run.steps, 1):.0%}" if run.steps else ""
        mark = MARK if key in self.marked else " "
        return (
            Text(mark),
            Text(one_line(name)),
            text.state_label(run),
            Text(f"{done:>4}"),
            Text(one_line(run.reason), style="dim"),
        )

    @on(DataTable.RowHighlighted)
    @on(DataTable.RowSelected)
    def _highlight(self, event: DataTable.RowHighlighted | DataTable.RowSelected) -> None:
        key = event.row_key.value if event.row_key else None
        run = next((run for run in self.runs if str(run.path) == key), None)
        if run is not None:
            self.post_message(self.Chosen(run))

    def action_mark(self) -> None:
        """Overlay the highlighted run's curves, or remove them."""
        table = self.query_one(DataTable)
        if table.row_count:
            key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value or ""
            self.marked ^= {key}
            self.show(self.runs, self.current)
            self.post_message(self.Chosen(None))

    def action_filter(self) -> None:
        """Open the filter box."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.value = "" if self.pattern == "*" else self.pattern
        box.focus()

    def action_unfilter(self) -> None:
        """Show every run again."""
        self._filter("*")

    @on(Input.Changed, "#filter")
    def _typed(self, event: Input.Changed) -> None:
        self._apply(event.value)

    @on(Input.Submitted, "#filter")
    def _entered(self) -> None:
        self._filter(self.pattern)

    def _filter(self, pattern: str) -> None:
        box = self.query_one("#filter", Input)
        with self.prevent(Input.Changed):
            box.value = pattern
        box.display = False
        self._apply(pattern)
        self.focus()

    def _apply(self, pattern: str) -> None:
        """Apply a filter; if it hides the current run, choose the first one left."""
        self.pattern = pattern or "*"
        matching = self.matching(self.runs)
        if matching and self.current not in matching:
            self.current = matching[0]
            self.post_message(self.Chosen(self.current))
        self.show(self.runs, self.current)
