"""The dashboard on paper: a frame as text, and the state for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from colddiff_cli.console import chart
from colddiff_cli.monitor.data.metrics_history import MetricsHistory, points
from colddiff_cli.monitor.data.run_state import RunState
from colddiff_cli.monitor.render import text

LINES = 14  # of the curve
EVENTS = 8
OTHERS = 20  # runs listed


def frame(current: RunState, runs: Sequence[RunState], width: int) -> Text:
    """Return what the dashboard would show of a run, and a line for each of the others."""
    history = MetricsHistory(current.run.path / "metrics.jsonl")
    current.history = history
    history.advance(float("inf"))
    current.poll()
    parts = [text.headline(current, width)]
    others = [watched for watched in runs if watched is not current]
    if history.bins:
        first, last = history.span()
        view = chart.View(min(first, last - 1), last, is_log=True)
        curve = chart.Line(points(history.bins, "loss"), "cyan")
        parts.append(Text("loss, log\n", style="dim") + chart.draw([curve], view, width, LINES))
    parts.append(text.pairs(text.facts(current)))
    if current.oddities:
        parts.append(text.oddities(current))
    if current.events:
        parts.append(text.events(current, EVENTS))
    newest = current.newest_sheet
    if newest:
        parts.append(Text(f"newest sheet: {current.run.samples / newest}"))
    if others:
        lines = [text.headline(watched, width) for watched in others[:OTHERS]]
        if len(others) > OTHERS:
            lines.append(Text(f"and {len(others) - OTHERS} more", style="dim"))
        parts.append(Text("\n").join(lines))
    return text.harmless(Text("\n\n").join(parts))


def state(runs: Sequence[RunState]) -> dict[str, Any]:
    """Return the state of runs for programs."""
    return {"runs": [watched.state_table() for watched in runs]}
