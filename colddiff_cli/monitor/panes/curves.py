"""The curves: one quantity of the run that is looked at and of those laid over it."""

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
from colddiff_cli.monitor.panes.text import LiveText, entitle

TITLES = {
    "loss": "loss",
    "loss_by_severity": "loss by severity",
    "grad_norm": "gradient norm",
    "images_per_second": "images/s",
    "lr": "learning rate",
}
FIRST = tuple(TITLES)  # the order of quantities; what else is logged comes after
SMOOTHING = (0.0, 0.6, 0.9, 0.99)
DARK = ("#5fd7ff", "#ffaf5f", "#87d787", "#ff87af", "#d7d75f", "#af87ff", "#5fafaf", "#ff5f5f")
LIGHT = ("#005faf", "#af5f00", "#00875f", "#af0057", "#878700", "#5f00af", "#005f5f", "#af0000")
SPARE = 300.0  # times as long as a drawing took, growth alone has none drawn: it costs little of a core at any length
SHORTEST, LONGEST = 1.5, 4.0  # bounds of that, in seconds
MEMORY = 5  # times 1 / (1 - weight) lines, after which an average has forgotten
LEAST_STEPS = 2.0  # of a view


def quantities(runs: Sequence[RunState]) -> list[str]:
    """Return what the runs log, the usual first; the entries of a list are one quantity."""
    found: dict[str, None] = {}
    for watched in runs:
        for name in watched.history.series() if watched.history else []:
            found.setdefault(metrics_history.quantity(name))
    return [name for name in FIRST if name in found] + [name for name in found if name not in FIRST]


class Plot(Widget, can_focus=True):
    """A chart that the mouse can point at."""

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
            self.pane.point_at(self.pane.view.x_at(event.x - chart.AXIS, cells))

    def on_leave(self) -> None:
        self.pane.point_at(None)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.pane.action_zoom(0.5)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.pane.action_zoom(2.0)


class CurvesPane(Vertical):
    """Loss and whatever else is logged, over the steps."""

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
        self.window: tuple[float, float] | None = None  # steps in view; None for all
        self.runs: list[RunState] = []
        self._shown: tuple[tuple[int, float], ...] = ()  # lines and share read of each run, as drawn
        self._drawn = self._cost = 0.0  # when, and how long it took

    def compose(self) -> ComposeResult:
        yield LiveText(id="legend")
        yield Plot()

    def focus(self, scroll_visible: bool = True) -> CurvesPane:
        self.query_one(Plot).focus(scroll_visible)
        return self

    def show(self, runs: Sequence[RunState]) -> None:
        """Show these runs, the one that is looked at first; drawn anew where there is something new."""
        had, self.runs = self.runs, list(runs)
        if self.window and not (self.window[0] < self.whole[1] and self.window[1] > self.whole[0]):
            self.window = None  # of another run's steps
        now = tuple((watched.history.lines, watched.history.share) for watched in runs if watched.history)
        is_due = time.perf_counter() - self._drawn > min(max(SPARE * self._cost, SHORTEST), LONGEST)
        if self.runs != had or (now != self._shown and is_due):
            self._shown = now
            self.redraw()

    @property
    def whole(self) -> tuple[float, float]:
        """The steps of all the runs shown."""
        spans = [watched.history.span() for watched in self.runs if watched.history and watched.history.bins]
        first = min((span[0] for span in spans), default=0)
        return float(min(first, max((span[1] for span in spans), default=1) - 1)), float(
            max((span[1] for span in spans), default=1)
        )

    @property
    def view(self) -> chart.View:
        """What is in view."""
        first, last = self.window or self.whole
        return chart.View(first, last, self.is_log)

    def redraw(self) -> None:
        """Draw the chart and the legend anew."""
        plot = self.query_one(Plot)
        if not plot.size.width:
            return
        began = time.process_time()  # not what a trainer on the same cores takes
        view, series = self.view, self._series()
        lines, faint = [], []
        for label, points, style in series:
            if self.weight:
                faint.append(chart.Line(points, f"{style} dim"))
                points = metrics_history.smoothed(points, self.weight)  # noqa: PLW2901
            lines.append(chart.Line(points, style, label.partition(" ")[0] if len(series) > 1 else ""))
        plot.text = chart.draw([*faint, *lines], view, plot.size.width, plot.size.height, cursor=self.cursor)
        plot.refresh()
        self.query_one(LiveText).tell(self._legend(series, lines, view))
        how = ["log" if self.is_log else "linear"] + ([f"smoothed {self.weight:g}"] if self.weight else [])
        title = TITLES.get(self.quantity, self.quantity)
        unread = [watched.history.share for watched in self.runs if watched.history and watched.history.share < 1]
        how += [f"{min(unread):.0%} read"] if unread else []
        entitle(self, title=f"2 Curves: {title}", subtitle=", ".join(how))
        self._drawn, self._cost = time.perf_counter(), time.process_time() - began

    def _series(self) -> list[tuple[str, list[metrics_history.MetricsPoint], str]]:
        """Return label, points and style of each line to draw, newest steps of each run included."""
        colors = DARK if self.app.current_theme.dark else LIGHT
        found = []
        view = self.view
        for place, watched in enumerate(self.runs):
            if watched.history is None:
                continue
            first, last = watched.history.span()
            # An average remembers what came before the view.
            lines = MEMORY / (1 - self.weight) if self.weight else 0
            margin = lines * (last - first) / max(1, watched.history.lines)
            bins = watched.history.between(view.first - margin, view.last)
            names = [name for name in watched.history.series() if metrics_history.quantity(name) == self.quantity]
            count = max(map(metrics_history.band, names), default=0)
            for name in names:
                band = metrics_history.band(name)
                is_alone = len(self.runs) == 1
                parts = [watched.name] if not band or not is_alone else []
                if band:
                    parts.append(f"t to {band / count:.2g} T" if self.quantity == "loss_by_severity" else f"/{band}")
                color = colors[(band - 1 if band and is_alone else place) % len(colors)]
                found.append((" ".join([str(band or place + 1), *parts]), metrics_history.points(bins, name), color))
        return found

    def _legend(
        self,
        series: Sequence[tuple[str, list[metrics_history.MetricsPoint], str]],
        lines: Sequence[chart.Line],
        view: chart.View,
    ) -> Text:
        """Return the names of the lines with their values under the cursor, else the newest ones."""
        at = view.last if self.cursor is None else self.cursor
        parts = []
        step: int | None = None  # of the run that is looked at, which comes first
        for (label, points, style), line in zip(series, lines, strict=True):
            raw, drawn = chart.nearest(points, at), chart.nearest(line.points, at)
            text = Text.assemble((label, style))
            if self.cursor is not None and points and not points[0].first <= at <= points[-1].last:
                text.append(" -")
            elif raw is not None and drawn is not None:
                step = step or raw.last
                text.append(f" {chart.short(drawn.mean)}", style="bold")
                if raw.high > raw.low:
                    text.append(f" ({chart.short(raw.low)} to {chart.short(raw.high)})", style="dim")
                elif self.weight:
                    text.append(f" (unsmoothed {chart.short(raw.mean)})", style="dim")
            parts.append(text)
        head = [Text(f"step {step:,}", style="bold" if self.cursor is not None else "dim")] if step is not None else []
        return Text("   ").join([*head, *parts])

    def point_at(self, step: float | None) -> None:
        """Set the cursor."""
        if step != self.cursor:
            self.cursor = step
            self.redraw()

    def action_quantity(self, by: int) -> None:
        """Show another quantity."""
        known = quantities(self.runs)
        if known:
            place = known.index(self.quantity) if self.quantity in known else -1
            self.quantity = known[(place + by) % len(known)]
            self.redraw()

    def action_log(self) -> None:
        """Change between linear and logarithmic."""
        self.is_log = not self.is_log
        self.redraw()

    def action_smooth(self) -> None:
        """Go on to the next smoothing."""
        self.weight = SMOOTHING[(SMOOTHING.index(self.weight) + 1) % len(SMOOTHING)]
        self.redraw()

    def action_zoom(self, factor: float) -> None:
        """Show fewer steps, or more of them: about the cursor, else about the newest in view."""
        (first, last), (low, high) = self.window or self.whole, self.whole
        width = max(LEAST_STEPS, (last - first) * factor)
        if width >= high - low:
            self.window = None
        else:
            share = 1.0 if self.cursor is None else (self.cursor - first) / max(last - first, 1e-9)
            share = min(max(share, 0.0), 1.0)
            middle = first + share * (last - first)
            self._see(middle - share * width, width)
        self.redraw()

    def action_pan(self, by: int) -> None:
        """Move along the steps by a quarter of the view."""
        if self.window is not None:
            width = self.window[1] - self.window[0]
            self._see(self.window[0] + by * width / 4, width)
            self.redraw()

    def _see(self, first: float, width: float) -> None:
        low, high = self.whole
        first = min(max(first, low), max(low, high - width))
        self.window = (first, first + width)

    def action_everything(self) -> None:
        """Show all steps."""
        self.window = None
        self.redraw()

    def action_cursor(self, by: int) -> None:
        """Move the cursor by a cell."""
        view, cells = self.view, max(1, self.query_one(Plot).size.width - chart.AXIS)
        gap = (view.last - view.first) / cells
        start = view.last if self.cursor is None else self.cursor
        self.point_at(min(max(start + by * gap, view.first), view.last))

    def action_no_cursor(self) -> None:
        """Take the cursor away."""
        self.point_at(None)
