"""The dashboard without a screen: one frame as text, and the state as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from colddiff_cli.console import chart
from colddiff_cli.monitor.data.metrics_history import MetricsHistory, points
from colddiff_cli.monitor.data.run_state import RunState
from colddiff_cli.monitor.render import text
from colddiff_core.text import one_line

CURVE_LINES = 14
MAX_EVENTS = 8
MAX_OTHERS = 20  # other runs listed


def render(current: RunState, runs: Sequence[RunState], width: int, height: int = 0) -> Text:
    """Return what the dashboard would show of a run, and one line for each of the others.

    Args:
        current: The run.
        runs: All of them.
        width: The cells of a line.
        height: The lines there are, 0 for any number: where they are too few, the chart is lower.
    """
    history = MetricsHistory(current.path / "metrics.jsonl")
    current.history = history
    history.advance(float("inf"))
    current.poll()
    parts = [text.headline(current, width)]
    parts.append(text.aligned(text.facts(current)))
    if current.problems:
        parts.append(text.problem_lines(current))
    if current.events:
        parts.append(text.event_lines(current, MAX_EVENTS))
    if current.newest_sheet:
        parts.append(Text(one_line(f"newest sheet: {current.directory.samples / current.newest_sheet}")))
    others = [run for run in runs if run is not current]
    if others:
        lines = [text.headline(run, width) for run in others[:MAX_OTHERS]]
        if len(others) > MAX_OTHERS:
            lines.append(Text(f"and {len(others) - MAX_OTHERS} more", style="dim"))
        parts.append(Text("\n").join(lines))
    if history.bins:
        first, last = history.span()
        view = chart.View(min(first, last - 1), last, is_log=True)
        curve = chart.Line(points(history.bins, "loss"), "cyan")
        taken = sum(part.plain.count("\n") + 2 for part in parts)  # with the empty lines between them
        tall = max(chart.MIN_HEIGHT, min(CURVE_LINES, height - taken - 1)) if height else CURVE_LINES
        title = Text("loss (log scale)\n", style="dim")
        parts.insert(1, title + chart.draw([curve], view, width, tall))
    return text.harmless(Text("\n\n").join(parts))


def state_table(runs: Sequence[RunState]) -> dict[str, Any]:
    """Return the state of all runs as a table for JSON."""
    return {"runs": [run.state_table() for run in runs]}
