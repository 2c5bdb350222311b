"""A run's metrics at any length, in bins that keep the minimum and maximum, so a spike stays visible.

Parsing a million lines takes seconds. So the newest are read first, then blocks spread over the rest, ever
more densely: the whole curve appears at once and gets finer. Zoomed in, the lines themselves are read.
"""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from colddiff_cli.monitor.data.jsonl import CHUNK_BYTES, GrowingFile, parse

MAX_BINS = 2048
TAIL_BYTES = 1 << 18  # at the end of the file, read first
MIN_BLOCK_BYTES = 1 << 14  # of a bin in the older part
DETAIL_BYTES = 1 << 21  # read again at most for a zoomed view
NOT_PLOTTED = frozenset({"step", "elapsed"})
NUMBERS = (int, float)  # compared by type: True is an int
MAX_STEP = 10**15
MAX_VALUE = 1e300  # a limit for plotting: JSON has 1e999 and integers of any length
Extremes = tuple[float, float, float, int]  # minimum, maximum, sum, count


class MetricsPoint(NamedTuple):
    """A series over the steps `first` to `last`, both included; `lines` is how many log lines that is."""

    first: int
    last: int
    low: float
    high: float
    mean: float
    lines: int


@dataclasses.dataclass(slots=True)
class MetricsBin:
    """Consecutive log lines: bytes `start` to `end`, steps `first` to `last`, and the extremes of each series."""

    start: int
    end: int
    first: int
    last: int
    lines: int
    series: dict[str, Extremes]

    def merged(self, other: MetricsBin) -> MetricsBin:
        """Merge this bin with the next one."""
        series = dict(self.series)
        for name, (low, high, total, count) in other.series.items():
            if name in series:
                old = series[name]
                series[name] = (min(old[0], low), max(old[1], high), old[2] + total, old[3] + count)
            else:
                series[name] = (low, high, total, count)
        return MetricsBin(self.start, other.end, self.first, other.last, self.lines + other.lines, series)


def extremes(rows: Sequence[dict[str, Any]]) -> dict[str, Extremes]:
    """Return the extremes of each series in the lines. A list gives one series per entry: "key/1", "key/2".

    Values that are not finite numbers are skipped.
    """
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    series = {}
    for key, values in columns.items():
        if key in NOT_PLOTTED:
            continue
        lists = [value for value in values if isinstance(value, list)]
        named: dict[str, Sequence[Any]] = {
            f"{key}/{number}": entries for number, entries in enumerate(zip(*lists, strict=False), 1)
        }
        for name, entries in (named or {key: values}).items():
            numbers = [entry for entry in entries if type(entry) in NUMBERS and -MAX_VALUE < entry < MAX_VALUE]
            if numbers:
                series[name] = (min(numbers), max(numbers), sum(numbers), len(numbers))
    return series


def is_step(value: Any) -> TypeGuard[int]:
    """Return whether a value is a valid step."""
    return type(value) is int and 0 <= value < MAX_STEP


def quantity(series: str) -> str:
    """Return the quantity that a series belongs to: "loss_by_severity" for "loss_by_severity/2"."""
    return series.partition("/")[0]


def band(series: str) -> int:
    """Return the position of a series in its list, from 1; 0 if it is not from a list."""
    number = series.partition("/")[2]
    return int(number) if number.isdecimal() and len(number) < 6 else 0


class MetricsHistory:
    """All of metrics.jsonl, as bins in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GrowingFile(path)
        self._reset()

    def _reset(self) -> None:
        self.bins: list[MetricsBin] = []
        self.bad = 0
        self.lines = 0
        self._names: dict[str, None] = {}  # of the series, in order of appearance
        self._pending: list[tuple[int, int]] = []  # blocks to read, the next one last
        self._block_count = 0
        self._is_open = False
        self._detail: tuple[tuple[int, int], list[MetricsBin]] | None = None

    @property
    def share(self) -> float:
        """Share of the file's older part that has been read, 0 to 1."""
        return 1 - len(self._pending) / self._block_count if self._block_count else 1.0

    def advance(self, seconds: float) -> bool:
        """Read for about `seconds`, the newest lines first; return whether anything was new."""
        deadline = time.perf_counter() + seconds
        is_replaced, size = self._file.check()
        if is_replaced:
            self._reset()
        if not self._is_open and size:
            self._open(size)
        counts = self.lines, self.bad
        while self._file.offset < size:
            start = self._file.offset
            data = self._file.read(TAIL_BYTES)
            if not data:
                break
            self.bins += self._bins(start, data)
            if time.perf_counter() > deadline:
                break
        while self._pending and time.perf_counter() < deadline:
            self._read_block(*self._pending.pop())
        self._compact()
        return is_replaced or counts != (self.lines, self.bad)

    def _open(self, size: int) -> None:
        """Start at the newest lines and split the rest into blocks."""
        self._is_open = True
        if size <= 2 * TAIL_BYTES:
            return
        try:
            with self.path.open("rb") as file:
                file.seek(size - TAIL_BYTES)
                file.readline(CHUNK_BYTES)
                self._file.offset = file.tell()
        except OSError:
            return
        block = max(MIN_BLOCK_BYTES, self._file.offset // MAX_BINS + 1)
        blocks = [(start, min(start + block, self._file.offset)) for start in range(0, self._file.offset, block)]
        self._pending = [blocks[index] for index in reversed(_spread(len(blocks)))]
        self._block_count = len(blocks)

    def _read_block(self, start: int, end: int) -> None:
        data, start = self._whole_lines(start, end)
        rows, bad = parse(data)
        parsed, rows = len(rows), [row for row in rows if is_step(row.get("step"))]
        self.lines += len(rows)
        self.bad += bad + parsed - len(rows)
        if rows:
            whole = MetricsBin(start, start + len(data), rows[0]["step"], rows[-1]["step"], len(rows), extremes(rows))
            self._names |= dict.fromkeys(whole.series)
            bisect.insort(self.bins, whole, key=lambda bin: bin.start)

    def _whole_lines(self, start: int, end: int) -> tuple[bytes, int]:
        """Return the lines that start between two offsets, and the offset of the first."""
        try:
            with self.path.open("rb") as file:
                if start:
                    file.seek(start - 1)
                    file.readline(min(CHUNK_BYTES, end - start + 1))  # a line may be longer than that
                    start = file.tell()
                data = file.read(max(0, end - start))
                if data and not data.endswith(b"\n"):
                    data += file.readline(CHUNK_BYTES)
        except OSError:
            return b"", start
        return data[: data.rfind(b"\n") + 1], start

    def _bins(self, start: int, data: bytes, *, is_reread: bool = False) -> list[MetricsBin]:
        """Return one bin per line; the bytes of a bad line go to the bin beside it."""
        bins: list[MetricsBin] = []
        bad, end = 0, start
        for line in data.splitlines(keepends=True):
            end += len(line)
            rows, bad_here = parse(line)
            step = rows[0].get("step") if rows else None
            if is_step(step):
                bins.append(MetricsBin(start, end, step, step, 1, extremes(rows)))
                start = end
            else:
                bad += bad_here or len(rows)
        if bins:
            bins[-1].end = end
        if not is_reread:
            self.lines += len(bins)
            self.bad += bad
            for bin in bins:
                self._names |= dict.fromkeys(bin.series)
        return bins

    def _compact(self) -> None:
        """Merge neighboring bins, evenly over the run, once there are too many."""
        if len(self.bins) <= MAX_BINS * 3 // 2:
            return
        limit = 2 * self.lines // MAX_BINS + 1
        kept = [self.bins[0]]
        for bin in self.bins[1:]:
            last = kept[-1]
            if last.end == bin.start and last.lines + bin.lines <= limit:
                kept[-1] = last.merged(bin)
            else:
                kept.append(bin)
        self.bins = kept

    def series(self) -> list[str]:
        """Return the names of all series, with the entries of a list side by side."""
        order = {name: index for index, name in enumerate(dict.fromkeys(map(quantity, self._names)))}
        return sorted(self._names, key=lambda name: (order[quantity(name)], band(name)))

    def span(self) -> tuple[int, int]:
        """Return the smallest and largest step read so far."""
        # Not just the first and last bin: a damaged line may hold any step.
        return (min(bin.first for bin in self.bins), max(bin.last for bin in self.bins)) if self.bins else (0, 0)

    def between(self, first: float, last: float) -> list[MetricsBin]:
        """Return the bins of those steps and one neighbor on each side, re-read line by line if the range is small."""
        low = max(0, bisect.bisect_left(self.bins, first, key=lambda bin: bin.last) - 1)
        high = bisect.bisect_right(self.bins, last, key=lambda bin: bin.first) + 1
        shown = self.bins[low:high]
        if not shown or len(shown) * 4 > MAX_BINS or sum(bin.lines for bin in shown) == len(shown):
            return shown
        extent = shown[0].start, shown[-1].end
        if extent[1] - extent[0] > DETAIL_BYTES:
            return shown
        if self._detail is None or self._detail[0] != extent:
            data, start = self._whole_lines(*extent)
            self._detail = extent, self._bins(start, data, is_reread=True)
        return self._detail[1] or shown


def points(bins: Sequence[MetricsBin], name: str) -> list[MetricsPoint]:
    """Return one series of the bins."""
    series = []
    for bin in bins:
        if name in bin.series:
            low, high, total, count = bin.series[name]
            series.append(MetricsPoint(bin.first, bin.last, low, high, total / count, count))
    return series


def smoothed(series: Sequence[MetricsPoint], weight: float) -> list[MetricsPoint]:
    """Return the debiased exponential moving average of a series; `weight` is the share kept from line to line."""
    average = total = 0.0
    averages = []
    for point in series:
        kept = weight**point.lines
        average = average * kept + point.mean * (1 - kept)
        total = total * kept + (1 - kept)
        value = average / total
        averages.append(point._replace(low=value, high=value, mean=value))
    return averages


def _spread(count: int) -> list[int]:
    """Return 0 .. count - 1 in bit-reversed order, so that every prefix is spread evenly."""
    bits = max(1, (count - 1).bit_length())
    order = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [index for index in order if index < count]
