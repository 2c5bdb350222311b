"""The page and the JSON of reproduced tables: every figure in them was measured, none was typed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from colddiff_core.files import parse_json, whole

MARK = "# The paper's tables"  # how a page begins that may be written anew
PAGE, DATA = "tables.md", "tables.json"
LABELS = {"rmse": ("RMSE", 4), "ssim": ("SSIM", 3), "psnr": ("PSNR", 2), "lpips": ("LPIPS", 3)}
DISTANCES = {"fid": ("FID", 2), "fd": ("FD", 3)}
GAPS = 5  # largest ones that are listed
Record = dict[str, Any]


def picture(table: str) -> str:
    """Return the name of a table's contact sheet, beside the page."""
    return f"{table}.png"


def files(tables: Iterable[str]) -> list[str]:
    """Return the names of all that a report of these tables consists of."""
    return [PAGE, DATA, *(picture(table) for table in tables)]


def markdown(report: Record) -> str:
    """Return the page of a report."""
    measured = {tuple(row["measured"].items()) for table in report["tables"] for row in table["rows"]}
    when = "; ".join(sorted(", ".join(value for _, value in items) for items in measured))
    lines = [MARK, "", f"`{report['command']}`", "", f"Measured {when}.", ""]
    lines += [
        "Written by this command alone. n: test images, drawn from the whole set, or generated ones. "
        + ("Degraded images are rounded to 8 bits. " if report["protocol"] == "uint8" else "")
        + "One training a run. ± is half of the 95 % bootstrap interval over the images: it says nothing of how other "
        'trainings would differ. "same": the paper\'s figure lies in that interval. Of degraded images, which nobody '
        "restored, the difference is told: it shows how alike the tasks are.",
        "",
        "Paper: Bansal et al. 2022. Its FID is of Inception's features: a FD of others is not to be held against it.",
        "",
    ]
    for table in report["tables"]:
        lines += [f"## {table['title']}", "", f"{table['numbers']}.", "", *_figures(table), ""]
        lines += [line for note in table["notes"] for line in (note, "")]
        lines += [f"![{table['title']}]({picture(table['name'])})", ""]
    if report["missing"]:
        lines += ["Not measured (yet): " + ", ".join(f"`{name}`" for name in report["missing"]) + ".", ""]
    lines += ["## Runs", "", *_runs(report["runs"]), "", "## Furthest behind the paper", ""]
    for gap in report["gaps"][:GAPS]:
        label, digits = (LABELS | DISTANCES)[gap["metric"]]
        figures = f"{label} {gap['ours']:.{digits}f}, {gap['paper']:g} in the paper ({gap['share']:.0%})"
        lines.append(f"- {gap['where']}: {figures}")
    for where in report["diverged"]:
        lines.append(f"- {where}: not all pixels are numbers; the network has diverged.")
    if not report["gaps"] and not report["diverged"]:
        lines.append("No figure is known to be behind the paper's.")
    return "\n".join(lines).rstrip() + "\n"


def write(report: Record, folder: Path) -> Path:
    """Write a report's page and JSON; returns the page. Raises MachineError where the disk refuses."""
    for name, text in ((DATA, json.dumps(report, indent=1) + "\n"), (PAGE, markdown(report))):
        with whole(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
    return folder / PAGE


def read(folder: Path) -> Record:
    """Return the report that was written into a folder."""
    found: Record = parse_json((folder / DATA).read_text(encoding="utf-8"))
    return found


def _figures(table: Record) -> list[str]:
    """Return the lines of a table: each figure, then the paper's and the verdict where the paper has it too."""
    rows = table["rows"]
    shown = {key: label for key, label in (LABELS | DISTANCES).items() if any(row["metrics"].get(key) for row in rows)}
    beside = [key for key in shown if key in table["metrics"] and any(key in row["paper"] for row in rows)]
    has_fid = "fid" not in shown and any("fid" in row["paper"] for row in rows)
    head = ["", "", "n"]
    for key, (label, _) in shown.items():
        head += [label, *(["paper"] if key in beside else [])]
    head += ["paper's FID"] if has_fid else []
    body = []
    for row in rows:
        noise = f", noise {row['noise']:g}" if row.get("noise") else ""
        cells = [row["title"], row["kind"] + noise, f"{row['n']:,}"]
        for key, (_, digits) in shown.items():
            cells += [_value(row, key, digits), *([_paper(row, key)] if key in beside else [])]
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
    if not paper:
        return "-"
    if row["kind"] == "degraded" and ours is not None:
        return f"{paper:g}, {ours / paper - 1:+.1%}"
    verdict = row["verdicts"].get(key)
    return f"{paper:g}, {verdict}" if verdict else f"{paper:g}"


def _runs(abouts: Sequence[Record]) -> list[str]:
    head = ["run", "data", "training images", "T", "inputs", "parameters", "steps", "minutes", "weights"]
    body = []
    for metadata in abouts:
        seconds = metadata["seconds"]
        minutes = f"{seconds / 60:.0f}" if isinstance(seconds, int | float) else "-"
        changed = f" ({'; '.join(metadata['changed'])})" if metadata["changed"] else ""
        body.append(
            [
                f"`{metadata['preset']}`{changed}",
                f"{metadata['data']}, {metadata['size']} px",
                f"{metadata['training_images']:,}",
                str(metadata["degradation_steps"]),
                metadata["inputs"],
                f"{metadata['parameters'] / 1e6:.1f} M",
                f"{metadata['steps']:,} of {metadata['batch']}",
                minutes,
                f"`{metadata['checkpoint'][:8]}`",
            ]
        )
    return [*_laid_out(head, body), *_features(abouts)]


def _features(abouts: Sequence[Record]) -> list[str]:
    """Return a line on each kind of features that distances were measured on."""
    told: dict[str, str] = {}
    for metadata in abouts:
        features, size = metadata["features"], metadata["size"]
        if features is None:
            continue
        which = features.get("weights", "a small classifier's")
        if "accuracy" in features:
            of = "which class an image is of" if features["of"] == "classes" else "by how far an image is turned"
            which += f", right about {of} in {features['accuracy']:.1%} of the test images of {size} px"
        line = f"- {features['name']}: of {features['size']:,} features to all {features['images']:,} test images"
        told.setdefault(features["sha256"], f"{line}; {which} (`{features['sha256'][:8]}`).")
    return ["", *told.values()] if told else []


def _laid_out(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
