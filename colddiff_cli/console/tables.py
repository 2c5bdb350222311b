"""Tables of figures: ours with their uncertainty, and the paper's.

Rich is imported where a table is made: commands import this module, and completion with TAB need not wait for Rich.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from colddiff_core.paper import tables
from colddiff_core.text import one_line

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Columns = Mapping[str, tuple[str, int]]  # (label, digits) by the name of a figure
DISTANCES = dict.fromkeys(("fd", "fid", "kd", "kid"), ("{name}", 3))
FRECHET = ("fd", "fid")  # need more images than features
METRICS = {"rmse": ("RMSE", 4), "psnr": ("PSNR", 2), "ssim": ("SSIM", 3)}
LIKENESS = {"confidence": ("confidence", 3), "nearest": ("nearest", 3), "pairwise": ("pairwise", 3)}
ACCURACY = {"accuracy": ("accuracy", 3)}
DIVERSITY = {"fd": DISTANCES["fd"], "fid": DISTANCES["fid"], **ACCURACY, **LIKENESS, "classes": ("classes", 0)}
COMPARED = {"rmse": METRICS["rmse"], "ssim": METRICS["ssim"], "fd": DISTANCES["fd"], "fid": DISTANCES["fid"]}
COMPARED |= DIVERSITY
EVALUATED = METRICS | {"lpips": ("LPIPS", 3)} | DISTANCES
REPRODUCED = {"rmse": METRICS["rmse"], "ssim": METRICS["ssim"], "fd": ("FD", 3), "fid": ("FID", 2)}
COST = {"evaluations": ("steps", 0), "milliseconds": ("ms", 1)}
PUBLISHED = {"rmse": ("paper RMSE", 3), "fid": ("paper FID", 2)}
STYLES = {"better": "green", "worse": "red"}
BARS = " ▁▂▃▄▅▆▇█"
TOO_FEW_MARK = "*"  # beside a distance of too few images


def fidelity_table(title: str, rows: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Return a table of RMSE, PSNR and SSIM, a row per kind of image."""
    return _table(title, rows, METRICS)


@dataclasses.dataclass(frozen=True)
class Row:
    """The results for one kind of image, and the paper's figures."""

    kind: str
    figures: Mapping[str, Any]
    intervals: Mapping[str, Any]
    has_too_few_images: bool
    paper: Mapping[str, float]


def evaluation_table(title: str, rows: Mapping[str, Row], columns: Columns, names: Mapping[str, str]) -> Table:
    """Return a table of figures with half the width of their 95 % intervals.

    The paper's figures are below each row, with a verdict; for degraded images with the difference in percent.

    Args:
        title: The title.
        rows: Results by label.
        columns: The columns, if any row has a figure for them.
        names: Names of the distances, by key.
    """
    from rich.text import Text

    columns = measured({label: row.figures for label, row in rows.items()}, columns)
    table = _headed(title, _named(columns, names))
    for label, row in rows.items():
        table.add_row(one_line(label), *(_with_interval(row, key, digits) for key, (_, digits) in columns.items()))
        if any(key in row.paper for key in columns):
            table.add_row(Text("  paper", "dim"), *(_verdict(row, key) for key in columns))
    return table


def severity_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """Return a table of RMSE and SSIM by severity, for each kind of image."""
    from rich.table import Table

    labels = {"t": ("t", 0)}
    for key in ("rmse", "ssim"):
        labels |= {f"{kind} {key}": (f"{kind} {METRICS[key][0]}", METRICS[key][1]) for kind in columns}
    table = Table(title=one_line(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for label, _ in labels.values():
        table.add_column(one_line(label), justify="right")
    for row in rows:
        flat = {"t": row["t"]} | {
            f"{kind} {key}": row["metrics"][kind][key] for kind in columns for key in ("rmse", "ssim")
        }
        table.add_row(*(_cell(flat[key], digits) for key, (_, digits) in labels.items()))
    return table


def comparison_table(
    title: str, rows: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], paper: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Return a table of contenders: their figures, their cost, and the paper's figures."""
    shown = {key: label for key, label in PUBLISHED.items() if any(key in row for row in paper.values())}
    return _table(title, rows, _named(measured(rows, COMPARED | COST), names), paper, shown)


def diversity_table(title: str, rows: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Table:
    """Return a table of figures of images without originals."""
    return _table(title, rows, _named(measured(rows, DIVERSITY), names))


def measured(rows: Mapping[str, Mapping[str, Any]], columns: Columns) -> Columns:
    """Return the columns that any row has a figure for."""
    return {key: label for key, label in columns.items() if any(row.get(key) is not None for row in rows.values())}


def _named(columns: Columns, names: Mapping[str, str]) -> Columns:
    return {key: (label.format(name=names.get(key, key)), digits) for key, (label, digits) in columns.items()}


def _table(
    title: str,
    rows: Mapping[str, Mapping[str, Any]],
    columns: Columns,
    paper: Mapping[str, Any] | None = None,
    published: Columns | None = None,
) -> Table:
    table = _headed(title, columns)
    for label, _ in (published or {}).values():
        table.add_column(one_line(label), justify="right", style="dim")
    for kind, figures in rows.items():
        ours = [_cell(figures.get(key), digits) for key, (_, digits) in columns.items()]
        theirs = [_cell((paper or {}).get(kind, {}).get(key), digits) for key, (_, digits) in (published or {}).items()]
        table.add_row(one_line(kind), *ours, *theirs)
    return table


def _headed(title: str, columns: Columns) -> Table:
    from rich.table import Table

    # Fits 80 columns with all figures.
    table = Table(title=one_line(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for label, _ in columns.values():
        table.add_column(one_line(label), justify="right", no_wrap=True)
    return table


def _with_interval(row: Row, key: str, digits: int) -> Text:
    from rich.text import Text

    value, ends = row.figures.get(key), row.intervals.get(key)
    text = Text(_cell(value, digits))
    if row.has_too_few_images and key in FRECHET and value is not None:
        text.append(TOO_FEW_MARK, "yellow")
    if ends is not None:
        text.append(f" ±{(ends[1] - ends[0]) / 2:.{digits}f}".replace("±0.", "±."), "dim")
    return text


def _verdict(row: Row, key: str) -> Text:
    from rich.text import Text

    value, paper = row.figures.get(key), row.paper.get(key)
    if not paper or value is None:
        return Text()
    if row.kind == "degraded":
        return Text(f"{paper:g} {100 * (value / paper - 1):+.1f} %", "dim")
    verdict = tables.verdicts(
        row.kind, row.figures, row.intervals, row.paper, has_too_few_images=row.has_too_few_images
    ).get(key, "")
    return Text.assemble((f"{paper:g} ", "dim"), (verdict, STYLES.get(verdict, "dim")))


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, list):  # a histogram
        return "".join(BARS[round(count / max(value) * (len(BARS) - 1))] if max(value) else BARS[0] for count in value)
    return "-" if value is None else f"{value:.{digits}f}"
