"""The page and the JSON of reproduced tables: every figure in them was measured, none was typed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colddiff_core.files import whole

MARK = "# The paper's tables"  # how a page begins that may be written anew
PAGE, DATA = "tables.md", "tables.json"
LABELS = {"rmse": ("RMSE", 4), "ssim": ("SSIM", 3), "psnr": ("PSNR", 2), "lpips": ("LPIPS", 3)}
DISTANCES = ("fid", "fd")
GAPS = 5  # largest ones that are listed
Record = dict[str, Any]


def picture(table: str) -> str:
    """Return the name of a table's contact sheet, beside the page."""
    return f"{table}.png"


def markdown(report: Record) -> str:
    """Return the page of a report."""
    n = sorted({about["n"] for about in report["runs"]})
    lines = [MARK, "", f"`{report['command']}`", ""]
    lines += [
        f"Made by this command alone, {report['date']}, on {report['hardware']}; {report['software']}. "
        f"{' and '.join(f'{count:,}' for count in n)} test images a row, drawn from the set; "
        + ("degraded images rounded to 8 bits. " if report["protocol"] == "uint8" else "degraded images as floats. ")
        + "One training a row. ± is half of the 95 % bootstrap interval over the images: it says nothing of how other "
        'trainings would differ. "same": the paper\'s figure lies in that interval. Of degraded images the difference '
        "is told: they show how alike the tasks are.",
        "",
        "Paper: Bansal et al. 2022; its FID is of Inception's features and stands beside no figure of ours unless that "
        "is FID too.",
        "",
    ]
    for table in report["tables"]:
        lines += [f"## {table['title']}", "", f"{table['numbers']}.", "", *_figures(table["rows"]), ""]
        lines += [line for note in table["notes"] for line in (note, "")]
        lines += [f"![{table['title']}]({picture(table['name'])})", ""]
    if report["missing"]:
        lines += ["Not measured (yet): " + ", ".join(f"`{name}`" for name in report["missing"]) + ".", ""]
    lines += ["## Runs", "", *_runs(report["runs"]), "", "## Furthest behind the paper", ""]
    for gap in report["gaps"][:GAPS]:
        label, digits = LABELS.get(gap["metric"], (gap["metric"].upper(), 3))
        lines.append(
            f"- {gap['where']}: {label} {gap['ours']:.{digits}f}, {gap['paper']:g} in the paper ({gap['share']:.0%})"
        )
    if not report["gaps"]:
        lines.append("No figure is behind the paper's.")
    return "\n".join(lines).rstrip() + "\n"


def write(report: Record, folder: Path) -> Path:
    """Write a report's page and JSON; returns the page. Raises MachineError where the disk refuses."""
    for name, text in ((DATA, json.dumps(report, indent=1) + "\n"), (PAGE, markdown(report))):
        with whole(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
    return folder / PAGE


def _figures(rows: Sequence[Record]) -> list[str]:
    """Return a table of rows: each figure, then the paper's and the verdict where any row has one."""
    head = ["", ""]
    columns = [key for key in LABELS if any(row["metrics"].get(key) is not None for row in rows)]
    distance = next((key for key in DISTANCES if any(row["metrics"].get(key) is not None for row in rows)), None)
    has_fid = any("fid" in row["paper"] for row in rows)
    published = [key for key in columns if any(key in row["paper"] for row in rows)]
    for key in columns:
        head += [LABELS[key][0], *(["paper"] if key in published else [])]
    head += [distance.upper()] if distance else []
    head += ["paper's FID"] if has_fid else []
    body = []
    for row in rows:
        cells = [row["title"], row["kind"]]
        for key in columns:
            cells += [_value(row, key, LABELS[key][1]), *([_paper(row, key)] if key in published else [])]
        cells += [_value(row, distance, 3)] if distance else []
        cells += [_paper(row, "fid")] if has_fid else []
        body.append(cells)
    return _laid_out(head, body)


def _value(row: Record, key: str, digits: int) -> str:
    value, ends = row["metrics"].get(key), row["intervals"].get(key)
    if value is None:
        return "-"
    scarce = " (too few images)" if row["is_scarce"] and key in DISTANCES else ""
    return f"{value:.{digits}f}" + (f" ±{(ends[1] - ends[0]) / 2:.{digits}f}" if ends else "") + scarce


def _paper(row: Record, key: str) -> str:
    paper, ours = row["paper"].get(key), row["metrics"].get(key)
    if paper is None:
        return "-"
    if ours is None:
        return f"{paper:g}"
    return f"{paper:g}, " + (f"{ours / paper - 1:+.1%}" if row["kind"] == "degraded" else row["verdicts"][key])


def _runs(abouts: Sequence[Record]) -> list[str]:
    head = ["run", "data", "training images", "T", "inputs", "parameters", "steps", "minutes", "weights"]
    body = []
    for about in abouts:
        minutes = "-" if about["seconds"] is None else f"{about['seconds'] / 60:.0f}"
        changed = f" ({'; '.join(about['changed'])})" if about["changed"] else ""
        body.append(
            [
                f"`{about['preset']}`{changed}",
                f"{about['data']}, {about['size']} px",
                f"{about['training_images']:,}",
                str(about["degradation_steps"]),
                about["inputs"],
                f"{about['parameters'] / 1e6:.1f} M",
                f"{about['steps']:,} of {about['batch']}",
                minutes,
                f"`{about['checkpoint'][:8]}`",
            ]
        )
    named = {}
    for about in abouts:
        if about["features"]:
            named[about["features"]["name"]] = about["features"]
    told = [""]
    for name, features in named.items():
        if "accuracy" in features:
            told.append(
                f"{name}: Frechet distance of a small classifier's features, right about "
                f"{'which class an image is of' if features['of'] == 'classes' else 'by how far an image is turned'} "
                f"in {features['accuracy']:.1%} of the test images (`{features['sha256'][:8]}`).  "
            )
        else:
            told.append(f"{name}: {features['weights']} (`{features['sha256'][:8]}`).  ")
    return _laid_out(head, body) + told


def _laid_out(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]
