"""Plots in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from colddiff_cli.console.screen import COLUMNS, Screen

LINES = 16
SHOWN = 9  # rows of the table
LABELS = {
    # label, and the color as plotext and rich call it
    "gain_low": ("lowest frequency", "green+", "bright_green"),
    "gain_mid": ("middle frequency", "orange+", "bright_yellow"),
    "kept": ("pixels kept", "cyan+", "bright_cyan"),
    "colour": ("color kept", "red+", "bright_red"),
    "ssim": ("SSIM", "blue+", "bright_blue"),
}

COLORS = (("red+", "bright_red"), ("cyan+", "bright_cyan"), ("green+", "bright_green"), ("orange+", "bright_yellow"))


def show_remains(screen: Screen, rows: Sequence[dict[str, Any]]) -> None:
    """Plot what an operator leaves against t, and list some severities."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(min(screen.console.width, COLUMNS), LINES)
    plotext.ylim(0, 1)
    plotext.xlabel("t")
    shown = {key: label for key, label in LABELS.items() if rows[0][key] is not None}
    for key, (_, color, _) in shown.items():
        plotext.plot([row["t"] for row in rows], [row[key] for row in rows], color=color, marker="braille")
    # Above the plot: plotext's own legend would cover the curves where they start.
    screen.console.print(Text("   ").join(Text(f"── {label}", style=style) for label, _, style in shown.values()))
    screen.console.print(Text.from_ansi(plotext.build()))
    table = Table(box=None, pad_edge=False)
    for heading in ("t", "RMSE", *(label for label, _, _ in shown.values())):
        table.add_column(heading, justify="right")
    for index in sorted({round(i * (len(rows) - 1) / (SHOWN - 1)) for i in range(SHOWN)}):
        row = rows[index]
        table.add_row(str(row["t"]), f"{row['rmse']:.4f}", *(f"{row[key]:.3f}" for key in shown))
    screen.show(table)


def show_severities(screen: Screen, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Plot the RMSE of each kind of image against t."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(min(screen.console.width, COLUMNS), LINES)
    plotext.xlabel("t")
    plotext.ylabel("RMSE")
    for kind, (color, _) in zip(columns, COLORS, strict=False):
        values = [row["metrics"][kind]["rmse"] for row in rows]
        plotext.plot([row["t"] for row in rows], values, color=color, marker="braille")
    legend = (Text(f"── {kind}", style=style) for kind, (_, style) in zip(columns, COLORS, strict=False))
    screen.console.print(Text("   ").join(legend))
    screen.console.print(Text.from_ansi(plotext.build()))
