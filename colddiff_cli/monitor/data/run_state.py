"""One run as its files tell it: its state, how far it is, how long it still takes, and what is odd about it."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

from colddiff_cli.monitor.data.jsonl import JsonLines, newest
from colddiff_cli.monitor.data.metrics_history import LARGEST, NUMBERS, MetricsHistory, is_step
from colddiff_cli.monitor.data.sample_sheets import SampleSheets
from colddiff_core.errors import UsageError
from colddiff_core.runs import HEARTBEAT_SECONDS, Run

STALLED_AFTER = 20.0  # seconds without a sign of life
HUNG_AFTER = 60.0  # the same, where the process is there
GIVEN_UP = 10.0  # times as long, after which nobody is there to be asked
SLOW_STEPS = 3.0  # steps' worth of silence that a slow trainer is granted
LATEST = 1e11  # seconds: the year 5138
BACK = 1.0  # seconds by which times must fall to be told of
LIVES = {"started": "live", "resumed": "live", "paused": "paused"}
ENDS = {"finished": "finished", "stopped": "stopped", "failed": "failed"}


@dataclasses.dataclass(frozen=True)
class WallClock:
    """The time of day in seconds since 1970, which may be set back, and one that cannot."""

    wall: Callable[[], float] = time.time
    ticking: Callable[[], float] = time.monotonic


class RunState:
    """A run that is watched; `poll` reads what is new."""

    def __init__(self, run: Run, clock: WallClock) -> None:
        self.run = run
        self.name = run.path.name
        self.clock = clock
        self.table: dict[str, Any] = {}
        self.state = "live"
        self.reason = ""
        self.has_trainer = False  # as far as is known: a silent one may be in a long step
        self.events: list[dict[str, Any]] = []  # oldest first
        self.rows: list[dict[str, Any]] = []  # the newest lines of metrics
        self.history: MetricsHistory | None = None  # once the run is looked at
        self.sheets = SampleSheets(run.samples)
        self._feed = JsonLines(run.path / "events.jsonl")
        self._seen: dict[str, tuple[int, int, int]] = {}  # files as they were read last
        self._oddities: dict[str, str] = {}
        self._times: list[float] = []  # of the files that tell of life
        self._beaten = 0.0  # when the last sign of life came, by the ticking clock
        self._has_beaten = False  # while it was watched

    @property
    def oddities(self) -> list[str]:
        """What is wrong with the run's files, in the user's words."""
        return list(self._oddities.values())

    def poll(self) -> None:
        """Read what is new of everything but the history of metrics, which `History.advance` reads."""
        if not self.run.path.is_dir():
            self.state, self.reason = "gone", "its folder is no longer there; shown is what was read before"
            self.has_trainer = False
            return
        # Who trains first: a trainer that ends now has written its last event by then.
        is_gone = self._look_for_life()
        if self._feed.poll():
            self.events = [_sound(event) for event in self._feed.rows if isinstance(event.get("event"), str)]
        self._oddity("events", self._feed.bad, "events.jsonl: {} that cannot be read, left out")
        self._oddities.pop("reading", None)
        if self._is_changed("run.toml"):
            self._read_table()
        if self._is_changed("metrics.jsonl"):
            rows = [_sound(row) for row in newest(self.run.path / "metrics.jsonl")]
            self.rows = [row for row in rows if "step" in row] or self.rows
        if self.history is not None:
            self._oddity("metrics", self.history.bad, "metrics.jsonl: {} that cannot be read, left out")
        self._judge(is_gone)
        self._check_times()

    def note(self, key: str, text: str) -> None:
        """Note something odd about the run, under a key of its own."""
        self._oddities[key] = text

    def _oddity(self, key: str, lines: int, text: str) -> None:
        if lines:
            self._oddities[key] = text.format(f"{lines} line{'s' if lines > 1 else ''}")
        else:
            self._oddities.pop(key, None)

    def _is_changed(self, name: str) -> bool:
        try:
            stat = os.stat(self.run.path / name)
        except OSError:
            return False
        now = stat.st_ino, stat.st_size, stat.st_mtime_ns
        is_changed = self._seen.get(name) != now
        self._seen[name] = now
        return is_changed

    def _read_table(self) -> None:
        try:
            self.table = self.run.table()
            self._oddities.pop("table", None)
        except UsageError as error:
            self._oddities["table"] = error.what

    def _look_for_life(self) -> bool:
        """Note a new sign of life; returns whether the trainer's process is known to have ended."""
        holder = self.run.holder()
        times = [holder.beat] if holder else []
        for name in ("metrics.jsonl", "events.jsonl"):
            try:
                times.append(os.stat(self.run.path / name).st_mtime)
            except OSError:
                continue
        if times != self._times:
            # The first ones may be of any age; later ones come while we look, whatever the clock says.
            age = 0.0 if self._times else max(0.0, self.clock.wall() - max(times, default=0.0))
            self._has_beaten = bool(self._times)
            self._times, self._beaten = times, self.clock.ticking() - age
        return holder is not None and holder.is_gone

    def _judge(self, is_gone: bool) -> None:
        """Tell the state from the last event of the trainer's life and the last sign of it."""
        told = next((event for event in reversed(self.events) if event.get("event") in LIVES | ENDS), None)
        word = str(told["event"]) if told else "started"
        self.has_trainer = word in LIVES
        if word in ENDS:
            self.state, self.reason = ENDS[word], " ".join(str(told.get("why", "")).split()) if told else ""
            return
        silent = self.clock.ticking() - self._beaten
        holder = self.run.holder()
        # Of one that is known to be there, silence says less: its step may be long.
        is_known = holder is not None and holder.is_here and not is_gone
        limit = max(HUNG_AFTER if is_known else STALLED_AFTER, SLOW_STEPS * self.step_seconds)
        # A process of another namespace may seem gone while it beats.
        if is_gone and not (self._has_beaten and silent < 3 * HEARTBEAT_SECONDS):
            self.state, self.has_trainer = "stalled", False
            self.reason = f"process {holder.pid if holder else 0} is gone without a last word"
        elif silent > limit:
            self.state, self.reason = "stalled", f"no sign of life for {duration(silent)}"
            self.has_trainer = silent < GIVEN_UP * limit
        else:
            self.state, self.reason = LIVES[word], ""

    def _check_times(self) -> None:
        times = [event["time"] for event in self.events if "time" in event]
        falls = [before - after for before, after in itertools.pairwise(times) if before - after > BACK]
        ahead = max(self._times, default=0.0) - self.clock.wall()
        if falls:
            self._oddities["clock"] = f"the clock was set back by {duration(max(falls))} between two events"
        elif ahead > BACK * 5:
            self._oddities["clock"] = f"its files are {duration(ahead)} ahead of this machine's clock"
        else:
            self._oddities.pop("clock", None)

    def setting(self, section: str, key: str, default: Any) -> Any:
        """Return one value of run.toml."""
        table = self.table.get(section)
        value = table.get(key, default) if isinstance(table, dict) else default
        return value if type(value) is type(default) else default

    @property
    def row(self) -> dict[str, Any]:
        """The newest line of metrics; empty before the first."""
        return self.rows[-1] if self.rows else {}

    @property
    def step(self) -> int:
        """The last step that the files tell of."""
        steps = [event["step"] for event in self.events[-20:] if "step" in event]
        return int(max([self.row.get("step", 0), *steps[-1:]]))

    @property
    def steps(self) -> int:
        """All the steps that the run is to take; 0 where that is not known."""
        return int(self.setting("train", "steps", 0))

    @property
    def images_per_step(self) -> int:
        """Images that the optimizer sees in a step."""
        return int(self.setting("train", "batch_size", 1)) * int(self.setting("train", "accumulate", 1))

    @property
    def epoch(self) -> float | None:
        """How often every training image has been seen; None where their number is not told."""
        counts = [event.get("images") for event in self.events if event.get("event") == "started"]
        count = counts[-1] if counts else None
        return self.step * self.images_per_step / count if isinstance(count, int) and count > 0 else None

    @property
    def step_seconds(self) -> float:
        """Seconds a step takes by the newest line; 0 where that is not known."""
        rate = self.number("images_per_second")
        return self.images_per_step / rate if rate else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training left at the pace of the newest lines; None where there is no pace or nothing left."""
        timed = [row for row in self.rows if isinstance(row.get("elapsed"), float)]
        if self.state not in LIVES.values() or len(timed) < 2 or not self.steps:
            return None
        taken, seconds = timed[-1]["step"] - timed[0]["step"], timed[-1]["elapsed"] - timed[0]["elapsed"]
        return max(0.0, (self.steps - self.step) * seconds / taken) if taken > 0 and seconds >= 0 else None

    def number(self, key: str) -> float | None:
        """Return a number of the newest line of metrics."""
        value: Any = self.row.get(key)
        return float(value) if type(value) in NUMBERS else None

    @property
    def newest_sheet(self) -> str | None:
        """The sheet written last, by the trainer's own word: after a resume there may be older ones of later steps."""
        names = self.sheets.names()
        told = (event.get("file") for event in reversed(self.events) if event["event"] == "sample")
        return next((file for file in told if file in names), names[-1] if names else None)

    def state_table(self) -> dict[str, Any]:
        """Return the state for programs."""
        holder = self.run.holder()
        newest, saved = self.newest_sheet, self.run.checkpoints() if self.state != "gone" else []
        return {
            "name": self.name,
            "path": str(self.run.path),
            "state": self.state,
            "reason": self.reason or None,
            "step": self.step,
            "steps": self.steps or None,
            "epoch": self.epoch,
            "seconds_left": self.seconds_left,
            "metrics": self.row or None,
            "sample": str(self.run.samples / newest) if newest else None,
            "checkpoint": str(saved[-1]) if saved else None,
            "pid": holder.pid if holder and holder.pid and self.has_trainer else None,
            "warnings": [str(event.get("message")) for event in self.events if event.get("event") == "warning"],
            "oddities": self.oddities,
        }


def _sound(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a line of a file without what cannot be: a step that is none, numbers beyond all bounds."""
    kept = {key: value for key, value in entry.items() if type(value) not in NUMBERS or -LARGEST < value < LARGEST}
    if not is_step(kept.get("step", 0)):
        del kept["step"]
    for key in ("time", "elapsed"):
        if key in kept:
            if type(kept[key]) in NUMBERS and -LATEST < kept[key] < LATEST:
                kept[key] = float(kept[key])
            else:
                del kept[key]
    return kept


def is_named(name: str, pattern: str) -> bool:
    """Tell whether a run's name fits a pattern; one without a wildcard may stand anywhere in the name."""
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return fnmatch.fnmatch(name, pattern)


def duration(seconds: float) -> str:
    """Return a time span for people."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    clock = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours or days else f"{rest // 60}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock
