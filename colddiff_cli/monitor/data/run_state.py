"""The state of one run, read from its files: progress, time left, liveness and problems."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

from colddiff_cli.monitor.data.jsonl import JsonLines, newest
from colddiff_cli.monitor.data.metrics_history import MAX_VALUE, NUMBERS, MetricsHistory, is_step
from colddiff_cli.monitor.data.sample_sheets import SampleSheets
from colddiff_core.errors import UsageError
from colddiff_core.runs import HEARTBEAT_SECONDS, Run

STALLED_AFTER = 20.0  # seconds without a sign of life
HUNG_AFTER = 60.0  # the same if the process is known to exist
GIVE_UP_FACTOR = 10.0  # times the limit of silence after which a trainer gets no more requests
SLOW_STEPS = 3.0  # a trainer may be silent for this many steps before it counts as stalled
MAX_TIME = 1e11  # seconds: the year 5138
CLOCK_TOLERANCE = 1.0  # event times may go back by this many seconds before it is reported
LIVES = {"started": "live", "resumed": "live", "paused": "paused"}
ENDS = {"finished": "finished", "stopped": "stopped", "failed": "failed"}


@dataclasses.dataclass(frozen=True)
class WallClock:
    """Two clocks in seconds: the time of day, which may be set, and one that only moves forward."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class RunState:
    """A run as the dashboard sees it; `poll` reads what is new."""

    def __init__(self, directory: Run, clock: WallClock) -> None:
        self.directory = directory
        self.path = directory.path
        self.name = directory.path.name
        self.clock = clock
        self.table: dict[str, Any] = {}
        self.state = "live"
        self.reason = ""
        self.has_trainer = False  # stays True for a silent trainer until it is given up: its step may be long
        self.events: list[dict[str, Any]] = []  # oldest first
        self.rows: list[dict[str, Any]] = []  # the newest lines of metrics.jsonl
        self.history: MetricsHistory | None = None  # set when the run is first shown
        self.sheets = SampleSheets(directory.samples)
        self._event_lines = JsonLines(self.path / "events.jsonl")
        self._stats: dict[str, tuple[int, int, int]] = {}  # inode, size and time of each file when last read
        self._problems: dict[str, str] = {}
        self._mtimes: list[float] = []  # of the files that a live trainer touches
        self._last_beat = 0.0  # monotonic time of the last sign of life
        self._has_beaten = False  # since the first poll

    @property
    def problems(self) -> list[str]:
        """What is wrong with the run's files, for the user."""
        return list(self._problems.values())

    def poll(self) -> None:
        """Read all new data except the metrics history, which `MetricsHistory.advance` reads."""
        if not self.path.is_dir():
            self.state, self.reason = "gone", "its folder is gone; this is what was read before"
            self.has_trainer = False
            return
        # Look at the process before the events: a trainer that has ended has written its last event.
        is_gone = self._check_heartbeat()
        if self._event_lines.poll():
            self.events = [_sanitize(event) for event in self._event_lines.rows if isinstance(event.get("event"), str)]
        self._note_bad_lines("events.jsonl", self._event_lines.bad)
        self._problems.pop("reading", None)
        if self._is_changed("run.toml"):
            self._read_table()
        if self._is_changed("metrics.jsonl"):
            rows = [_sanitize(row) for row in newest(self.path / "metrics.jsonl")]
            self.rows = [row for row in rows if "step" in row] or self.rows
        if self.history is not None:
            self._note_bad_lines("metrics.jsonl", self.history.bad)
        self._update_state(is_gone)
        self._check_clock()

    def note(self, key: str, text: str) -> None:
        """Note a problem with the run; a later one with the same key replaces it."""
        self._problems[key] = text

    def _note_bad_lines(self, file: str, count: int) -> None:
        if count:
            self._problems[file] = f"{file}: skipped {count} unreadable line{'s' if count > 1 else ''}"
        else:
            self._problems.pop(file, None)

    def _is_changed(self, name: str) -> bool:
        try:
            stat = os.stat(self.path / name)
        except OSError:
            return False
        now = stat.st_ino, stat.st_size, stat.st_mtime_ns
        is_changed = self._stats.get(name) != now
        self._stats[name] = now
        return is_changed

    def _read_table(self) -> None:
        try:
            self.table = self.directory.table()
            self._problems.pop("table", None)
        except UsageError as error:
            self._problems["table"] = error.what

    def _check_heartbeat(self) -> bool:
        """Note a new sign of life; return whether the trainer's process is known to have ended."""
        holder = self.directory.holder()
        mtimes = [holder.beat] if holder else []
        for name in ("metrics.jsonl", "events.jsonl"):
            try:
                mtimes.append(os.stat(self.path / name).st_mtime)
            except OSError:
                continue
        if mtimes != self._mtimes:
            # Only the first times need the wall clock for their age; later ones change while we watch.
            age = 0.0 if self._mtimes else max(0.0, self.clock.wall() - max(mtimes, default=0.0))
            self._has_beaten = bool(self._mtimes)
            self._mtimes, self._last_beat = mtimes, self.clock.monotonic() - age
        return holder is not None and holder.is_gone

    def _update_state(self, is_gone: bool) -> None:
        """Set the state from the trainer's last start or end event and its last sign of life."""
        event: dict[str, Any] = next((e for e in reversed(self.events) if e.get("event") in LIVES | ENDS), {})
        name = str(event.get("event", "started"))
        self.has_trainer = name in LIVES
        if name in ENDS:
            self.state, self.reason = ENDS[name], " ".join(str(event.get("why", "")).split())
            return
        silence = self.clock.monotonic() - self._last_beat
        holder = self.directory.holder()
        # A process that is known to exist may just be in a long step.
        is_known = holder is not None and holder.is_here and not is_gone
        limit = max(HUNG_AFTER if is_known else STALLED_AFTER, SLOW_STEPS * self.step_seconds)
        # A process in another PID namespace may seem gone although it still beats.
        if is_gone and not (self._has_beaten and silence < 3 * HEARTBEAT_SECONDS):
            self.state, self.has_trainer = "stalled", False
            self.reason = f"process {holder.pid if holder else 0} is gone; it wrote no final event"
        elif silence > limit:
            self.state, self.reason = "stalled", f"no sign of life for {duration(silence)}"
            self.has_trainer = silence < GIVE_UP_FACTOR * limit
        else:
            self.state, self.reason = LIVES[name], ""

    def _check_clock(self) -> None:
        times = [event["time"] for event in self.events if "time" in event]
        jumps = [before - after for before, after in itertools.pairwise(times) if before - after > CLOCK_TOLERANCE]
        ahead = max(self._mtimes, default=0.0) - self.clock.wall()
        if jumps:
            self._problems["clock"] = f"the clock was set back by {duration(max(jumps))} between two events"
        elif ahead > CLOCK_TOLERANCE * 5:
            self._problems["clock"] = f"its files are {duration(ahead)} ahead of this machine's clock"
        else:
            self._problems.pop("clock", None)

    def setting(self, section: str, key: str, default: Any) -> Any:
        """Return a value from run.toml, or `default` if it is missing or has another type."""
        table = self.table.get(section)
        value = table.get(key, default) if isinstance(table, dict) else default
        return value if type(value) is type(default) else default

    @property
    def row(self) -> dict[str, Any]:
        """The newest line of metrics.jsonl, or {}."""
        return self.rows[-1] if self.rows else {}

    @property
    def step(self) -> int:
        """The last step in the metrics and events."""
        steps = [event["step"] for event in self.events[-20:] if "step" in event]
        return int(max([self.row.get("step", 0), *steps[-1:]]))

    @property
    def steps(self) -> int:
        """Total steps of the run; 0 if unknown."""
        return int(self.setting("train", "steps", 0))

    @property
    def images_per_step(self) -> int:
        """Images per optimizer step."""
        return int(self.setting("train", "batch_size", 1)) * int(self.setting("train", "accumulate", 1))

    @property
    def epoch(self) -> float | None:
        """Passes over the training images; None if their number is unknown."""
        counts = [event.get("images") for event in self.events if event.get("event") == "started"]
        count = counts[-1] if counts else None
        return self.step * self.images_per_step / count if isinstance(count, int) and count > 0 else None

    @property
    def step_seconds(self) -> float:
        """Seconds per step, from the newest line; 0 if unknown."""
        rate = self.number("images_per_second")
        return self.images_per_step / rate if rate else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the pace of the newest lines; None if the pace is unknown or the run has ended."""
        timed = [row for row in self.rows if isinstance(row.get("elapsed"), float)]
        if self.state not in LIVES.values() or len(timed) < 2 or not self.steps:
            return None
        taken, seconds = timed[-1]["step"] - timed[0]["step"], timed[-1]["elapsed"] - timed[0]["elapsed"]
        return max(0.0, (self.steps - self.step) * seconds / taken) if taken > 0 and seconds >= 0 else None

    def number(self, key: str) -> float | None:
        """Return a number from the newest line of metrics.jsonl, or None."""
        value: Any = self.row.get(key)
        return float(value) if type(value) in NUMBERS else None

    @property
    def newest_sheet(self) -> str | None:
        """The sheet that was written last, by the events: older sheets may have later steps after a resume."""
        names = self.sheets.names()
        logged = (event.get("file") for event in reversed(self.events) if event["event"] == "sample")
        return next((file for file in logged if file in names), names[-1] if names else None)

    def state_table(self) -> dict[str, Any]:
        """Return the state as a table for JSON."""
        holder = self.directory.holder()
        newest, saved = self.newest_sheet, self.directory.checkpoints() if self.state != "gone" else []
        return {
            "name": self.name,
            "path": str(self.path),
            "state": self.state,
            "reason": self.reason or None,
            "step": self.step,
            "steps": self.steps or None,
            "epoch": self.epoch,
            "seconds_left": self.seconds_left,
            "metrics": self.row or None,
            "sample": str(self.directory.samples / newest) if newest else None,
            "checkpoint": str(saved[-1]) if saved else None,
            "pid": holder.pid if holder and holder.pid and self.has_trainer else None,
            "warnings": [str(event.get("message")) for event in self.events if event.get("event") == "warning"],
            "oddities": self.problems,
        }


def _sanitize(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop impossible values from a line: steps that are not steps, times and numbers out of range."""
    kept = {key: value for key, value in entry.items() if type(value) not in NUMBERS or -MAX_VALUE < value < MAX_VALUE}
    if not is_step(kept.get("step", 0)):
        del kept["step"]
    for key in ("time", "elapsed"):
        if key in kept:
            if type(kept[key]) in NUMBERS and -MAX_TIME < kept[key] < MAX_TIME:
                kept[key] = float(kept[key])
            else:
                del kept[key]
    return kept


def is_named(name: str, pattern: str) -> bool:
    """Return whether a run's name matches a glob pattern; without wildcards, whether it contains the pattern."""
    if not any(character in pattern for character in "*?["):
        pattern = f"*{pattern}*"
    return fnmatch.fnmatch(name, pattern)


def duration(seconds: float) -> str:
    """Format seconds as minutes:seconds, hours:minutes:seconds or days."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours or days else f"{rest // 60}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock
