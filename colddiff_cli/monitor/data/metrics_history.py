"""A run's metrics at any length: bins that keep the least and the greatest, so that a spike stays visible.

A million lines take seconds to parse, so the newest are read first, then blocks spread over the rest ever
more densely: the whole curve is there at once and grows finer. Zoomed in, the lines themselves are read.
"""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from colddiff_cli.monitor.data.jsonl import MOST, GrowingFile, parse

MOST_BINS = 2048
TAIL = 1 << 18  # bytes at the end that are read first
LEAST_BLOCK = 1 << 14  # bytes of a bin of the older part
DETAIL = 1 << 21  # bytes that are read again for a closer look
NEVER_DRAWN = frozenset({"step", "elapsed"})
NUMBERS = (int, float)  # by type: True is an int
LARGEST_STEP = 10**15
LARGEST = 1e300  # what is drawn is smaller: JSON has 1e999, and whole numbers of any length
Extremes = tuple[float, float, float, int]  # least, greatest, sum and count


class MetricsPoint(NamedTuple):
    """What a series was over some steps, first and last included."""

    first: int
    last: int
    low: float
    high: float
    mean: float
    lines: int


@dataclasses.dataclass(slots=True)
class MetricsBin:
    """Some neighboring lines: their bytes, steps and count, and the extremes of each series."""

    start: int
    end: int
    first: int
    last: int
    lines: int
    series: dict[str, Extremes]

    def merged(self, other: MetricsBin) -> MetricsBin:
        """Return this bin and the one that follows as one."""
        series = dict(self.series)
        for name, (low, high, total, count) in other.series.items():
            if name in series:
                mine = series[name]
                series[name] = (min(mine[0], low), max(mine[1], high), mine[2] + total, mine[3] + count)
            else:
                series[name] = (low, high, total, count)
        return MetricsBin(self.start, other.end, self.first, other.last, self.lines + other.lines, series)


def extremes(rows: Sequence[dict[str, Any]]) -> dict[str, Extremes]:
    """Return the series of some lines; an entry of a list is named with its place, from 1.

    What is not a finite number is left out.
    """
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    series = {}
    for key, values in columns.items():
        if key in NEVER_DRAWN:
            continue
        lists = [value for value in values if isinstance(value, list)]
        named: dict[str, Sequence[Any]] = {
            f"{key}/{place}": entries for place, entries in enumerate(zip(*lists, strict=False), 1)
        }
        for name, entries in (named or {key: values}).items():
            found = [entry for entry in entries if type(entry) in NUMBERS and -LARGEST < entry < LARGEST]
            if found:
                series[name] = (min(found), max(found), sum(found), len(found))
    return series


def is_step(value: Any) -> TypeGuard[int]:
    """Tell whether a value can be the step of a line."""
    return type(value) is int and 0 <= value < LARGEST_STEP


def quantity(series: str) -> str:
    """Return what a series belongs to: its name without its place in a list."""
    return series.partition("/")[0]


def band(series: str) -> int:
    """Return the place of a series in its list, from 1; 0 where it is none."""
    place = series.partition("/")[2]
    return int(place) if place.isdecimal() and len(place) < 6 else 0


class MetricsHistory:
    """All of metrics.jsonl, as bins in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GrowingFile(path)
        self._forget()

    def _forget(self) -> None:
        self.bins: list[MetricsBin] = []
        self.bad = 0
        self.lines = 0
        self._names: dict[str, None] = {}  # of the series, in the order of their first lines
        self._pending: list[tuple[int, int]] = []  # blocks still to read, the next one last
        self._planned = 0
        self._is_open = False
        self._closer: tuple[tuple[int, int], list[MetricsBin]] | None = None

    @property
    def share(self) -> float:
        """The share of the file's older part that has been read, 0 to 1."""
        return 1 - len(self._pending) / self._planned if self._planned else 1.0

    def advance(self, seconds: float) -> bool:
        """Read for about that long, the newest lines first; returns whether anything came."""
        deadline = time.perf_counter() + seconds
        is_new, size = self._file.look()
        if is_new:
            self._forget()
        if not self._is_open and size:
            self._open(size)
        before = self.lines, self.bad
        while self._file.offset < size:
            start = self._file.offset
            data = self._file.more(TAIL)
            if not data:
                break
            self.bins += self._bins(start, data)
            if time.perf_counter() > deadline:
                break
        while self._pending and time.perf_counter() < deadline:
            self._read_block(*self._pending.pop())
        self._compact()
        return is_new or before != (self.lines, self.bad)

    def _open(self, size: int) -> None:
        """Begin with the newest lines, and plan the blocks of the rest."""
        self._is_open = True
        if size <= 2 * TAIL:
            return
        try:
            with self.path.open("rb") as file:
                file.seek(size - TAIL)
                file.readline(MOST)
                self._file.offset = file.tell()
        except OSError:
            return
        block = max(LEAST_BLOCK, self._file.offset // MOST_BINS + 1)
        blocks = [(start, min(start + block, self._file.offset)) for start in range(0, self._file.offset, block)]
        self._pending = [blocks[place] for place in reversed(_spread(len(blocks)))]
        self._planned = len(blocks)

    def _read_block(self, start: int, end: int) -> None:
        data, start = self._whole_lines(start, end)
        rows, bad = parse(data)
        read, rows = len(rows), [row for row in rows if is_step(row.get("step"))]
        self.lines += len(rows)
        self.bad += bad + read - len(rows)
        if rows:
            whole = MetricsBin(start, start + len(data), rows[0]["step"], rows[-1]["step"], len(rows), extremes(rows))
            self._names |= dict.fromkeys(whole.series)
            bisect.insort(self.bins, whole, key=lambda bin: bin.start)

    def _whole_lines(self, start: int, end: int) -> tuple[bytes, int]:
        """Return the lines that begin in those bytes, and where the first one does."""
        try:
            with self.path.open("rb") as file:
                if start:
                    file.seek(start - 1)
                    file.readline(MOST)
                    start = file.tell()
                data = file.read(max(0, end - start))
                if data and not data.endswith(b"\n"):
                    data += file.readline(MOST)
        except OSError:
            return b"", start
        return data[: data.rfind(b"\n") + 1], start

    def _bins(self, start: int, data: bytes, *, is_again: bool = False) -> list[MetricsBin]:
        """Return a bin for each line; the bytes of one that is none belong to its neighbor."""
        made: list[MetricsBin] = []
        bad, end = 0, start
        for line in data.splitlines(keepends=True):
            end += len(line)
            rows, wrong = parse(line)
            step = rows[0].get("step") if rows else None
            if is_step(step):
                made.append(MetricsBin(start, end, step, step, 1, extremes(rows)))
                start = end
            else:
                bad += wrong or len(rows)
        if made:
            made[-1].end = end
        if not is_again:
            self.lines += len(made)
            self.bad += bad
            for bin in made:
                self._names |= dict.fromkeys(bin.series)
        return made

    def _compact(self) -> None:
        """Merge neighbors once there are too many bins, evenly over the run."""
        if len(self.bins) <= MOST_BINS * 3 // 2:
            return
        most = 2 * self.lines // MOST_BINS + 1
        kept = [self.bins[0]]
        for bin in self.bins[1:]:
            last = kept[-1]
            if last.end == bin.start and last.lines + bin.lines <= most:
                kept[-1] = last.merged(bin)
            else:
                kept.append(bin)
        self.bins = kept

    def series(self) -> list[str]:
        """Return the names of what is logged; the entries of a list stand together."""
        order = {name: place for place, name in enumerate(dict.fromkeys(map(quantity, self._names)))}
        return sorted(self._names, key=lambda name: (order[quantity(name)], band(name)))

    def span(self) -> tuple[int, int]:
        """Return the least and the greatest step read so far."""
        # Not of the first and the last bin: a damaged line may tell any step.
        return (min(bin.first for bin in self.bins), max(bin.last for bin in self.bins)) if self.bins else (0, 0)

    def between(self, first: float, last: float) -> list[MetricsBin]:
        """Return the bins of those steps and the neighbors that lead there, line by line where they are few."""
        low = max(0, bisect.bisect_left(self.bins, first, key=lambda bin: bin.last) - 1)
        high = bisect.bisect_right(self.bins, last, key=lambda bin: bin.first) + 1
        shown = self.bins[low:high]
        if not shown or len(shown) * 4 > MOST_BINS or sum(bin.lines for bin in shown) == len(shown):
            return shown
        place = shown[0].start, shown[-1].end
        if place[1] - place[0] > DETAIL:
            return shown
        if self._closer is None or self._closer[0] != place:
            data, start = self._whole_lines(*place)
            self._closer = place, self._bins(start, data, is_again=True)
        return self._closer[1] or shown


def points(bins: Sequence[MetricsBin], name: str) -> list[MetricsPoint]:
    """Return one series of some bins."""
    found = []
    for bin in bins:
        if name in bin.series:
            low, high, total, count = bin.series[name]
            found.append(MetricsPoint(bin.first, bin.last, low, high, total / count, count))
    return found


def smoothed(series: Sequence[MetricsPoint], weight: float) -> list[MetricsPoint]:
    """Return the exponential moving average of a series; `weight` is what a line keeps of the one before."""
    average = total = 0.0
    made = []
    for point in series:
        kept = weight**point.lines
        average = average * kept + point.mean * (1 - kept)
        total = total * kept + (1 - kept)
        value = average / total
        made.append(point._replace(low=value, high=value, mean=value))
    return made


def _spread(count: int) -> list[int]:
    """Return 0 .. count - 1 in an order whose every beginning is spread evenly: bits reversed."""
    bits = max(1, (count - 1).bit_length())
    order = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [place for place in order if place < count]
