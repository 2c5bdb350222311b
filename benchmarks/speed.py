"""Measure the speed of colddiff against a plain implementation in the same run.

Usage: python benchmarks/speed.py [--cases NAME,...] [--device cpu|cuda] [--data-dir DIR] [--rounds N] [--json FILE]
                                  [--compile MODE] [--history FILE] [--quick]
`plain` is benchmarks/plain.py: torch's default float32, eager mode, D step by step, images decoded one by one.
Each side of a case runs in its own process, alternating, `--rounds` times (D alone: both in one process, once).
Values are medians over all repeats, with the smallest and the largest; `ratio` is the plain side's median over ours,
in seconds; `before` is our value and ratio from the newest line of `--history` with the same device, torch, options.
Without --data-dir scikit-learn's digits replace MNIST, and synthetic JPEGs replace those of CIFAR-10.
The plain side of train-small sees only x_t; ours is the preset with its inverse, so its ratio is understated.
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
TIMEOUT_SECONDS = 3600  # for one side
LINE = "{:<27}{:<9}{:<22}{:<22}{:>7}{:>13}"
SCALES = (("", 1.0, 0.1), ("m", 1e3, 1e-4), ("µ", 1e6, 0.0))  # prefix, factor, smallest seconds of our side


def settings(preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a preset as plain tables, on the available data."""
    from colddiff_core.config import presets

    changes = list(QUICK) if arguments.quick else []
    if arguments.data_dir is None:
        changes.append("data.dataset=digits")
        changes.append(f"data.channels={3 if presets.load(preset).data.dataset == 'celeba' else 1}")
    else:
        changes += [f"data.directory={json.dumps(str(arguments.data_dir))}", "data.download=false"]
    return presets.load(preset, changes).to_table()


def worker(name: str, side: str, preset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one side in its own process; return its results, or raise RuntimeError with the reason."""
    command = [sys.executable, __file__, "--worker", name, side, "--device", arguments.device]
    command += ["--settings", json.dumps(settings(preset, arguments) if preset else {})]
    command += ["--compile", arguments.compile]
    command += ["--quick"] if arguments.quick else []
    command += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{side}: took more than {TIMEOUT_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"{side}: {lines[-1] if lines else f'exit {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def work(name: str, side: str, job: BenchmarkJob) -> dict[str, Any]:
    """Run the measurement of `worker` in this process."""
    if name == "machine":
        return machine(job)
    info = dict(cases.run(name, side, job))
    if side == "plain":
        ours = [module for module in sys.modules if module.startswith("colddiff")]
        assert not ours, f"the plain side loaded {ours[0]}"
    return info


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, smallest and largest of the repeats, and their number."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def measure(name: str, case: cases.BenchmarkCase, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a case's rows, both sides in alternating rounds, and the peak memory of each."""
    sides = ("both",) if case.both else SIDES
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(min(arguments.rounds, case.most_rounds)):
        for side in sides:
            answers[side].append(worker(name, side, case.preset, arguments))
    rows = []
    for label, first in answers[sides[0]][0]["rows"].items():
        results = {key: value for key, value in first.items() if key not in ("values", *SIDES)} | {"row": label}
        for side in SIDES:
            source, key = ("both", side) if case.both else (side, "values")
            results[side] = spread([value for answer in answers[source] for value in answer["rows"][label][key]])
        is_ratio = first["unit"] != "%"
        results["ratio"] = results["plain"]["median"] / results["ours"]["median"] if is_ratio else 0.0
        rows.append(results)
    if not case.both:
        memory = {side: spread([answer["memory"] / 2**30 for answer in answers[side]]) for side in SIDES}
        ratio = memory["plain"]["median"] / memory["ours"]["median"] if memory["ours"]["median"] else 0.0
        if name != "first-step":  # which only waits for other processes
            rows.append({"row": "peak memory", "unit": "GiB", "images": 0, "ratio": ratio} | memory)
    return {"rows": rows}


def with_share_of_peak(case: dict[str, Any], peak: float) -> None:
    """Add a row with the percentage of the device's peak after each row with a count of operations."""
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
    """Return a number with three significant digits."""
    if value >= 99_950:
        return f"{value / 1000:,.0f}k"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def scale(row: dict[str, Any]) -> tuple[str, float]:
    """Return a row's unit and the factor for its values, chosen for few digits on our side."""
    unit, of_time, rest = row["unit"].partition("s")
    if unit or not of_time:
        return row["unit"], 1.0
    ours = row["ours"]["median"]
    return next((prefix + of_time + rest, factor) for prefix, factor, least in SCALES if ours >= least)


def shown(row: dict[str, Any], side: str, like: dict[str, Any]) -> list[str]:
    """Return a side's median, smallest and largest value in the unit of `like`, as rates if it has images."""
    numbers = [row[side][key] for key in ("median", "low", "high")]
    if like["images"]:
        return [figure(row["images"] / numbers[n]) for n in (0, 2, 1)]
    return [figure(scale(like)[1] * number) for number in numbers]


def cell(row: dict[str, Any], side: str) -> str:
    middle, low, high = shown(row, side, row)
    return middle if low == high else f"{middle} ({low}..{high})"


def line(row: dict[str, Any], then: dict[str, Any] | None) -> str:
    """Return a row of the table; `!` marks a slowdown."""
    ratio = f"x{figure(row['ratio'])}" if row["ratio"] else ""
    earlier = ""
    if then:
        mark = "!" if history.is_slower(row, then) else ""
        earlier = mark + shown(then, "ours", row)[0] + (f" x{figure(then['ratio'])}" if then["ratio"] else "")
    unit = "images/s" if row["images"] else scale(row)[0]
    columns = ("  " + row["row"], unit, cell(row, "plain"), cell(row, "ours"), ratio, earlier)
    return LINE.format(*columns).rstrip()


def introduce(info: dict[str, Any], arguments: argparse.Namespace) -> None:
    peak = f"{info['peak'] / 1e12:.3g} TFLOP/s ({info['peak_source']})" if info["peak"] else "not known"
    print(f"{info['device']}, {info['threads']} threads, torch {info['torch']}")
    print(f"bf16 peak: {peak}")
    print("tiny sizes: these numbers mean nothing" if arguments.quick else f"rounds: {arguments.rounds}")
    print(LINE.format("", "", "plain", "ours", "ratio", "before"), flush=True)


def show(name: str, case: dict[str, Any], info: dict[str, Any], earlier: list[dict[str, Any]]) -> list[str]:
    """Print a case; return its slowdowns in words."""
    print(name)
    slower = []
    for row in case["rows"]:
        then = history.before(earlier, info, name, row["row"])
        print(line(row, then))
        if then and history.is_slower(row, then):
            now, past = (shown(one, "ours", row)[0] for one in (row, then))
            slower.append(f"{name}, {row['row']}: {now} after {past} {'images/s' if row['images'] else scale(row)[0]}")
    if "difference" in case:
        check = case["difference"]
        print(f"  the networks' outputs differ by at most {check['difference']:.1e}; largest: {check['largest']:.2g}")
    sys.stdout.flush()
    return slower


def report(arguments: argparse.Namespace) -> int:
    """Measure, print and save; return the exit status."""
    known = cases.CASES
    names = arguments.cases.split(",") if arguments.cases else list(known)
    if unknown := [name for name in names if name not in known]:
        print(f"unknown case {unknown[0]}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    info = worker("machine", "", "", arguments) | {
        "quick": arguments.quick,
        "data": bool(arguments.data_dir),
        "compile": arguments.compile,
    }
    introduce(info, arguments)
    earlier, slower = history.read(arguments.history), []
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            results[name] = measure(name, known[name], arguments)
            if name.startswith("train"):
                results[name]["difference"] = worker(name, "difference", known[name].preset, arguments)
        except Exception as error:  # the other cases still run
            failed[name] = " ".join(str(error).split()) or type(error).__name__
            print(f"{name}\n  failed: {failed[name]}", flush=True)
            continue
        with_share_of_peak(results[name], info["peak"])
        slower += show(name, results[name], info, earlier)
    for change in slower:
        print(f"slower than before: {change}")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = {"time": now} | info | {"rounds": arguments.rounds, "cases": results, "failed": failed}
    history.append(arguments.history, entry)
    if arguments.json:
        arguments.json.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", help=f"comma-separated; all by default: {', '.join(cases.CASES)}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST/raw and cifar10-jpeg/train.tar.gz")
    parser.add_argument("--compile", default="auto", help="torch.compile mode of our network for sampling")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, alternating")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; the numbers mean nothing"
    )
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument(
        "--history",
        type=Path,
        default=HERE / "history.jsonl",
        help="file of earlier results, to compare with and add to",
    )
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
