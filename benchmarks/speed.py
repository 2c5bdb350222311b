"""How fast colddiff is, each figure beside the field's habit measured in the same run.

Usage: python benchmarks/speed.py [--cases NAME,...] [--device cpu|cuda] [--data-dir DIR] [--rounds N] [--json FILE]
`plain` is benchmarks/plain.py: float32, eager, D step by step. Each side of a case runs in a process of its own, in
turn, `--rounds` times; figures are medians over all repeats, with the smallest and the largest, and `ratio` is the
plain side's median over ours. Without --data-dir the digits that scikit-learn brings stand in for MNIST.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIDES = ("plain", "ours")
QUICK = (
    "data.size=16",
    "model.width=8",
    "model.multipliers=[1,2]",
    "train.batch_size=4",
    "degradation.steps=5",
)


def settings(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a preset as plain tables, on the data that there are."""
    from colddiff_core import presets

    changes = list(QUICK) if arguments.quick else []
    directory = arguments.data_dir
    if directory is None:
        changes.append("data.dataset=digits")
    else:
        changes += [f"data.directory={json.dumps(str(directory))}", "data.download=false"]
    return presets.load(preset, changes).to_table()


def worker(name: str, side: str, preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own and return what it measured; raises RuntimeError that says why not."""
    command = [sys.executable, __file__, "--worker", name, side, "--device", arguments.device]
    command += ["--settings", json.dumps(settings(preset, arguments))]
    command += ["--quick"] if arguments.quick else []
    command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"{side}: {said[-1] if said else f'exit {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    """Return the median of the repeats, the smallest, the largest, and how many they are."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def measure(name: str, preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a case's rows: both sides in alternating rounds, in seconds, and the ratios."""
    told: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            told[side].append(worker(name, side, preset, arguments))
    rows = []
    for label, first in told["plain"][0]["rows"].items():
        made = {"case": name, "row": label, "images": first["images"]}
        for side in SIDES:
            made[side] = spread([s for answer in told[side] for s in answer["rows"][label]["seconds"]])
        made["ratio"] = made["plain"]["median"] / made["ours"]["median"]
        rows.append(made | {key: value for key, value in first.items() if key not in ("seconds", "images")})
    memory = {side: max(answer["memory"] for answer in told[side]) for side in SIDES}
    first = told["ours"][0]
    return {"rows": rows, "memory": memory} | {key: first[key] for key in ("device", "threads", "torch")}


def figure(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cell(row: dict[str, Any], side: str) -> str:
    """Return a side's median and its spread, as a rate where the row has images."""
    found, images = row[side], row["images"]
    numbers = [found["median"], found["low"], found["high"]]
    if images:
        numbers = [images / numbers[0], images / numbers[2], images / numbers[1]]
    middle, low, high = map(figure, numbers)
    return f"{middle} ({low}..{high})"


def show(case: dict[str, Any]) -> None:
    for row in case["rows"]:
        unit = "images/s" if row["images"] else "s"
        print(
            f"{row['case'] + ': ' + row['row']:<32}{unit:<9}{cell(row, 'plain'):<22}{cell(row, 'ours'):<22}"
            f"{'x' + figure(row['ratio']):>7}",
            flush=True,
        )
    name, memory = case["rows"][0]["case"], case["memory"]
    gib = [memory[side] / 2**30 for side in SIDES]
    print(f"{name + ': peak memory':<32}{'GiB':<9}{figure(gib[0]):<22}{figure(gib[1]):<22}", end="")
    print(f"{'x' + figure(gib[0] / gib[1]):>7}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", help="names with commas between; all of them if left out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data-dir", type=Path, help="the folder above MNIST/raw; scikit-learn's digits if left out")
    parser.add_argument("--rounds", type=int, default=2, help="how many times each side runs, in turn")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which measure nothing: does it run?")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import cases

    if arguments.worker:
        import torch

        job = cases.Job(arguments.settings, torch.device(arguments.device), arguments.quick, arguments.data_dir)
        print(json.dumps(cases.run(*arguments.worker, job)))
        return 0

    names = arguments.cases.split(",") if arguments.cases else list(cases.CASES)
    made, failed = {}, {}
    print(f"{'':<32}{'':<9}{'plain':<22}{'ours':<22}{'ratio':>7}")
    for name in names:
        try:
            made[name] = measure(name, cases.CASES[name].preset, arguments)
        except (RuntimeError, KeyError) as error:
            failed[name] = str(error)
            print(f"{name}: {error}", flush=True)
        else:
            show(made[name])
    if arguments.json:
        arguments.json.write_text(json.dumps({"cases": made, "failed": failed}, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
