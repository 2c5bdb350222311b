"""Curves in braille: two dots across and four down a cell, with axes, a cursor and the extremes of every column."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from rich.text import Text

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # braille bits, by column and row
BRAILLE = 0x2800
AXIS = 8  # cells to the left of the curves
LEAST_WIDTH, LEAST_HEIGHT = AXIS + 8, 4


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


@dataclasses.dataclass(frozen=True)
class Line:
    """A series to draw: its points in order, a Rich style, and a mark for its end where colors are not enough."""

    points: Sequence[ChartPoint]
    style: str
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class View:
    """The steps on the horizontal axis, and whether the vertical one is logarithmic."""

    first: float
    last: float
    is_log: bool = False

    def step_at(self, cell: int, cells: int) -> float:
        """Return the step in the middle of a cell of the plot."""
        return self.first + (cell + 0.5) / cells * (self.last - self.first)

    def cell_of(self, step: float, cells: int) -> int:
        """Return the cell of the plot that a step falls into."""
        return int((step - self.first) / max(self.last - self.first, 1e-9) * cells)


def draw(
    lines: Sequence[Line], view: View, width: int, height: int, *, cursor: float | None = None, axis_style: str = "dim"
) -> Text:
    """Return a chart of `width` by `height` cells; `cursor` is a step to mark."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return Text("too small")
    cells_x, cells_y = width - AXIS, height - 1
    span = _span(lines, view)
    if span is None:
        middle = "nothing logged in these steps".center(cells_x)
        rows = [
            Text(" " * AXIS) + Text(middle if row == cells_y // 2 else "", style=axis_style) for row in range(cells_y)
        ]
        return Text("\n").join([*rows, Text("")])
    canvas = _Canvas(cells_x, cells_y)
    for line in lines:
        canvas.add(line, _columns(line.points, view, span, cells_x * 2, cells_y * 4))
    labels = _labels(span, view.is_log, cells_y)
    at = min(view.cell_of(cursor, cells_x), cells_x - 1) if cursor is not None else -1
    rows = []
    for row in range(cells_y):
        text = Text.assemble((f"{labels.get(row, ''):>{AXIS - 1}}" + ("┤" if row in labels else "│"), axis_style))
        # Neighbors of one style are one piece: a terminal at the end of a slow line gets few bytes.
        for style, cells in itertools.groupby(canvas.row(row, at, axis_style), key=lambda cell: cell[1]):
            text.append("".join(sign for sign, _ in cells), style=style)
        rows.append(text)
    rows.append(Text(_steps(view, cells_x), style=axis_style))
    return Text("\n").join(rows)


class _Canvas:
    """Cells of braille, each in the style of the line drawn last."""

    def __init__(self, across: int, down: int) -> None:
        self.bits = [[0] * across for _ in range(down)]
        self.styles = [[""] * across for _ in range(down)]
        self.marks: dict[tuple[int, int], tuple[str, str]] = {}

    def add(self, line: Line, columns: Sequence[tuple[int, int] | None]) -> None:
        """Draw a line from its uppermost and lowest dot in each column, with its mark behind the last one."""
        for x, reach in enumerate(columns):
            for y in range(reach[0], reach[1] + 1) if reach else ():
                self.bits[y // 4][x // 2] |= DOTS[x % 2][y % 4]
                self.styles[y // 4][x // 2] = line.style
            if reach and line.mark:
                place = reach[0] // 4, min(len(self.bits[0]) - 1, x // 2 + 1)
        if line.mark and any(columns):
            self.marks[place] = line.mark, f"bold {line.style}"

    def row(self, row: int, cursor: int, axis_style: str) -> Iterator[tuple[str, str]]:
        """Yield the signs and styles of a row of cells."""
        for column, bits in enumerate(self.bits[row]):
            if (row, column) in self.marks:
                yield self.marks[row, column]
            elif bits:
                yield chr(BRAILLE + bits), self.styles[row][column]
            else:
                yield ("│", axis_style) if column == cursor else (" ", "")


def _span(lines: Sequence[Line], view: View) -> tuple[float, float] | None:
    """Return the least and the greatest value in view, widened where they are one."""
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
    points: Sequence[ChartPoint], view: View, span: tuple[float, float], across: int, down: int
) -> list[tuple[int, int] | None]:
    """Return the uppermost and the lowest dot of a series in each column of dots, joined into a line."""
    reach: list[tuple[float, float] | None] = [None] * across
    low, high = (math.log(value) for value in span) if view.is_log else span
    scale_y, scale_x = (down - 1) / (high - low), (across - 1) / max(view.last - view.first, 1e-9)

    def dot(value: float) -> float:
        if view.is_log:
            value = math.log(value) if value > 0 else low
        return (high - value) * scale_y

    def extend(x: int, top: float, bottom: float) -> None:
        if 0 <= x < across:
            old = reach[x]
            reach[x] = (top, bottom) if old is None else (min(old[0], top), max(old[1], bottom))

    before: tuple[float, float] | None = None
    for point in points:
        begin, end = (point.first - view.first) * scale_x, (point.last - view.first) * scale_x
        top, bottom, middle = dot(point.high), dot(point.low), dot(point.mean)
        if before is not None and begin - before[0] > 0.5 and begin >= 0 and before[0] <= across:
            for x in range(max(0, math.ceil(before[0])), min(across - 1, math.floor(begin)) + 1):
                share = (x - before[0]) / (begin - before[0])
                y = before[1] + share * (middle - before[1])
                extend(x, y, y)
        for x in range(max(0, round(begin)), min(across - 1, round(end)) + 1):
            extend(x, top, bottom)
        before = end, middle
    return _joined([None if y is None else (round(y[0]), round(y[1])) for y in reach], down)


def _joined(reach: list[tuple[int, int] | None], down: int) -> list[tuple[int, int] | None]:
    """Lengthen columns until neighbors touch."""
    joined: list[tuple[int, int] | None] = []
    before: tuple[int, int] | None = None
    for now in reach:
        if now is not None:
            top, bottom = now
            if before is not None:
                top, bottom = min(top, before[1] + 1), max(bottom, before[0] - 1)
            joined.append((max(0, top), min(down - 1, bottom)))
        else:
            joined.append(None)
        before = now
    return joined


def _labels(span: tuple[float, float], is_log: bool, cells: int) -> dict[int, str]:
    """Return the values beside the vertical axis, by row."""
    low, high = (math.log10(value) for value in span) if is_log else span
    ticks: Sequence[float]
    if is_log:
        decades = range(math.floor(low), math.ceil(high) + 1)
        choices = ([1, 2, 5], [1, 3], [1])
        ticks = [math.log10(digit) + decade for decade in decades for digit in choices[0]]
        for digits in choices[1:]:
            if len([tick for tick in ticks if low <= tick <= high]) <= max(2, cells // 2):
                break
            ticks = [math.log10(digit) + decade for decade in decades for digit in digits]
    else:
        gap = nice((high - low) / max(1, cells / 3))
        ticks = [gap * number for number in range(math.ceil(low / gap), math.floor(high / gap) + 1)]
    if is_log and len([tick for tick in ticks if low <= tick <= high]) < 2:  # less than an octave
        gap = nice((10**high - 10**low) / max(1, cells / 3))
        ticks = [math.log10(gap * n) for n in range(max(1, math.ceil(10**low / gap)), math.floor(10**high / gap) + 1)]
    labels: dict[int, str] = {}
    for tick in ticks:
        if low <= tick <= high:
            row = int((high - tick) / (high - low) * (cells * 4 - 1)) // 4
            labels.setdefault(row, short(10**tick if is_log else tick))
    return labels


def _steps(view: View, cells: int) -> str:
    """Return the line of steps under the plot."""
    gap = max(1.0, nice((view.last - view.first) / max(1, cells / 12)))
    line = [" "] * (cells + AXIS)
    tick = math.ceil(view.first / gap) * gap
    while tick <= view.last:
        label, middle = short(tick), AXIS + view.cell_of(tick, cells)
        start = min(max(AXIS - 1, middle - len(label) // 2), cells + AXIS - len(label))
        if all(cell == " " for cell in line[max(0, start - 1) : start + len(label) + 1]):
            line[start : start + len(label)] = label
        tick += gap
    return "".join(line)


def nice(gap: float) -> float:
    """Return the next of 1, 2, 5, 10, ... that is not less."""
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


def nearest(points: Sequence[PointT], step: float) -> PointT | None:
    """Return the point of a series at a step, or the one closest to it."""
    if not points:
        return None
    place = bisect.bisect_left(points, step, key=lambda point: point.last)
    around = points[max(0, place - 1) : place + 1]
    return min(around, key=lambda point: max(point.first - step, step - point.last, 0))
