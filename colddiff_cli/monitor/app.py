"""The dashboard: four panes over run directories."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.text import Text
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Footer, Static

from colddiff_cli.console.terminal_images import Drawing
from colddiff_cli.monitor.data.metrics_history import MetricsHistory
from colddiff_cli.monitor.data.requests import PendingRequests
from colddiff_cli.monitor.data.run_state import RunState, WallClock
from colddiff_cli.monitor.panes.curves import CurvesPane
from colddiff_cli.monitor.panes.dialogs import ConfirmDialog, HelpDialog
from colddiff_cli.monitor.panes.pictures import PicturesPane
from colddiff_cli.monitor.panes.runs import RunsPane
from colddiff_cli.monitor.panes.status import StatusPane
from colddiff_cli.monitor.panes.text import LiveText
from colddiff_cli.monitor.render import text as words
from colddiff_core import runs
from colddiff_core.errors import ColddiffError

POLL = 1.0  # seconds between looks at the files
SOON = 0.1  # the same, while a trainer has been asked for something
RESCAN = 4  # polls between looks for new runs, and readings of the machine
SLICE, GAP = 0.03, 0.02  # seconds of reading at a time, and between
OTHERS = 16  # runs polled at a time that are not looked at
PANES = {"1": ("runs", "Runs"), "2": ("curves", "Curves"), "3": ("pictures", "Pictures"), "4": ("status", "Status")}
TURNS = ("pause", "resume")  # one answer must come before the other is asked for
Severity = Literal["information", "warning", "error"]
WIDE, HIGH = 110, 30  # cells from which all panes are shown at once


class Monitor(App[None]):
    """Watches runs: those given, or all under a root as they come."""

    CSS_PATH = "monitor.tcss"
    TITLE = "colddiff monitor"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "Close", key_display="q"),
        Binding("question_mark", "help", "Keys", key_display="?"),
        *[Binding(key, f"pane('{name}')", label, show=False) for key, (name, label) in PANES.items()],
        Binding("f", "solo", "Full"),
        Binding("p", "pause", "Pause"),
        Binding("t", "ask('sample')", "Sample"),
        Binding("c", "ask('checkpoint')", "Save"),
        Binding("x", "stop_training", "Stop"),
        Binding("d", "theme", show=False),
    ]

    def __init__(
        self,
        root: Path,
        names: Sequence[Path] = (),
        *,
        pattern: str = "*",
        is_light: bool = False,
        drawing: Drawing,
        machine: Any = None,
        clock: WallClock | None = None,
    ) -> None:
        super().__init__()
        self.root, self.named = root, list(names)
        self.clock = clock or WallClock()
        self.watched: dict[Path, RunState] = {}
        self.current: RunState | None = None
        self.desk = PendingRequests()
        self.is_solo = False
        self.pane = "curves"
        self._is_light, self._machine = is_light, machine
        self._readings: list[tuple[str, str]] = []
        self._polls = 0
        self._is_reading = False
        self._others: list[RunState] = []
        # Kept by name: a query looks at the screen on top, which may be the help.
        self._headline, self._tabs, self._body = LiveText(id="headline"), Static(id="tabs"), Container(id="body")
        self.runs_pane, self.curves_pane, self.status_pane = RunsPane(pattern), CurvesPane(), StatusPane()
        self.pictures_pane = PicturesPane(drawing)
        self.panes = {
            str(pane.id): pane for pane in (self.runs_pane, self.curves_pane, self.status_pane, self.pictures_pane)
        }

    def compose(self) -> ComposeResult:
        yield self._headline
        yield self._tabs
        with self._body:
            yield from self.panes.values()
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.theme = "textual-light" if self._is_light else "textual-dark"
        self._scan()
        self._show()
        self.action_pane("curves")
        self.set_interval(POLL, self._poll)
        self.call_after_refresh(gc.enable)

    def on_resize(self, event: events.Resize) -> None:
        self._arrange(event.size.width, event.size.height)

    def _arrange(self, width: int, height: int) -> None:
        """Show all panes where they have room, else one."""
        is_solo = self.is_solo or width < WIDE or height < HIGH
        self._body.set_class(is_solo, "solo")
        self._tabs.display = is_solo and not self.is_solo
        for name, pane in self.panes.items():
            pane.set_class(name == self.pane, "active")
        tabs = [
            f"[{'reverse ' if name == self.pane else ''}@click=app.pane('{name}')] {key} {label} [/]"
            for key, (name, label) in PANES.items()
        ]
        self._tabs.update(" ".join(tabs))

    def _scan(self) -> None:
        """Take up runs that have come; the newest is looked at until another is chosen."""
        for path in self.named or runs.listed(self.root):
            if path not in self.watched:
                self.watched[path] = RunState(runs.Run(path), self.clock)
                self._look(self.watched[path])
        if self.current is None:
            matching = self.runs_pane.matching(self.watched.values())
            self.current = max(matching, key=lambda watched: runs.last_written(watched.run.path), default=None)

    @staticmethod
    def _look(watched: RunState) -> None:
        """Read what is new of a run; whatever its files hold, the dashboard goes on."""
        try:
            watched.poll()
        except Exception as error:
            watched.note("reading", f"cannot be read: {type(error).__name__}: {error}")

    def _shown(self) -> list[RunState]:
        """Return the run that is looked at, and those laid over it."""
        marked = self.runs_pane.marked
        over = [w for w in self.watched.values() if str(w.run.path) in marked and w is not self.current]
        return [*([self.current] if self.current else []), *over]

    def _poll(self) -> None:
        self._polls += 1
        if self._polls % RESCAN == 0:
            self._scan()
        elif self._polls % RESCAN == 1 and self._machine is not None:
            self._readings = self._machine.read(self.current.run.holder() if self.current else None)
        shown = self._shown()
        if not self._others:
            self._others = [watched for watched in self.watched.values() if watched not in shown]
        asked = [request.watched for request in self.desk.open]
        for watched in {id(w): w for w in [*shown, *asked, *self._others[:OTHERS]]}.values():
            self._look(watched)
        del self._others[:OTHERS]
        for outcome in self.desk.settle():
            self._tell(outcome.text, severity="information" if outcome.is_good else "warning")
        self._show()

    def _await(self) -> None:
        """Look often until the trainer has answered."""
        self._poll()
        if self.desk.is_waiting:
            self.set_timer(SOON, self._await)

    def _show(self) -> None:
        """Bring every pane up to date."""
        if not self.is_running:  # being closed: the panes have lost their parts, and a timer may still go off
            return
        shown = self._shown()
        has_more = False
        for watched in shown:
            if watched.history is None:
                watched.history = MetricsHistory(watched.run.path / "metrics.jsonl")
            watched.history.advance(SLICE)
            has_more = has_more or watched.history.share < 1
        waiting = self.desk.waiting(self.current) if self.current else []
        self.runs_pane.show(self.watched.values(), self.current)
        self.curves_pane.show(shown)
        self.status_pane.show(self.current, self._readings, waiting)
        self.pictures_pane.show(self.current)
        self._head()
        if has_more and not self._is_reading:
            self._is_reading = True
            self.set_timer(GAP, self._read_on)

    def _read_on(self) -> None:
        """Read more of a long history, in slices that leave time for keys."""
        pending = [w.history for w in self._shown() if w.history is not None and w.history.share < 1]
        for history in pending:
            history.advance(SLICE)
        self._is_reading = any(history.share < 1 for history in pending)
        if self._is_reading:
            self.set_timer(GAP, self._read_on)

    def _head(self) -> None:
        line = (
            words.headline(self.current, self.size.width - 2) if self.current else Text(f"no runs in {self.root}/ yet")
        )
        self._headline.tell(line)

    @on(RunsPane.Chosen)
    def _chosen(self, message: RunsPane.Chosen) -> None:
        if message.watched is not None:
            self._look(message.watched)
            self.current = message.watched
        self._show()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        pane = next((node for node in event.widget.ancestors_with_self if node.has_class("pane")), None)
        if pane is not None and pane.id and pane.id != self.pane:
            self.pane = pane.id
            self._arrange(*self.size)

    def action_pane(self, name: str) -> None:
        """Go to a pane."""
        self.pane = name
        self._arrange(*self.size)
        self.panes[name].focus()

    def action_solo(self) -> None:
        """Show the pane in hand over the whole screen, or all of them again."""
        self.is_solo = not self.is_solo
        self._arrange(*self.size)

    def action_theme(self) -> None:
        """Change between dark and light."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"
        self.curves_pane.redraw()

    def action_help(self) -> None:
        """Show all the keys."""
        self.push_screen(HelpDialog())

    def action_pause(self) -> None:
        """Ask the trainer to pause, or to go on."""
        if self.current is not None:
            self.action_ask("resume" if self.current.state == "paused" else "pause")

    def action_stop_training(self) -> None:
        """Ask the trainer to stop, once the user has said so twice."""
        watched = self.current
        if watched is None or not self._is_there(watched, "stop"):
            return

        def stop(is_sure: bool | None) -> None:
            if is_sure:
                self._ask(watched, "stop")

        self.push_screen(
            ConfirmDialog(
                f"Stop {words.harmless(Text(watched.name)).plain}? It saves a checkpoint first; --resume goes on."
            ),
            stop,
        )

    def action_ask(self, word: str) -> None:
        """Ask the trainer of the run that is looked at for something."""
        if self.current is None:
            return
        asked = self.desk.waiting(self.current)
        if word in asked or (word in TURNS and any(turn in asked for turn in TURNS)):
            self._tell(f"{self.current.name}: already asked for {', '.join(asked)}; no answer yet.", "warning")
        elif self._is_there(self.current, word):
            self._ask(self.current, word)

    def _is_there(self, watched: RunState, word: str) -> bool:
        self._look(watched)
        if watched.has_trainer:
            return True
        reason = f" ({watched.reason})" if watched.reason else ""
        self._tell(f"No trainer to ask for {word}: {watched.name} is {watched.state}{reason}.", "warning")
        return False

    def _tell(self, text: str, severity: Severity) -> None:
        self.notify(words.harmless(Text(text)).plain, severity=severity, markup=False)

    def _ask(self, watched: RunState, word: str) -> None:
        try:
            self.desk.ask(watched, word)
            self.set_timer(SOON, self._await)
        except ColddiffError as error:
            self._tell(error.what, severity="error")
        self._show()
