"""How fast colddiff is, each figure beside the field's habit measured in the same run.

Usage: python benchmarks/speed.py [--cases NAME,...] [--device cpu|cuda] [--data-dir DIR] [--rounds N] [--json FILE]
                                  [--compile MODE] [--history FILE] [--quick]
`plain` is benchmarks/plain.py: float32 as torch has it by default, eager, D step by step, images decoded one by one.
Each side of a case runs in a process of its own, in turn, `--rounds` times (D alone: both in one process, once).
Figures are medians over all repeats, with the smallest and the largest; `ratio` is the plain side's median over ours,
in seconds; `before` is our figure and the ratio of the newest line of `--history` from the same device, torch, options.
Without --data-dir the digits that scikit-learn brings stand in for MNIST, and made-up JPEGs for CIFAR-10's.
The plain side of train-small sees x_t alone; ours is the preset with its inverse, so its ratio tells too little.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import history
import torch
from jobs import BenchmarkJob, machine

HERE = Path(__file__).parent
SIDES = ("plain", "ours")
QUICK = ("data.size=16", "model.width=8", "model.multipliers=[1,2]", "train.batch_size=4", "degradation.steps=5")
PATIENCE = 3600  # seconds for one side
LINE = "{:<27}{:<9}{:<22}{:<22}{:>7}{:>13}"
SCALES = (("", 1.0, 0.1), ("m", 1e3, 1e-4), ("µ", 1e6, 0.0))  # prefix, factor, least seconds of our side


def settings(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a preset as plain tables, on the data that there are."""
    from colddiff_core.config import presets

    changes = list(QUICK) if arguments.quick else []
    if arguments.data_dir is None:
        changes.append("data.dataset=digits")
        changes.append(f"data.channels={3 if presets.load(preset).data.dataset == 'celeba' else 1}")
    else:
        changes += [f"data.directory={json.dumps(str(arguments.data_dir))}", "data.download=false"]
    return presets.load(preset, changes).to_table()


def worker(name: str, side: str, preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own and return what it measured; raises RuntimeError that says why not."""
    command = [sys.executable, __file__, "--worker", name, side, "--device", arguments.device]
    command += ["--settings", json.dumps(settings(preset, arguments) if preset else {})]
    command += ["--compile", arguments.compile]
    command += ["--quick"] if arguments.quick else []
    command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{side}: took more than {PATIENCE} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"{side}: {said[-1] if said else f'exit {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def work(name: str, side: str, job: BenchmarkJob) -> dict[str, Any]:
    """Do what `worker` asks for, in this process."""
    if name == "machine":
        return machine(job)
    found = dict(cases.run(name, side, job))
    if side == "plain":
        ours = [module for module in sys.modules if module.startswith("colddiff")]
        assert not ours, f"the plain side loaded {ours[0]}"
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Return the median of the repeats, the smallest, the largest, and how many they are."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def measure(name: str, case: cases.BenchmarkCase, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a case's rows, both sides in alternating rounds, and the most memory of each side."""
    sides = ("both",) if case.both else SIDES
    told: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(min(arguments.rounds, case.most_rounds)):
        for side in sides:
            told[side].append(worker(name, side, case.preset, arguments))
    rows = []
    for label, first in told[sides[0]][0]["rows"].items():
        made = {key: value for key, value in first.items() if key not in ("values", *SIDES)} | {"row": label}
        for side in SIDES:
            source, key = ("both", side) if case.both else (side, "values")
            made[side] = spread([value for answer in told[source] for value in answer["rows"][label][key]])
        is_ratio = first["unit"] != "%"
        made["ratio"] = made["plain"]["median"] / made["ours"]["median"] if is_ratio else 0.0
        rows.append(made)
    if not case.both:
        memory = {side: spread([answer["memory"] / 2**30 for answer in told[side]]) for side in SIDES}
        ratio = memory["plain"]["median"] / memory["ours"]["median"] if memory["ours"]["median"] else 0.0
        if name != "first-step":  # which only waits for others
            rows.append({"row": "peak memory", "unit": "GiB", "images": 0, "ratio": ratio} | memory)
    return {"rows": rows}


def with_share_of_peak(case: dict[str, Any], peak: float) -> None:
    """Add a row after one that knows its floating-point operations: its part of the device's peak, in percent."""
    for place, row in [*enumerate(case["rows"])][::-1]:
        if peak and row.get("flops"):
            share = {
                side: {
                    "median": 100 * row["flops"] / peak / row[side]["median"],
                    "low": 100 * row["flops"] / peak / row[side]["high"],
                    "high": 100 * row["flops"] / peak / row[side]["low"],
                    "n": row[side]["n"],
                }
                for side in SIDES
            }
            case["rows"].insert(place + 1, {"row": "of the bf16 peak", "unit": "%", "images": 0, "ratio": 0.0} | share)


# The table


def figure(value: float) -> str:
    """Return a number with three digits."""
    if value >= 99_950:
        return f"{value / 1000:,.0f}k"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def scale(row: dict[str, Any]) -> tuple[str, float]:
    """Return a row's unit, and what its values are multiplied with: few digits for our side."""
    unit, of_time, rest = row["unit"].partition("s")
    if unit or not of_time:
        return row["unit"], 1.0
    ours = row["ours"]["median"]
    return next((prefix + of_time + rest, factor) for prefix, factor, least in SCALES if ours >= least)


def shown(row: dict[str, Any], side: str, like: dict[str, Any]) -> list[str]:
    """Return a side's median, smallest and largest value in the unit of `like`: rates where it has images."""
    numbers = [row[side][key] for key in ("median", "low", "high")]
    if like["images"]:
        return [figure(row["images"] / numbers[n]) for n in (0, 2, 1)]
    return [figure(scale(like)[1] * number) for number in numbers]


def cell(row: dict[str, Any], side: str) -> str:
    middle, low, high = shown(row, side, row)
    return middle if low == high else f"{middle} ({low}..{high})"


def line(row: dict[str, Any], then: dict[str, Any] | None) -> str:
    """Return a row of the table; `!` marks what became slower."""
    ratio = f"x{figure(row['ratio'])}" if row["ratio"] else ""
    earlier = ""
    if then:
        mark = "!" if history.is_slower(row, then) else ""
        earlier = mark + shown(then, "ours", row)[0] + (f" x{figure(then['ratio'])}" if then["ratio"] else "")
    unit = "images/s" if row["images"] else scale(row)[0]
    columns = ("  " + row["row"], unit, cell(row, "plain"), cell(row, "ours"), ratio, earlier)
    return LINE.format(*columns).rstrip()


def introduce(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    peak = f"{found['peak'] / 1e12:.3g} TFLOP/s ({found['peak_source']})" if found["peak"] else "not known"
    print(f"{found['device']}, {found['threads']} threads, torch {found['torch']}")
    print(f"bf16 peak: {peak}")
    print("tiny sizes: these figures mean nothing" if arguments.quick else f"rounds: {arguments.rounds}")
    print(LINE.format("", "", "plain", "ours", "ratio", "before"), flush=True)


def show(name: str, case: dict[str, Any], found: dict[str, Any], earlier: list[dict[str, Any]]) -> list[str]:
    """Print a case and return what became slower."""
    print(name)
    slower = []
    for row in case["rows"]:
        then = history.before(earlier, found, name, row["row"])
        print(line(row, then))
        if then and history.is_slower(row, then):
            now, past = (shown(one, "ours", row)[0] for one in (row, then))
            slower.append(f"{name}, {row['row']}: {now} after {past} {'images/s' if row['images'] else scale(row)[0]}")
    if "difference" in case:
        check = case["difference"]
        print(f"  the networks' outputs, up to {check['largest']:.2g}, differ by {check['difference']:.1e} at most")
    sys.stdout.flush()
    return slower


def report(arguments: argparse.Namespace) -> int:
    """Measure, print and write down; returns the exit status."""
    known = cases.CASES
    names = arguments.cases.split(",") if arguments.cases else list(known)
    if unknown := [name for name in names if name not in known]:
        print(f"unknown case {unknown[0]}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    found = worker("machine", "", "", arguments) | {
        "quick": arguments.quick,
        "data": bool(arguments.data_dir),
        "compile": arguments.compile,
    }
    introduce(found, arguments)
    earlier, slower = history.read(arguments.history), []
    made: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            made[name] = measure(name, known[name], arguments)
            if name.startswith("train"):
                made[name]["difference"] = worker(name, "difference", known[name].preset, arguments)
        except Exception as error:  # whatever it is, the other cases go on
            failed[name] = " ".join(str(error).split()) or type(error).__name__
            print(f"{name}\n  failed: {failed[name]}", flush=True)
            continue
        with_share_of_peak(made[name], found["peak"])
        slower += show(name, made[name], found, earlier)
    for change in slower:
        print(f"slower than before: {change}")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = {"time": now} | found | {"rounds": arguments.rounds, "cases": made, "failed": failed}
    history.append(arguments.history, entry)
    if arguments.json:
        arguments.json.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", help=f"with commas between; all if left out: {', '.join(cases.CASES)}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data-dir", type=Path, help="the folder above MNIST/raw and cifar10-jpeg/train.tar.gz")
    parser.add_argument("--compile", default="auto", help="torch.compile's mode for our network when sampling")
    parser.add_argument("--rounds", type=int, default=2, help="how many times each side runs, in turn")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which measure nothing: does it run?")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--history", type=Path, default=HERE / "history.jsonl", help="compare with it and add to it")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.data_dir = arguments.data_dir and arguments.data_dir.resolve()
    if not arguments.worker:
        sys.path.insert(0, str(HERE.parent))
        return report(arguments)
    job = BenchmarkJob(
        arguments.settings, torch.device(arguments.device), arguments.quick, arguments.data_dir, arguments.compile
    )
    print(json.dumps(work(*arguments.worker, job)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
