"""Charts of `degrade --describe` and `eval --by-severity`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from colddiff_cli.console import chart
from colddiff_cli.console.screen import LOG_COLUMNS, Screen, can_encode

LINES = 16  # height of a chart
TABLE_ROWS = 9
X_LABEL = "severity t"
MEASURES = {  # label and style by JSON key
    "gain_low": ("lowest frequency", "bright_green"),
    "gain_mid": ("middle frequency", "bright_yellow"),
    "kept": ("pixels kept", "bright_cyan"),
    "colour": ("color kept", "bright_red"),
    "ssim": ("SSIM", "bright_blue"),
}
STYLES = ("bright_red", "bright_cyan", "bright_green", "bright_yellow")


def show_remains(screen: Screen, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plot what an operator leaves of a picture against t, and list some severities in a table."""
    shown = {key: measure for key, measure in MEASURES.items() if any(row[key] is not None for row in rows)}
    lines = [
        _line(number, style, ((row["t"], row[key]) for row in rows))
        for number, (key, (_, style)) in enumerate(shown.items(), start=1)
    ]
    labels = [label for label, _ in shown.values()]
    _show(screen, "Share of the picture left at each severity, from 0 to 1", lines, labels, (0.0, 1.0))
    table = Table(box=None, pad_edge=False)
    for heading in ("t", "RMSE", *labels):
        table.add_column(heading, justify="right")
    for index in sorted({round(i * (len(rows) - 1) / (TABLE_ROWS - 1)) for i in range(TABLE_ROWS)}):
        row = rows[index]
        table.add_row(str(row["t"]), f"{row['rmse']:.4f}", *(_number(row[key]) for key in shown))
    screen.show(table)


def show_severities(screen: Screen, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Plot the RMSE of each kind of image (degraded, direct, sampled) against t."""
    lines = [
        _line(number, style, ((row["t"], row["metrics"][kind]["rmse"]) for row in rows))
        for number, (kind, style) in enumerate(zip(columns, STYLES, strict=False), start=1)
    ]
    highest = max((point.high for line in lines for point in line.points), default=0.0)
    _show(screen, "RMSE at each severity (pixels in [0, 1])", lines, columns[: len(lines)], (0.0, highest or 1.0))


def _line(number: int, style: str, values: Iterable[tuple[float, float | None]]) -> chart.Line:
    """Return a line through the finite values; JSON rows hold None for the others."""
    points = [chart.Sample(t, value) for t, value in values if value is not None and math.isfinite(value)]
    return chart.Line(points, style, str(number))


def _show(
    screen: Screen, title: str, lines: Sequence[chart.Line], labels: Sequence[str], values: tuple[float, float]
) -> None:
    width = min(screen.console.width, LOG_COLUMNS)
    severities = [point.x for line in lines for point in line.points if isinstance(point, chart.Sample)]
    if width < chart.MIN_WIDTH or not severities or not can_encode(chr(chart.BRAILLE), screen.console.encoding):
        return  # the table that follows has the numbers
    first, last = min(severities), max(severities)
    view = chart.View(min(first, last - 1), last, values=values)
    # soft_wrap=False: a long legend breaks between words on a narrow terminal.
    screen.console.print(Text(title, style="bold"), soft_wrap=False)
    screen.console.print(chart.legend(lines, labels), soft_wrap=False)
    screen.console.print(chart.draw(lines, view, width, LINES, x_label=X_LABEL))
    screen.console.print()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.3f}"  # z: no "-0.000"
