"""The dashboard app: four panes that follow run directories."""

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
from textual.widgets import Static

from colddiff_cli.console.terminal_images import ImageBackend
from colddiff_cli.monitor.data.metrics_history import MetricsHistory
from colddiff_cli.monitor.data.requests import PendingRequests
from colddiff_cli.monitor.data.run_state import RunState, WallClock
from colddiff_cli.monitor.panes.curves import CurvesPane
from colddiff_cli.monitor.panes.dialogs import ConfirmDialog, HelpDialog
from colddiff_cli.monitor.panes.pictures import PicturesPane
from colddiff_cli.monitor.panes.runs import RunsPane
from colddiff_cli.monitor.panes.status import StatusPane
from colddiff_cli.monitor.panes.text import LiveFooter, LiveText
from colddiff_cli.monitor.render.text import headline
from colddiff_core import runs
from colddiff_core.errors import ColddiffError
from colddiff_core.text import one_line

POLL_SECONDS = 1.0
ANSWER_POLL_SECONDS = 0.1  # while a trainer owes an answer
RESCAN_POLLS = 4  # polls between scans for new runs, and between machine readings
READ_SECONDS, READ_PAUSE_SECONDS = 0.03, 0.02  # slices of reading a long history, with time for keys in between
OTHERS_PER_POLL = 16  # runs that are not shown are polled in turns
PANES = {"1": ("runs", "Runs"), "2": ("curves", "Curves"), "3": ("pictures", "Pictures"), "4": ("status", "Status")}
EXCLUSIVE = ("pause", "resume")  # one must be answered before the other is sent
MIN_WIDTH, MIN_HEIGHT = 110, 30  # cells from which all panes are shown at once
Severity = Literal["information", "warning", "error"]


class Monitor(App[None]):
    """Watch the named runs, or every run under `root`, including new ones."""

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
        image_backend: ImageBackend,
        machine: Any = None,
        clock: WallClock | None = None,
    ) -> None:
        super().__init__()
        self.root, self.named = root, list(names)
        self.clock = clock or WallClock()
        self.runs: dict[Path, RunState] = {}
        self.current: RunState | None = None
        self.requests = PendingRequests()
        self.is_solo = False
        self.pane = "curves"
        self._is_light, self._machine = is_light, machine
        self._readings: list[tuple[str, str]] = []
        self._polls = 0
        self._is_reading = False
        self._others: list[RunState] = []
        # Kept as attributes: a query searches the top screen, which may be the help dialog.
        self._headline, self._tabs, self._body = LiveText(id="headline"), Static(id="tabs"), Container(id="body")
        self.runs_pane, self.curves_pane, self.status_pane = RunsPane(pattern), CurvesPane(), StatusPane()
        self.pictures_pane = PicturesPane(image_backend)
        self.panes = {
            str(pane.id): pane for pane in (self.runs_pane, self.curves_pane, self.status_pane, self.pictures_pane)
        }

    def compose(self) -> ComposeResult:
        yield self._headline
        yield self._tabs
        with self._body:
            yield from self.panes.values()
        yield LiveFooter()

    def on_mount(self) -> None:
        self.theme = "textual-light" if self._is_light else "textual-dark"
        self._scan()
        self._show()
        self.action_pane("curves")
        self.set_interval(POLL_SECONDS, self._poll)
        self.call_after_refresh(gc.enable)

    def on_resize(self, event: events.Resize) -> None:
        self._arrange(event.size.width, event.size.height)

    def _arrange(self, width: int, height: int) -> None:
        """Show all panes if there is room for them, else one."""
        is_solo = self.is_solo or width < MIN_WIDTH or height < MIN_HEIGHT
        self._body.set_class(is_solo, "solo")
        self._tabs.display = is_solo and not self.is_solo
        for name, pane in self.panes.items():
            pane.set_class(name == self.pane, "active")
        tabs = [
            f"[{'reverse ' if name == self.pane else ''}@click=app.pane('{name}')] {key} {label} [/]"
            for key, (name, label) in PANES.items()
        ]
        self._tabs.update(" ".join(tabs), layout=False)  # always one line

    def _scan(self) -> None:
        """Add new runs, and choose the newest if none is chosen."""
        for path in self.named or runs.listed(self.root):
            if path not in self.runs:
                self.runs[path] = RunState(runs.Run(path), self.clock)
                self._read(self.runs[path])
        if self.current is None:
            matching = self.runs_pane.matching(self.runs.values())
            self.current = max(matching, key=lambda run: runs.last_written(run.path), default=None)

    @staticmethod
    def _read(run: RunState) -> None:
        """Poll a run. The dashboard survives whatever its files hold."""
        try:
            run.poll()
        except Exception as error:
            run.note("reading", f"cannot be read: {type(error).__name__}: {error}")

    def _shown(self) -> list[RunState]:
        """Return the current run and the overlaid ones."""
        marked = self.runs_pane.marked
        overlaid = [run for run in self.runs.values() if str(run.path) in marked and run is not self.current]
        return [*([self.current] if self.current else []), *overlaid]

    def _poll(self) -> None:
        self._polls += 1
        if self._polls % RESCAN_POLLS == 0:
            self._scan()
        elif self._polls % RESCAN_POLLS == 1 and self._machine is not None:
            self._readings = self._machine.read(self.current.directory.holder() if self.current else None)
        shown = self._shown()
        if not self._others:
            self._others = [run for run in self.runs.values() if run not in shown]
        asked = [request.run for request in self.requests.pending]
        for run in dict.fromkeys([*shown, *asked, *self._others[:OTHERS_PER_POLL]]):
            self._read(run)
        del self._others[:OTHERS_PER_POLL]
        for outcome in self.requests.settle():
            self._notify(outcome.text, severity="information" if outcome.is_success else "warning")
        self._show()

    def _poll_for_answer(self) -> None:
        """Poll often until the trainer has answered."""
        self._poll()
        if self.requests.is_waiting:
            self.set_timer(ANSWER_POLL_SECONDS, self._poll_for_answer)

    def _show(self) -> None:
        """Update every pane."""
        if not self.is_running:  # closing: a timer may still fire after the panes are gone
            return
        shown = self._shown()
        has_more = False
        for run in shown:
            if run.history is None:
                run.history = MetricsHistory(run.path / "metrics.jsonl")
            run.history.advance(READ_SECONDS)
            has_more = has_more or run.history.share < 1
        waiting = self.requests.waiting(self.current) if self.current else []
        self.runs_pane.show(self.runs.values(), self.current)
        self.curves_pane.show(shown)
        self.status_pane.show(self.current, self._readings, waiting)
        self.pictures_pane.show(self.current)
        self._show_headline()
        if has_more and not self._is_reading:
            self._is_reading = True
            self.set_timer(READ_PAUSE_SECONDS, self._read_more)

    def _read_more(self) -> None:
        """Read more of a long history, in slices that leave time for keys."""
        pending = [run.history for run in self._shown() if run.history is not None and run.history.share < 1]
        for history in pending:
            history.advance(READ_SECONDS)
        self._is_reading = any(history.share < 1 for history in pending)
        if self._is_reading:
            self.set_timer(READ_PAUSE_SECONDS, self._read_more)

    def _show_headline(self) -> None:
        run = self.current
        line = headline(run, self.size.width - 2) if run else Text(f"no runs in {self.root}/ yet")
        self._headline.set_text(line)

    @on(RunsPane.Chosen)
    def _chosen(self, message: RunsPane.Chosen) -> None:
        if message.run is not None:
            self._read(message.run)
            self.current = message.run
        self._show()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        pane = next((node for node in event.widget.ancestors_with_self if node.has_class("pane")), None)
        if pane is not None and pane.id and pane.id != self.pane:
            self.pane = pane.id
            self._arrange(*self.size)

    def action_pane(self, name: str) -> None:
        """Focus a pane."""
        self.pane = name
        self._arrange(*self.size)
        self.panes[name].focus()

    def action_solo(self) -> None:
        """Show the current pane on the whole screen, or all panes again."""
        self.is_solo = not self.is_solo
        self._arrange(*self.size)

    def action_theme(self) -> None:
        """Switch between dark and light."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"
        self.curves_pane.redraw()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpDialog())

    def action_pause(self) -> None:
        """Ask the trainer to pause or resume."""
        if self.current is not None:
            self.action_ask("resume" if self.current.state == "paused" else "pause")

    def action_stop_training(self) -> None:
        """Ask the trainer to stop, after a confirmation."""
        run = self.current
        if run is None or not self._check_trainer(run, "stop"):
            return

        def stop(is_sure: bool | None) -> None:
            if is_sure:
                self._ask(run, "stop")

        name = one_line(run.name)
        self.push_screen(ConfirmDialog(f"Save a checkpoint and stop {name}? --resume continues it."), stop)

    def action_ask(self, word: str) -> None:
        """Send a request to the trainer of the current run."""
        if self.current is None:
            return
        asked = self.requests.waiting(self.current)
        if word in asked or (word in EXCLUSIVE and any(other in asked for other in EXCLUSIVE)):
            self._notify(f"{self.current.name}: already asked for {', '.join(asked)}; no answer yet.", "warning")
        elif self._check_trainer(self.current, word):
            self._ask(self.current, word)

    def _check_trainer(self, run: RunState, word: str) -> bool:
        """Return whether a run has a trainer to ask, with a warning to the user if not."""
        self._read(run)
        if run.has_trainer:
            return True
        reason = f" ({run.reason})" if run.reason else ""
        self._notify(f"No trainer to ask for {word}: {run.name} is {run.state}{reason}.", "warning")
        return False

    def _notify(self, text: str, severity: Severity) -> None:
        self.notify(one_line(text), severity=severity, markup=False)

    def _ask(self, run: RunState, word: str) -> None:
        try:
            self.requests.ask(run, word)
            self.set_timer(ANSWER_POLL_SECONDS, self._poll_for_answer)
        except ColddiffError as error:
            self._notify(error.what, severity="error")
        self._show()
