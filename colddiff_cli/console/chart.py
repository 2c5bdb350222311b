"""Line charts in braille, 2 x 4 dots a cell, with axes, a cursor and the extremes of every column."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from rich.text import Text

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # braille bits, by column and row
BRAILLE = 0x2800
AXIS = 8  # cells left of the plot: labels and the vertical axis
MIN_WIDTH, MIN_HEIGHT = AXIS + 8, 4


class ChartPoint(Protocol):
    """One stretch of a series, from x = `first` to `last`: its smallest, largest and mean value."""

    @property
    def first(self) -> float: ...
    @property
    def last(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def mean(self) -> float: ...


PointT = TypeVar("PointT", bound=ChartPoint)


class Sample(NamedTuple):
    """A point of a series with one value: `ChartPoint` for data that is not binned."""

    x: float
    y: float

    @property
    def first(self) -> float:
        return self.x

    @property
    def last(self) -> float:
        return self.x

    @property
    def low(self) -> float:
        return self.y

    @property
    def high(self) -> float:
        return self.y

    @property
    def mean(self) -> float:
        return self.y


@dataclasses.dataclass(frozen=True)
class Line:
    """A series to draw: its points in order, a Rich style, and a one-cell mark that names it without color."""

    points: Sequence[ChartPoint]
    style: str
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class View:
    """The range of both axes. `values` is the vertical range, fitted to the data if None."""

    first: float
    last: float
    is_log: bool = False
    values: tuple[float, float] | None = None

    def x_at(self, cell: int, cells: int) -> float:
        """Return x at the center of a plot cell."""
        return self.first + (cell + 0.5) / cells * (self.last - self.first)

    def cell_of(self, x: float, cells: int) -> int:
        """Return the plot cell that x falls into."""
        return int((x - self.first) / max(self.last - self.first, 1e-9) * cells)


def draw(
    lines: Sequence[Line],
    view: View,
    width: int,
    height: int,
    *,
    cursor: float | None = None,
    axis_style: str = "dim",
    x_label: str = "",
) -> Text:
    """Return a chart of `width` by `height` cells, the x label included; `cursor` is the x to mark."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return Text("too small")
    cells_x, cells_y = width - AXIS, height - (2 if x_label else 1)
    value_range = view.values or _value_range(lines, view)
    if value_range is None:
        message = "nothing logged in these steps".center(cells_x)
        rows = [
            Text(" " * AXIS) + Text(message if row == cells_y // 2 else "", style=axis_style) for row in range(cells_y)
        ]
        return Text("\n").join([*rows, Text("")])
    canvas = _Canvas(cells_x, cells_y)
    for line in lines:
        canvas.add(line, _columns(line.points, view, value_range, cells_x * 2, cells_y * 4))
    labels = _y_labels(value_range, view.is_log, cells_y)
    cursor_cell = min(view.cell_of(cursor, cells_x), cells_x - 1) if cursor is not None else -1
    rows = []
    for row in range(cells_y):
        text = Text.assemble((f"{labels.get(row, ''):>{AXIS - 1}}" + ("┤" if row in labels else "│"), axis_style))
        # Runs of one style become one span, which keeps the output small for slow terminals.
        for style, cells in itertools.groupby(canvas.row(row, cursor_cell, axis_style), key=lambda cell: cell[1]):
            text.append("".join(character for character, _ in cells), style=style)
        rows.append(text)
    rows.append(Text(_x_ticks(view, cells_x), style=axis_style))
    if x_label:
        rows.append(Text(" " * AXIS + x_label.center(cells_x).rstrip(), style=axis_style))
    return Text("\n").join(rows)


def legend(lines: Sequence[Line], names: Sequence[str]) -> Text:
    """Return the marks and names of lines, each in the style of its line."""
    entries = [Text(f"{line.mark} {name}".strip(), style=line.style) for line, name in zip(lines, names, strict=True)]
    return Text("   ").join(entries)


class _Canvas:
    """Braille cells, each in the style of the line drawn last."""

    def __init__(self, width: int, height: int) -> None:
        self.bits = [[0] * width for _ in range(height)]
        self.styles = [[""] * width for _ in range(height)]
        self.marks: dict[tuple[int, int], tuple[str, str]] = {}

    def add(self, line: Line, columns: Sequence[tuple[int, int] | None]) -> None:
        """Draw a line from its top and bottom dot in each column of dots, and its mark at the end."""
        for x, extent in enumerate(columns):
            for y in range(extent[0], extent[1] + 1) if extent else ():
                self.bits[y // 4][x // 2] |= DOTS[x % 2][y % 4]
                self.styles[y // 4][x // 2] = line.style
        if line.mark:
            self._mark(line, columns)

    def _mark(self, line: Line, columns: Sequence[tuple[int, int] | None]) -> None:
        """Put a line's mark behind its last dot, or further left on the line if a mark is there."""
        for x in reversed(range(len(columns))):
            extent = columns[x]
            if extent is None:
                continue
            row, column = extent[0] // 4, min(len(self.bits[0]) - 1, x // 2 + 1)
            if not any((row, column + offset) in self.marks for offset in (-1, 0, 1)):  # 4 and 1 must not read as 41
                self.marks[row, column] = line.mark, f"bold {line.style}"
                return

    def row(self, row: int, cursor: int, axis_style: str) -> Iterator[tuple[str, str]]:
        """Yield the character and style of each cell in a row."""
        for column, bits in enumerate(self.bits[row]):
            if (row, column) in self.marks:
                yield self.marks[row, column]
            elif bits:
                yield chr(BRAILLE + bits), self.styles[row][column]
            else:
                yield ("│", axis_style) if column == cursor else (" ", "")


def _value_range(lines: Sequence[Line], view: View) -> tuple[float, float] | None:
    """Return the smallest and largest value in view, widened if they are equal; None if there is none."""
    low, high = math.inf, -math.inf
    for line in lines:
        for point in line.points:
            if point.last >= view.first and point.first <= view.last:
                if not view.is_log:
                    low = min(low, point.low)
                elif point.high > 0:
                    low = min(low, point.low if point.low > 0 else point.high)
                high = max(high, point.high)
    if low > high or (view.is_log and high <= 0):
        return None
    if high - low < 1e-12 * max(abs(high), 1e-12):
        return (low / 1.5, high * 1.5) if view.is_log else (low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10)
    return low, high


def _columns(
    points: Sequence[ChartPoint], view: View, value_range: tuple[float, float], width: int, height: int
) -> list[tuple[int, int] | None]:
    """Return the top and bottom dot of a series in each column of dots, joined into a line."""
    extents: list[tuple[float, float] | None] = [None] * width
    low, high = (math.log(value) for value in value_range) if view.is_log else value_range
    scale_y, scale_x = (height - 1) / (high - low), (width - 1) / max(view.last - view.first, 1e-9)

    def dot(value: float) -> float:
        if view.is_log:
            value = math.log(value) if value > 0 else low
        return (high - value) * scale_y

    def extend(x: int, top: float, bottom: float) -> None:
        if 0 <= x < width:
            old = extents[x]
            extents[x] = (top, bottom) if old is None else (min(old[0], top), max(old[1], bottom))

    previous: tuple[float, float] | None = None
    for point in points:
        begin, end = (point.first - view.first) * scale_x, (point.last - view.first) * scale_x
        top, bottom, middle = dot(point.high), dot(point.low), dot(point.mean)
        if previous is not None and begin - previous[0] > 0.5 and begin >= 0 and previous[0] <= width:
            for x in range(max(0, math.ceil(previous[0])), min(width - 1, math.floor(begin)) + 1):
                share = (x - previous[0]) / (begin - previous[0])
                y = previous[1] + share * (middle - previous[1])
                extend(x, y, y)
        for x in range(max(0, round(begin)), min(width - 1, round(end)) + 1):
            extend(x, top, bottom)
        previous = end, middle
    return _joined([None if y is None else (round(y[0]), round(y[1])) for y in extents], height)


def _joined(extents: list[tuple[int, int] | None], height: int) -> list[tuple[int, int] | None]:
    """Lengthen columns until neighbors touch."""
    joined: list[tuple[int, int] | None] = []
    previous: tuple[int, int] | None = None
    for extent in extents:
        if extent is not None:
            top, bottom = extent
            if previous is not None:
                top, bottom = min(top, previous[1] + 1), max(bottom, previous[0] - 1)
            joined.append((max(0, top), min(height - 1, bottom)))
        else:
            joined.append(None)
        previous = extent
    return joined


def _y_labels(value_range: tuple[float, float], is_log: bool, cells: int) -> dict[int, str]:
    """Return the labels of the vertical axis by row."""
    low, high = (math.log10(value) for value in value_range) if is_log else value_range
    labels: dict[int, str] = {}
    for tick in _log_ticks(low, high, cells) if is_log else _linear_ticks(low, high, cells):
        if low <= tick <= high:
            row = int((high - tick) / (high - low) * (cells * 4 - 1)) // 4
            labels.setdefault(row, short(10**tick if is_log else tick))
    return labels


def _linear_ticks(low: float, high: float, cells: int) -> list[float]:
    gap = nice((high - low) / max(1, cells / 3))
    return [gap * number for number in range(math.ceil(low / gap), math.floor(high / gap) + 1)]


def _log_ticks(low: float, high: float, cells: int) -> list[float]:
    """Return the ticks from log10 `low` to `high`: 1, 2, 5 of each decade, or fewer if there are too many rows."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [tick for decade in decades for digit in digits if low <= (tick := math.log10(digit) + decade) <= high]
        if len(ticks) <= max(2, cells // 2):
            break
    if len(ticks) >= 2:
        return ticks
    # Less than an octave: ticks that are evenly spaced in value.
    gap = nice((10**high - 10**low) / max(1, cells / 3))
    return [math.log10(gap * n) for n in range(max(1, math.ceil(10**low / gap)), math.floor(10**high / gap) + 1)]


def _x_ticks(view: View, cells: int) -> str:
    """Return the line of numbers under the plot."""
    gap = max(1.0, nice((view.last - view.first) / max(1, cells / 12)))
    line = [" "] * (cells + AXIS)
    tick = math.ceil(view.first / gap) * gap
    while tick <= view.last:
        label, center = short(tick), AXIS + view.cell_of(tick, cells)
        start = min(max(AXIS - 1, center - len(label) // 2), cells + AXIS - len(label))
        if all(cell == " " for cell in line[max(0, start - 1) : start + len(label) + 1]):
            line[start : start + len(label)] = label
        tick += gap
    return "".join(line)


def nice(gap: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    if gap <= 0 or not math.isfinite(gap):
        return 1.0
    power = 10.0 ** math.floor(math.log10(gap))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= gap * (1 - 1e-9)), 10 * power)


def short(value: float) -> str:
    """Return a number in at most seven characters."""
    size = abs(value)
    if size and (size >= 1e7 or size < 1e-3):
        text = f"{value:.1e}"
        mantissa, _, power = text.partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.4g}{unit}"
    return f"{value:.3g}" if size < 0.01 else f"{value:.4g}"


def nearest(points: Sequence[PointT], x: float) -> PointT | None:
    """Return the point at x, or the closest one; None if there are no points."""
    if not points:
        return None
    index = bisect.bisect_left(points, x, key=lambda point: point.last)
    around = points[max(0, index - 1) : index + 1]
    return min(around, key=lambda point: max(point.first - x, x - point.last, 0))
