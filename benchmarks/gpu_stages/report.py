"""Turn the results of benchmarks/gpu.py into a summary and the section of docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gpu_stages.bench import ROOT, Result, is_bad

PAGE, TABLE = ROOT / "docs" / "performance.md", ROOT / "docs" / "tables" / "gpu.json"
BEGIN, END = "<!-- gpu -->\n", "<!-- /gpu -->"
NOTHING = "Nothing has been measured on a GPU yet.\n"
PLAIN = "plain"
NUMBERS_SHOWN = ("speed", "generate", "train", "micro", "table")


def summary(results: Sequence[Result]) -> tuple[str, int]:
    """Return a readable summary, and how many results failed."""
    bad = [line for line in results if is_bad(line)]
    good = sum(line.get("ok") is True for line in results)
    skipped = [f"{line['stage']} {line['name']}" for line in results if "skipped" in line]
    shown = [f"{good} comparisons passed, {len(bad)} results failed"]
    shown += [json.dumps(line)[:700] for line in bad]
    shown += [f"skipped for lack of time: {', '.join(skipped)}"] if skipped else []
    numbers = [line for line in results if line["stage"] in NUMBERS_SHOWN and line["name"] != "stage"]
    shown += [json.dumps(line)[:400] for line in numbers if not is_bad(line)]
    return "\n".join(shown) + "\n", len(bad)


def write(results: Sequence[Result]) -> str:
    """Write results into the section of the page and to a JSON file; return the paths of both, as text.

    Raises:
        SystemExit: The results are from a quick run or not from a GPU.
    """
    for line in results:
        if line["name"] == "options" and (line["quick"] or not line["device"].startswith("cuda")):
            raise SystemExit("a table needs results from a GPU, and not from --quick")
    TABLE.write_text(json.dumps({"results": results}, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + section(results) + END + after, encoding="utf-8")
    return f"{PAGE.relative_to(ROOT)}, {TABLE.relative_to(ROOT)}"


def section(results: Sequence[Result]) -> str:
    """Return the section's text in Markdown; NOTHING without results."""
    if not results:
        return NOTHING
    parts = (machine, comparisons, trainings, generations, learned, kernels, literal, failures)
    return "\n".join(text for part in parts if (text := part(results)))


def of(results: Sequence[Result], stage: str, key: str) -> list[Result]:
    """Return the results of a stage that have a key."""
    return [line for line in results if line["stage"] == stage and key in line]


def figure(value: float) -> str:
    """Return a number with three significant digits."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else ""


def machine(results: Sequence[Result]) -> str:
    found: Result = {}
    for name in ("versions", "device", "at most"):
        for line in of(results, "setup", "name"):
            found |= line if line["name"] == name else {}
    if "device" not in found:
        return ""
    text = f"{found['device']}, {figure(found['memory_gib'])} GiB"
    text += f", torch {found['torch']}, CUDA {found['cuda']}" if "torch" in found else ""
    if "bf16_tflops" in found:
        rates = (
            (f"{name}_tflops", label) for name, label in (("bf16", "bfloat16"), ("tf32", "TF32"), ("float32",) * 2)
        )
        reached = ", ".join(f"{figure(found[key])} in {label}" for key, label in rates)
        text += f". A matrix product reaches {reached} (TFLOP/s), a copy {figure(found['copy_tbs'])} TB/s"
    return f"{text}.\n"


def comparisons(results: Sequence[Result]) -> str:
    """Say how many comparisons with the CPU passed; `failures` lists the others."""
    text = []
    for stage, what in (("equal", "operators, samplers, priors and networks"), ("curves", "loss curves")):
        found = of(results, stage, "ok")
        if found:
            held = sum(line["ok"] for line in found)
            text.append(f"- {held} of {len(found)} comparisons of {what} passed.\n")
    late = [line for line in of(results, "curves", "late") if "early" in line]
    for line in late:
        text.append(
            f"- Losses, {line['name']}: {line['early']:.2%} apart in the first steps, {line['late']:+.2%} later.\n"
        )
    return "".join(text)


def trainings(results: Sequence[Result]) -> str:
    found = of(results, "speed", "share_of_peak")
    plain = {line["name"].partition(" ")[0]: line for line in found if line["name"].endswith(PLAIN)}
    rows = []
    for line in found:
        preset, _, way = line["name"].partition(" ")
        base = plain.get(preset)
        ratio = f"x{figure(line['images_per_second'] / base['images_per_second'])}" if base and way != PLAIN else ""
        row = [f"`{preset}`", way, figure(line["images_per_second"]), ratio, f"{line['share_of_peak']:.1%}"]
        row += [figure(line[key]) if key in line else "" for key in ("step_ms", "cpu_ms", "peak_gib", "ready_s")]
        rows.append(row)
    head = ("training", "", "images/s", "vs plain", "of bf16 peak", "step, ms", "CPU, ms", "peak GiB", "warm-up, s")
    return table(head, sorted(rows, key=lambda row: row[0]))


def generations(results: Sequence[Result]) -> str:
    rows = []
    for line in [*of(results, "speed", "whole_s"), *of(results, "generate", "whole_s")]:
        what = f"{line['images']} images, T = {line['severities']}"
        keys = ("whole_s", "images_per_second", "step_ms", "peak_gib", "ready_s")
        rows.append([line["name"], what, *(figure(line[key]) for key in keys)])
    return table(("sampling", "", "s", "images/s", "step, ms", "peak GiB", "warm-up, s"), rows)


def learned(results: Sequence[Result]) -> str:
    text = ""
    for line in of(results, "train", "steps"):
        text += f"`mnist-blur` trained for {figure(line['elapsed'])} s: {line['steps']:,} steps, "
        text += (
            f"{figure(line['images_per_second'])} images/s, loss {line['first_loss']:.4f} to {line['last_loss']:.4f}.\n"
        )
    for line in of(results, "train", "metrics"):
        rows = []
        for name, found in line["metrics"].items():
            paper = line["paper"].get(name, {})
            rows.append([name, *(f"{found[key]:.4f}" for key in ("rmse", "ssim"))])
            rows[-1] += [f"{paper[key]:.3f}" if key in paper else "" for key in ("rmse", "ssim")]
        text += "\n" + table((f"{line['n']:,} test images", "RMSE", "SSIM", "paper's RMSE", "paper's SSIM"), rows)
    return text


def kernels(results: Sequence[Result]) -> str:
    rows = []
    for line in results:
        if line["stage"] == "micro" and not {"code", "failed", "skipped"} & set(line):
            times = (f"{key} {value:.3g}" for key, value in line.items() if isinstance(value, float) and key != "at")
            rows.append([line["name"], ", ".join(times)])
    return table(("kernel", "ms"), rows)


def literal(results: Sequence[Result]) -> str:
    rows = []
    for line in of(results, "table", "rows"):
        for label, unit, plain, ours, ratio in line["rows"]:
            rows.append([line["name"], label, unit, figure(plain), figure(ours), f"x{figure(ratio)}" if ratio else ""])
    return table(("benchmarks/speed.py", "", "", "plain", "ours", "ratio"), rows)


def failures(results: Sequence[Result]) -> str:
    """List failed comparisons, errors and what was skipped for lack of time."""
    lines = []
    for line in results:
        name = f"{line['stage']}, {line['name']}"
        if is_bad(line):
            why = line.get("failed") or line.get("said") or line.get("bad") or {
                key: line[key] for key in ("most", "early", "late", "code") if key in line
            }  # fmt: skip
            lines.append(f"- Failed: {name}: {why if isinstance(why, str) else json.dumps(why)}\n")
        elif "skipped" in line:
            lines.append(f"- Skipped for lack of time: {name}\n")
    return "".join(lines)


def current() -> list[Result]:
    """Return the results in the JSON file; none if no GPU has been measured."""
    return json.loads(Path(TABLE).read_text(encoding="utf-8"))["results"] if TABLE.exists() else []
