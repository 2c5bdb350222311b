"""What the dashboard shows about a run, as Rich text for the screen and for `--once`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from colddiff_cli.monitor.data.run_state import RunState, duration
from colddiff_core import text as plain

STATE_LOOKS = {  # symbol and Rich style; the symbol shows the state without color
    "live": ("●", "green"),
    "paused": ("‖", "yellow"),
    "stalled": ("!", "bold red"),
    "finished": ("✓", "blue"),
    "stopped": ("■", "cyan"),
    "failed": ("✗", "bold red"),
    "gone": ("∅", "dim"),
}
ATTENTION = frozenset({"warning", "failed"})
SHOWN_ELSEWHERE = frozenset({"event", "time", "answers", "file", "message", "why"})  # keys of an event
MAX_EVENTS = 100  # newest ones listed


def harmless(text: Text) -> Text:
    """Replace what a terminal would act on in a text from someone's files."""
    cleaned = plain.harmless(text.plain).replace("\t", " ")
    if cleaned != text.plain:
        text = text.copy()
        text.plain = cleaned
    return text


def state_label(run: RunState) -> Text:
    """Return the state as a symbol and a word."""
    symbol, style = STATE_LOOKS[run.state]
    return Text(f"{symbol} {run.state}", style=style)


def headline(run: RunState, width: int) -> Text:
    """Return a one-line summary of a run, cut to the parts that fit into `width` cells."""
    parts = [Text(plain.one_line(run.name), style="bold"), state_label(run)]
    if run.steps:
        parts.append(Text(f"step {run.step:,} of {run.steps:,} ({run.step / run.steps:.0%})"))
    else:
        parts.append(Text(f"step {run.step:,}"))
    if run.seconds_left is not None and run.state == "live":
        parts.append(Text(f"{duration(run.seconds_left)} left"))
    for key, label, digits in (("loss", "loss {}", 4), ("images_per_second", "{} images/s", 0)):
        value = run.number(key)
        if value is not None:
            parts.append(Text(label.format(f"{value:,.{digits}f}")))
    if run.reason:
        cells = max(8, width - sum(part.cell_len + 2 for part in parts[:2]))
        reason = Text(plain.one_line(run.reason), style=STATE_LOOKS[run.state][1])
        reason.truncate(cells, overflow="ellipsis")
        parts.insert(2, reason)
    line = parts[0]
    for part in parts[1:]:
        if line.cell_len + 2 + part.cell_len > width:
            break
        line = Text.assemble(line, "  ", part)
    return line


def facts(run: RunState, machine: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Return the figures of a run and the machine readings, as pairs of label and value."""
    lines = [("state", run.state + (f": {run.reason}" if run.reason else ""))]
    lines.append(("step", f"{run.step:,} of {run.steps:,}" if run.steps else f"{run.step:,}"))
    if run.epoch is not None:
        lines.append(("epoch", f"{run.epoch:,.1f}"))
    if run.seconds_left is not None:
        lines.append(("time left", duration(run.seconds_left)))
    elapsed = run.number("elapsed")
    if elapsed is not None:
        lines.append(("trained for", duration(elapsed)))
    for key, label, digits in (
        ("loss", "loss", 5),
        ("images_per_second", "images/s", 1),
        ("grad_norm", "gradient norm", 4),
    ):
        value = run.number(key)
        if value is not None:
            lines.append((label, f"{value:,.{digits}f}"))
    rate = run.number("lr")
    if rate is not None:
        lines.append(("learning rate", f"{rate:.3g}"))
    saved = [event for event in run.events if event.get("event") == "checkpoint"]
    if saved:
        lines.append(("checkpoint", f"step {saved[-1].get('step', '?')}"))
    return [*lines, *machine]


def aligned(pairs: Sequence[tuple[str, str]]) -> Text:
    """Return pairs of label and value as lines with the values aligned."""
    pairs = [(plain.one_line(label), plain.one_line(value)) for label, value in pairs]
    width = max((cell_len(label) for label, _ in pairs), default=0)
    return Text("\n").join(Text.assemble((f"{label:<{width}}  ", "dim"), value) for label, value in pairs)


def event_lines(run: RunState, limit: int = MAX_EVENTS) -> Text:
    """Return the newest events, latest first."""
    return Text("\n").join(_event(entry) for entry in reversed(run.events[-limit:]))


def _event(entry: dict[str, Any]) -> Text:
    name = plain.one_line(str(entry.get("event", "?")))
    message = entry.get("message") or entry.get("why")
    details = [f"{key} {value}" for key, value in entry.items() if key not in SHOWN_ELSEWHERE]
    text = Text.assemble((f"{_time(entry.get('time'))} ", "dim"))
    text.append(name, style="bold red" if name in ATTENTION else "bold")
    for detail in [*details, *([str(message)] if message else [])]:
        text.append(f"  {plain.one_line(detail)}")
    if entry.get("answers"):
        text.append("  on request", style="dim")
    return text


def _time(seconds: Any) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (TypeError, ValueError, OverflowError, OSError):
        return "--:--:--"


def problem_lines(run: RunState) -> Text:
    """Return the problems with a run's files, one per line."""
    return Text("\n").join(Text(plain.one_line(f"! {problem}"), style="yellow") for problem in run.problems)


def configuration(run: RunState) -> Text:
    """Return run.toml as aligned lines."""
    pairs: list[tuple[str, str]] = []
    for key, value in run.table.items():
        if isinstance(value, dict):
            pairs += [(f"{key}.{name}", str(entry)) for name, entry in value.items()]
        else:
            pairs.append((key, str(value)))
    return aligned(pairs)
