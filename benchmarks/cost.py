"""A cost model of a training step on many GPUs, and a check of it on two hosts with a slow network.

Usage: python benchmarks/cost.py [--preset NAME] [--gpu H100] [--share 0.35] [--json FILE] ...
       python benchmarks/cost.py --check [--rates 50,200,1000] [--rounds 3] [--json FILE]
The first form prints tables from counted parameters and operations and from assumed rates, each an option. The second
needs root and `ip`: two network namespaces act as hosts, and the model predicts the time of a step between them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cost_model import GPU_COUNTS, STRONG, WEAK, Rates, StepCost, WorkCost, count_work, step, useful, why

LINE = "{:>5} {:>7} {:>7} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>10} {:>10}  {}"
TITLES = ("GPUs", "images", "own", "compute", "launch", "all-red.", "waits", "agree", "step", "images/s", "efficiency")
DATA = "{:>5} {:>10} {:>14} {:>14} {:>14} {:>12} {:>9}"
DATA_TITLES = ("GPUs", "images/s", "JPEG, MB/s", "decoded, MB/s", "cores a GPU", "saving", "sheets")


def milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def line(at: StepCost, alone: StepCost) -> str:
    """Return a row of the table: times in ms, efficiency relative to one GPU."""
    times = (at.compute, at.launching, at.sending, at.waiting, at.agreeing, at.total)
    efficiency = f"{100 * at.rate / alone.rate / at.count:.0f} %"
    own = math.ceil(at.images / at.count)
    columns = (at.count, f"{at.images:,}", own, *map(milliseconds, times), f"{at.rate:,.0f}", efficiency, why(at))
    return LINE.format(*columns)


def data_line(at: StepCost, work: WorkCost, rates: Rates) -> str:
    """Return a row of the table: load on disks and CPUs, and the share of time in which only process 0 works."""
    pixels = 3 * work.side**2
    loads = (at.rate * rates.file / 1e6, at.rate * pixels / 1e6)
    cores = at.rate / rates.decode / at.count
    shares = [f"{100 * part / at.total:.2g} %" for part in (at.saving, at.sheets)]
    return DATA.format(at.count, f"{at.rate:,.0f}", *(f"{value:,.0f}" for value in loads), f"{cores:.2f}", *shares)


def tables(work: WorkCost, rates: Rates) -> list[str]:
    """Return the tables of the cost model as lines of text."""
    strong = [step(work, rates, count, STRONG) for count in GPU_COUNTS]
    weak = [step(work, rates, count, WEAK * count) for count in GPU_COUNTS]
    sheet = weak[0].sheets * work.sample_every
    lines = [
        f"{work.name}, {work.side} px: {work.parameters:,} parameters, {work.flops / 1e9:,.0f} GFLOP an image "
        f"(3 x forward), {work.launches:,} kernels a pass of at most {work.passed:,}",
        f"assumed: {rates.peak / 1e12:,.0f} TFLOP/s of which {100 * rates.share:.0f} %, {rates.launch * 1e6:.0f} µs a "
        f"kernel, {rates.inside / 1e9:.0f} GB/s within {rates.node}, {rates.between / 1e9:.0f} GB/s between, "
        f"{rates.hop * 1e6:.0f} µs a hop",
        f"gradients {work.gradient / 1e6:,.0f} MB; sent a step and GPU: "
        + ", ".join(f"{at.sent / 1e6:,.0f} MB by {at.count}" for at in weak),
        f"checkpoint {work.checkpoint / 1e6:,.0f} MB, {work.checkpoint / rates.bus:.2g} s, every "
        f"{work.checkpoint_every:,} steps; sheet {sheet:.2g} s, every {work.sample_every:,}",
    ]
    for title, rows in ((f"{STRONG:,} images a step, times in ms", strong), (f"{WEAK} images a step and GPU", weak)):
        lines += ["", title, LINE.format(*TITLES, "most of it").rstrip()]
        lines += [line(at, rows[0]) for at in rows]
    lines += ["", "the same: what the images ask for, and what the first process does alone"]
    lines += [DATA.format(*DATA_TITLES), *(data_line(at, work, rates) for at in weak)]
    lines += ["", f"images of a step that are useful, where the critical batch is {rates.critical:,.0f}: "]
    lines[-1] += ", ".join(f"{100 * useful(at.images, rates.critical):.0f} % of {at.images:,}" for at in weak)
    return lines


def chosen_rates(options: argparse.Namespace) -> Rates:
    from jobs import PEAKS

    found = {field.name: getattr(options, field.name) for field in dataclasses.fields(Rates) if field.name != "peak"}
    peak = next((flops for part, flops in PEAKS if part == options.gpu), 0.0)
    if not peak:
        sys.exit(f"unknown GPU {options.gpu}; known: {', '.join(part for part, _ in PEAKS)}")
    return Rates(peak=peak, **found)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="celeba-blur", help="preset of the model")
    parser.add_argument("--gpu", default="H100", help="GPU whose published bf16 peak to use; see benchmarks/jobs.py")
    for field in dataclasses.fields(Rates):
        if field.name != "peak":
            kind: Callable[[str], Any] = type(field.default)
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=f"({field.default:g})")
    parser.add_argument("--check", action="store_true", help="predict and measure steps on two hosts")
    parser.add_argument("--rates", default="50,200,1000", help="with --check: Mbit/s between the hosts")
    parser.add_argument("--rounds", type=int, default=3, help="with --check: measurements of each rate")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args(words)
    if options.check:
        import cost_check

        return cost_check.report([int(rate) for rate in options.rates.split(",")], options.rounds, options.json)
    rates = chosen_rates(options)
    work = count_work(options.preset, rates.room)
    print("\n".join(tables(work, rates)))
    if options.json:
        steps = [step(work, rates, count, images) for count in GPU_COUNTS for images in (STRONG, WEAK * count)]
        results = {"work": work, "rates": rates, "steps": steps}
        plain = json.loads(json.dumps(results, default=dataclasses.asdict))
        options.json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
