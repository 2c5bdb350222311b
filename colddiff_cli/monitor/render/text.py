"""What the dashboard says about a run, as text: the same on its screen and on paper."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from colddiff_cli.monitor.data.run_state import RunState, duration

LOOKS = {  # a sign and a Rich style for each state; the sign tells it where there are no colors
    "live": ("●", "green"),
    "paused": ("‖", "yellow"),
    "stalled": ("!", "bold red"),
    "finished": ("✓", "blue"),
    "stopped": ("■", "cyan"),
    "failed": ("✗", "bold red"),
    "gone": ("∅", "dim"),
}
ATTENTION = frozenset({"warning", "failed"})
UNTOLD = frozenset({"event", "time", "answers", "file"})  # of an event, or told in another way
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but the end of a line
MARK = "\N{REPLACEMENT CHARACTER}"
EVENTS = 100  # newest ones listed


def harmless(text: Text) -> Text:
    """Return a text of someone's files without what a terminal would obey: each such sign becomes a mark."""
    cleaned = CONTROLS.sub(MARK, text.plain)
    if cleaned != text.plain:
        text = text.copy()
        text.plain = cleaned
    return text


def sign(watched: RunState) -> Text:
    """Return the state as a sign and a word."""
    mark, style = LOOKS[watched.state]
    return Text(f"{mark} {watched.state}", style=style)


def headline(watched: RunState, width: int) -> Text:
    """Return the run in a line: as much of it as fits."""
    parts = [Text(watched.name, style="bold"), sign(watched)]
    if watched.steps:
        parts.append(Text(f"step {watched.step:,} of {watched.steps:,} ({watched.step / watched.steps:.0%})"))
    else:
        parts.append(Text(f"step {watched.step:,}"))
    left = watched.seconds_left
    if left is not None and watched.state == "live":
        parts.append(Text(f"{duration(left)} left"))
    for key, label, digits in (("loss", "loss {}", 4), ("images_per_second", "{} images/s", 0)):
        value = watched.number(key)
        if value is not None:
            parts.append(Text(label.format(f"{value:,.{digits}f}")))
    if watched.reason:
        room = max(8, width - sum(part.cell_len + 2 for part in parts[:2]))
        reason = Text(watched.reason, style=LOOKS[watched.state][1])
        reason.truncate(room, overflow="ellipsis")
        parts.insert(2, reason)
    line = parts[0]
    for part in parts[1:]:
        if line.cell_len + 2 + part.cell_len > width:
            break
        line = Text.assemble(line, "  ", part)
    return line


def facts(watched: RunState, machine: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Return what there is to know of a run in pairs: what, and how it stands."""
    lines = [("state", watched.state + (f": {watched.reason}" if watched.reason else ""))]
    lines.append(("step", f"{watched.step:,} of {watched.steps:,}" if watched.steps else f"{watched.step:,}"))
    if watched.epoch is not None:
        lines.append(("epoch", f"{watched.epoch:,.1f}"))
    if watched.seconds_left is not None:
        lines.append(("time left", duration(watched.seconds_left)))
    elapsed = watched.number("elapsed")
    if elapsed is not None:
        lines.append(("trained for", duration(elapsed)))
    for key, label, digits in (
        ("loss", "loss", 5),
        ("images_per_second", "images/s", 1),
        ("grad_norm", "gradient norm", 4),
    ):
        value = watched.number(key)
        if value is not None:
            lines.append((label, f"{value:,.{digits}f}"))
    rate = watched.number("lr")
    if rate is not None:
        lines.append(("learning rate", f"{rate:.3g}"))
    saved = [event for event in watched.events if event.get("event") == "checkpoint"]
    if saved:
        lines.append(("checkpoint", f"step {saved[-1].get('step', '?')}"))
    return [*lines, *machine]


def pairs(lines: Sequence[tuple[str, str]]) -> Text:
    """Return pairs as aligned lines."""
    width = max((cell_len(what) for what, _ in lines), default=0)
    return Text("\n").join(Text.assemble((f"{what:<{width}}  ", "dim"), told) for what, told in lines)


def events(watched: RunState, most: int = EVENTS) -> Text:
    """Return the newest events, the last one first."""
    return Text("\n").join(_event(entry) for entry in reversed(watched.events[-most:]))


def _event(entry: dict[str, Any]) -> Text:
    name = str(entry.get("event", "?"))
    told = entry.get("message") or entry.get("why")
    details = [f"{key} {value}" for key, value in entry.items() if key not in UNTOLD | {"message", "why"}]
    text = Text.assemble((f"{_time(entry.get('time'))} ", "dim"))
    text.append(name, style="bold red" if name in ATTENTION else "bold")
    for detail in [*details, *([str(told)] if told else [])]:
        text.append(f"  {detail}")
    if entry.get("answers"):
        text.append("  as asked", style="dim")
    return text


def _time(seconds: Any) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (TypeError, ValueError, OverflowError, OSError):
        return "--:--:--"


def oddities(watched: RunState) -> Text:
    """Return what is wrong with the run's files, a line each."""
    return Text("\n").join(Text(f"! {told}", style="yellow") for told in watched.oddities)


def configuration(watched: RunState) -> Text:
    """Return run.toml as aligned lines."""
    lines: list[tuple[str, str]] = []
    for key, value in watched.table.items():
        if isinstance(value, dict):
            lines += [(f"{key}.{name}", str(entry)) for name, entry in value.items()]
        else:
            lines.append((key, str(value)))
    return pairs(lines)
