"""What commands show: tables and pictures on the terminal, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Columns = Mapping[str, tuple[str, int]]  # label and digits, by the figure's name
METRICS = {"rmse": ("RMSE", 4), "psnr": ("PSNR", 2), "ssim": ("SSIM", 3)}
DIVERSITY = {
    "distance": ("FD-{data}", 3),
    "confidence": ("confidence", 3),
    "nearest": ("nearest", 3),
    "pairwise": ("pairwise", 3),
    "classes": ("classes", 0),
}
COMPARED = {"rmse": METRICS["rmse"], "ssim": METRICS["ssim"], "distance": DIVERSITY["distance"]}
COMPARED |= {"accuracy": ("accuracy", 3)} | DIVERSITY
COST = {"evaluations": ("steps", 0), "milliseconds": ("ms", 1)}
PUBLISHED = {"rmse": ("paper RMSE", 3), "ssim": ("paper SSIM", 3), "fid": ("paper FID", 2)}
BARS = " ▁▂▃▄▅▆▇█"
COLUMNS = 80
LOG_COLUMNS = 120  # where there is no terminal to fit
SHOWN = 4  # images on a terminal with room for them
PROMPT_LINES = 4  # what a picture leaves to the text after it


class Screen:
    """Text for people on stdout, or on stderr where stdout is one JSON object."""

    def __init__(self, is_json: bool = False) -> None:
        self.is_json = is_json
        self.console = Console(stderr=is_json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = LOG_COLUMNS

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal

    def say(self, text: str = "") -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a line that wants attention."""
        self.console.print(f"warning: {text}", markup=False, style="yellow")

    def show(self, table: Table) -> None:
        """Print a table."""
        if table.box is None:
            table.padding = (0, 2 if self.console.width > COLUMNS else 1, 0, 0)
        self.console.print(table)

    def picture(self, picture: Image.Image) -> None:
        """Draw a picture where there is a terminal: Kitty, Sixel, else half-blocks."""
        if not self.is_terminal:
            return
        from colddiff_cli import drawing

        # A cell is about twice as high as wide; a picture higher than the screen would scroll out of sight.
        fitting = 2 * (self.console.height - PROMPT_LINES) * picture.width // picture.height
        width = max(1, min(self.console.width, COLUMNS, fitting))
        self.console.print(drawing.renderable()(picture, width=width, height="auto"))

    def rows(self, columns: Mapping[str, Tensor]) -> None:
        """Draw the first images of a sheet where there is a terminal: a row each, a column per kind."""
        if not self.is_terminal:
            return
        import torch

        from colddiff_core import images

        lines = COLUMNS // len(columns) // 2  # of one image at full width
        count = max(1, min(SHOWN, (self.console.height - PROMPT_LINES) // lines))
        framed = [torch.nn.functional.pad(stack[:count], (1, 1, 1, 1), value=-1.0) for stack in columns.values()]
        abreast = torch.cat(framed, dim=-1)
        each = min(self.console.width, COLUMNS) // len(columns)
        self.say("".join(f"{name:<{each}}" for name in columns))
        self.picture(images.to_pillow(images.tile(abreast, columns=1)))

    def result(self, values: Mapping[str, Any], last: Path | None = None) -> None:
        """End a command: the JSON object where it was asked for, else the path of what was written."""
        if self.is_json:
            sys.stdout.write(json.dumps(_plain(values), allow_nan=False, default=str) + "\n")
        elif last is not None:
            self.say(str(last))


def _plain(value: Any) -> Any:
    """Return values that JSON can hold: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fidelity_table(title: str, rows: Mapping[str, Mapping[str, float | None]], paper: Mapping[str, Any]) -> Table:
    """Return a table of metrics by kind of image, the paper's figures beside ours where there are any."""
    published = {kind: paper[kind] for kind in rows if isinstance(paper.get(kind), Mapping)}
    shown = {key: PUBLISHED[key] for key in ("rmse", "ssim")} if published else {}
    return _table(title, rows, METRICS, published, shown)


def comparison_table(
    title: str, rows: Mapping[str, Mapping[str, Any]], paper: Mapping[str, Mapping[str, Any]], data: str
) -> Table:
    """Return a table of contenders: what was measured of any of them, what it cost, and the paper's figures."""
    published = {key: label for key, label in PUBLISHED.items() if key != "ssim"}
    shown = {key: label for key, label in published.items() if any(key in row for row in paper.values())}
    return _table(title, rows, _named(measured(rows, COMPARED | COST), data), paper, shown)


def diversity_table(title: str, rows: Mapping[str, Mapping[str, Any]], data: str) -> Table:
    """Return a table of what images that answer to no original are like."""
    return _table(title, rows, _named(measured(rows, DIVERSITY), data), {}, {})


def measured(rows: Mapping[str, Mapping[str, Any]], columns: Columns) -> Columns:
    """Return the columns that any row has a figure for."""
    return {key: label for key, label in columns.items() if any(row.get(key) is not None for row in rows.values())}


def _named(columns: Columns, data: str) -> Columns:
    return {key: (label.format(data=data), digits) for key, (label, digits) in columns.items()}


def _table(
    title: str, rows: Mapping[str, Mapping[str, Any]], columns: Columns, paper: Mapping[str, Any], published: Columns
) -> Table:
    # Narrow enough for 80 columns with every figure.
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for label, _ in columns.values():
        table.add_column(label, justify="right", no_wrap=True)
    for label, _ in published.values():
        table.add_column(label, justify="right", style="dim")
    for kind, figures in rows.items():
        ours = [_cell(figures.get(key), digits) for key, (_, digits) in columns.items()]
        theirs = [_cell(paper.get(kind, {}).get(key), digits) for key, (_, digits) in published.items()]
        table.add_row(kind, *ours, *theirs)
    return table


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, list):  # a histogram
        return "".join(BARS[round(count / max(value) * (len(BARS) - 1))] if max(value) else BARS[0] for count in value)
    return "-" if value is None else f"{value:.{digits}f}"
