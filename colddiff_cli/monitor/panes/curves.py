"""The curves pane: one quantity of the current run and of the overlaid ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget

from colddiff_cli.console import chart
from colddiff_cli.monitor.data import metrics_history
from colddiff_cli.monitor.data.run_state import RunState
from colddiff_cli.monitor.panes.text import LiveText, set_titles
from colddiff_core.text import one_line

TITLES = {
    "loss": "loss",
    "loss_by_severity": "loss by severity",
    "grad_norm": "gradient norm",
    "images_per_second": "images/s",
    "lr": "learning rate",
}
ORDER = tuple(TITLES)  # of the quantities; others that are logged come after
SMOOTHING = (0.0, 0.6, 0.9, 0.99)
DARK = ("#5fd7ff", "#ffaf5f", "#87d787", "#ff87af", "#d7d75f", "#af87ff", "#5fafaf", "#ff5f5f")
LIGHT = ("#005faf", "#af5f00", "#00875f", "#af0057", "#878700", "#5f00af", "#005f5f", "#af0000")
# A growing curve is redrawn only after this many times what the last drawing took, so that it costs little CPU.
REDRAW_FACTOR = 300.0
MIN_REDRAW_SECONDS, MAX_REDRAW_SECONDS = 1.5, 4.0
AVERAGE_MEMORY = 5  # times 1 / (1 - weight) lines, after which an average has forgotten
MIN_VIEW_STEPS = 2.0


def quantities(runs: Sequence[RunState]) -> list[str]:
    """Return the quantities that the runs log, the usual ones first; the entries of a list are one quantity."""
    logged: dict[str, None] = {}
    for run in runs:
        for name in run.history.series() if run.history else []:
            logged.setdefault(metrics_history.quantity(name))
    return [name for name in ORDER if name in logged] + [name for name in logged if name not in ORDER]


class Plot(Widget, can_focus=True):
    """The chart, which follows the mouse."""

    def __init__(self) -> None:
        super().__init__(id="plot")
        self.text = Text()

    def render(self) -> Text:
        return self.text

    @property
    def pane(self) -> CurvesPane:
        assert isinstance(self.parent, CurvesPane)
        return self.parent

    def on_resize(self) -> None:
        self.pane.redraw()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        cells = self.size.width - chart.AXIS
        if cells > 0 and event.x >= chart.AXIS:
            self.pane.move_cursor(self.pane.view.x_at(event.x - chart.AXIS, cells))

    def on_leave(self) -> None:
        self.pane.move_cursor(None)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.pane.action_zoom(0.5)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.pane.action_zoom(2.0)


class CurvesPane(Vertical):
    """Loss and other logged quantities over the steps."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "quantity(1)", "More"),
        Binding("M", "quantity(-1)", show=False),
        Binding("l", "log", "Log"),
        Binding("s", "smooth", "Smooth"),
        Binding("plus,equals_sign", "zoom(0.5)", "Zoom", key_display="+"),
        Binding("minus", "zoom(2.0)", show=False),
        Binding("left", "pan(-1)", show=False),
        Binding("right", "pan(1)", show=False),
        Binding("left_square_bracket", "cursor(-1)", show=False),
        Binding("right_square_bracket", "cursor(1)", show=False),
        Binding("escape", "no_cursor", show=False),
        Binding("0", "everything", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(id="curves", classes="pane")
        self.border_title = "2 Curves"
        self.quantity = "loss"
        self.is_log = True
        self.weight = 0.0
        self.cursor: float | None = None
        self.window: tuple[float, float] | None = None  # first and last step in view; None for all
        self.runs: list[RunState] = []
        self._shown: tuple[tuple[int, float], ...] = ()  # lines and share read of each run when last drawn
        self._drawn_at = self._draw_seconds = 0.0

    def compose(self) -> ComposeResult:
        yield LiveText(id="legend")
        yield Plot()

    def focus(self, scroll_visible: bool = True) -> CurvesPane:
        self.query_one(Plot).focus(scroll_visible)
        return self

    def show(self, runs: Sequence[RunState]) -> None:
        """Show runs, the current one first; redraws only if there is new data."""
        old_runs, self.runs = self.runs, list(runs)
        if self.window and not (self.window[0] < self.whole[1] and self.window[1] > self.whole[0]):
            self.window = None  # it shows steps of another run
        now = tuple((run.history.lines, run.history.share) for run in runs if run.history)
        pause = min(max(REDRAW_FACTOR * self._draw_seconds, MIN_REDRAW_SECONDS), MAX_REDRAW_SECONDS)
        is_due = time.perf_counter() - self._drawn_at > pause
        if self.runs != old_runs or (now != self._shown and is_due):
            self._shown = now
            self.redraw()

    @property
    def whole(self) -> tuple[float, float]:
        """First and last step of all runs shown."""
        spans = [run.history.span() for run in self.runs if run.history and run.history.bins]
        first, last = min((span[0] for span in spans), default=0), max((span[1] for span in spans), default=1)
        return float(min(first, last - 1)), float(last)

    @property
    def view(self) -> chart.View:
        """The part of the chart in view."""
        first, last = self.window or self.whole
        return chart.View(first, last, self.is_log)

    def redraw(self) -> None:
        """Draw the chart and the legend."""
        plot = self.query_one(Plot)
        if not plot.size.width:
            return
        began = time.process_time()  # leaves out the time that a trainer on the same cores takes
        view, series = self.view, self._series()
        lines, faint = [], []
        for label, points, style in series:
            if self.weight:
                faint.append(chart.Line(points, f"{style} dim"))
                points = metrics_history.smoothed(points, self.weight)  # noqa: PLW2901
            lines.append(chart.Line(points, style, label.partition(" ")[0] if len(series) > 1 else ""))
        plot.text = chart.draw([*faint, *lines], view, plot.size.width, plot.size.height, cursor=self.cursor)
        plot.refresh()
        self.query_one(LiveText).set_text(self._legend(series, lines, view))
        notes = ["log" if self.is_log else "linear"] + ([f"smoothed {self.weight:g}"] if self.weight else [])
        title = TITLES.get(self.quantity, self.quantity)
        unread = [run.history.share for run in self.runs if run.history and run.history.share < 1]
        notes += [f"{min(unread):.0%} read"] if unread else []
        set_titles(self, title=f"2 Curves: {title}", subtitle=", ".join(notes))
        self._drawn_at, self._draw_seconds = time.perf_counter(), time.process_time() - began

    def _series(self) -> list[tuple[str, list[metrics_history.MetricsPoint], str]]:
        """Return label, points and style of each line."""
        colors = DARK if self.app.current_theme.dark else LIGHT
        series = []
        view = self.view
        for number, run in enumerate(self.runs):
            if run.history is None:
                continue
            first, last = run.history.span()
            # The average starts before the view, so that zooming does not change it.
            lines = AVERAGE_MEMORY / (1 - self.weight) if self.weight else 0
            margin = lines * (last - first) / max(1, run.history.lines)
            bins = run.history.between(view.first - margin, view.last)
            names = [name for name in run.history.series() if metrics_history.quantity(name) == self.quantity]
            count = max(map(metrics_history.band, names), default=0)
            for name in names:
                band = metrics_history.band(name)
                is_alone = len(self.runs) == 1
                parts = [run.name] if not band or not is_alone else []
                if band:
                    parts.append(f"t ≤ {band / count:.2g} T" if self.quantity == "loss_by_severity" else f"/{band}")
                color = colors[(band - 1 if band and is_alone else number) % len(colors)]
                series.append((" ".join([str(band or number + 1), *parts]), metrics_history.points(bins, name), color))
        return series

    def _legend(
        self,
        series: Sequence[tuple[str, list[metrics_history.MetricsPoint], str]],
        lines: Sequence[chart.Line],
        view: chart.View,
    ) -> Text:
        """Return the name of each line with its value at the cursor, or its newest value."""
        x = view.last if self.cursor is None else self.cursor
        parts = []
        step: int | None = None  # of the current run, which comes first
        for (label, points, style), line in zip(series, lines, strict=True):
            raw, drawn = chart.nearest(points, x), chart.nearest(line.points, x)
            text = Text.assemble((one_line(label), style))
            if self.cursor is not None and points and not points[0].first <= x <= points[-1].last:
                text.append(" -")
            elif raw is not None and drawn is not None:
                step = step or raw.last
                text.append(f" {chart.short(drawn.mean)}", style="bold")
                if raw.high > raw.low:
                    text.append(f" ({chart.short(raw.low)} to {chart.short(raw.high)})", style="dim")
                elif self.weight:
                    text.append(f" (raw {chart.short(raw.mean)})", style="dim")
            parts.append(text)
        head = [Text(f"step {step:,}", style="bold" if self.cursor is not None else "dim")] if step is not None else []
        return Text("   ").join([*head, *parts])

    def move_cursor(self, step: float | None) -> None:
        """Set the cursor to a step, or hide it with None."""
        if step != self.cursor:
            self.cursor = step
            self.redraw()

    def action_quantity(self, by: int) -> None:
        """Show another quantity."""
        logged = quantities(self.runs)
        if logged:
            index = logged.index(self.quantity) if self.quantity in logged else -1
            self.quantity = logged[(index + by) % len(logged)]
            self.redraw()

    def action_log(self) -> None:
        """Switch between linear and log scale."""
        self.is_log = not self.is_log
        self.redraw()

    def action_smooth(self) -> None:
        """Switch to the next smoothing."""
        self.weight = SMOOTHING[(SMOOTHING.index(self.weight) + 1) % len(SMOOTHING)]
        self.redraw()

    def action_zoom(self, factor: float) -> None:
        """Zoom in or out around the cursor, or around the right edge if there is none."""
        (first, last), (low, high) = self.window or self.whole, self.whole
        width = max(MIN_VIEW_STEPS, (last - first) * factor)
        if width >= high - low:
            self.window = None
        else:
            share = 1.0 if self.cursor is None else (self.cursor - first) / max(last - first, 1e-9)
            share = min(max(share, 0.0), 1.0)
            middle = first + share * (last - first)
            self._set_window(middle - share * width, width)
        self.redraw()

    def action_pan(self, by: int) -> None:
        """Move the view by a quarter of its width."""
        if self.window is not None:
            width = self.window[1] - self.window[0]
            self._set_window(self.window[0] + by * width / 4, width)
            self.redraw()

    def _set_window(self, first: float, width: float) -> None:
        low, high = self.whole
        first = min(max(first, low), max(low, high - width))
        self.window = (first, first + width)

    def action_everything(self) -> None:
        """Show all steps."""
        self.window = None
        self.redraw()

    def action_cursor(self, by: int) -> None:
        """Move the cursor by one cell."""
        view, cells = self.view, max(1, self.query_one(Plot).size.width - chart.AXIS)
        gap = (view.last - view.first) / cells
        start = view.last if self.cursor is None else self.cursor
        self.move_cursor(min(max(start + by * gap, view.first), view.last))

    def action_no_cursor(self) -> None:
        """Hide the cursor."""
        self.move_cursor(None)
