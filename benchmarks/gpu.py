"""Measure everything on a GPU in one command: correctness, speed, and what a model learns in five minutes.

Usage: python benchmarks/gpu.py [--device cuda|cpu] [--data-dir DIR] [--stages NAME,...] [--budget SECONDS]
                                [--json FILE] [--out DIR] [--packed FOLDER] [--quick]
       python benchmarks/gpu.py --pack FOLDER --data-dir DIR    for a machine without network: MNIST and packages
       python benchmarks/gpu.py --table FILE...                 write results into docs/performance.md
setup     versions, the device, the rates of matrix products and copies, imports
equal     operators, samplers, priors and networks (float32, bfloat16, with gradients) against the CPU
curves    40 losses on the CPU and on the device (float32, bfloat16, compiled), and whether a repeat is bit-identical
speed     images/s of training, eager and with CUDA graphs, against benchmarks/plain.py, at 32 and 128 pixels
train     the paper's MNIST model for five minutes, then RMSE and SSIM of 2,000 test images
micro     single kernels in several dtypes and layouts
generate  64 images of 128 pixels from T = 300, eager, compiled and with CUDA graphs
table     benchmarks/speed.py
Each stage is a process with its own deadline. Results are appended to results.jsonl in --out as they come; a stage
that fails or runs out of time is recorded too. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_stages import packing, report
from gpu_stages.bench import COMMAND, RESULTS, ROOT, GpuBench, read

WORK = ROOT / "build" / "gpu"
GRACE_SECONDS = 5.0  # after a stage's deadline, until it is killed
QUICK_SECONDS = 600.0  # of each stage of a quick run


@dataclasses.dataclass(frozen=True)
class GpuStage:
    """A stage: its function, the most seconds it may take, and the fewest that make it worth starting."""

    function: str
    most: float
    least: float


STAGES = {
    "setup": GpuStage("machine.run", 60, 5),
    "equal": GpuStage("equality.run", 120, 20),
    "curves": GpuStage("curves.run", 100, 30),
    "speed": GpuStage("speeds.run", 240, 60),
    "train": GpuStage("training.run", 360, 90),
    "micro": GpuStage("kernels.run", 60, 15),
    "generate": GpuStage("speeds.run_generations", 150, 60),
    "table": GpuStage("training.run_table", 400, 20),
}


def supervised(command: Sequence[str], environment: dict[str, str], deadline: float) -> int | str:
    """Run a process until the deadline; return its exit code, or "out of time" if it had to be killed."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=max(0.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the stage and its child processes
        process.wait()


def stage_words(name: str, bench: GpuBench, deadline: float) -> list[str]:
    """Return the command of a stage."""
    words = [sys.executable, str(COMMAND), "--stage", name, "--device", bench.device, "--out", str(bench.out)]
    words += ["--work", str(bench.work), "--began", str(bench.began), "--deadline", str(deadline)]
    words += ["--data-dir", str(bench.data)] if bench.data else []
    return words + (["--quick"] if bench.is_quick else [])


def seconds_for(name: str, later: Sequence[str], left: float) -> float:
    """Return the seconds for a stage that leave each later one its minimum; 0 if there are too few to start it."""
    stage, reserved = STAGES[name], sum(STAGES[other].least for other in later)
    return min(left, stage.most, max(stage.least, left - reserved)) if left >= stage.least else 0.0


def measure(names: Sequence[str], bench: GpuBench, environment: dict[str, str]) -> None:
    """Run the stages in turn, each until its deadline."""
    for place, name in enumerate(names):
        most = seconds_for(name, names[place + 1 :], bench.left)
        if not most:
            bench.record(name, "stage", skipped=f"{max(bench.left, 0):.0f} s are left")
            continue
        began = time.time()
        deadline = min(bench.deadline, began + (QUICK_SECONDS if bench.is_quick else most))
        code = supervised(stage_words(name, bench, deadline), environment, deadline + GRACE_SECONDS)
        bench.record(name, "stage", code=code, seconds=round(time.time() - began, 1))


def stage_environment(work: Path, site: Path | None) -> dict[str, str]:
    """Return the environment of the stages: import paths, and cache folders that keep compiled code between calls."""
    paths = [str(site) if site else "", str(ROOT), os.environ.get("PYTHONPATH", "")]
    changes = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    folders = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "XDG_CACHE_HOME": "cache"}
    return os.environ | changes | {name: str(work / folder) for name, folder in folders.items()}


def run_all(options: argparse.Namespace) -> int:
    """Run the stages and write a summary; return the exit status."""
    names = options.stages.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        print(f"unknown stage {unknown[0]}; known: {', '.join(STAGES)}", file=sys.stderr)
        return 2
    out, work = (Path(folder).resolve() for folder in (options.out, options.work))
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).unlink(missing_ok=True)
    began = time.time()
    data, site = options.data_dir, None
    if options.packed:
        packed, site = packing.unpack(options.packed, work)
        data = data or packed
    bench = GpuBench(out, work, options.device, options.quick, data and data.resolve(), began, began + options.budget)
    bench.record("setup", "options", device=bench.device, quick=bench.is_quick, mnist=bool(data), stages=names)
    measure(names, bench, stage_environment(work, site))
    results = read([out / RESULTS])
    if options.json:
        options.json.write_text(json.dumps({"results": results}, indent=1) + "\n", encoding="utf-8")
    text, bad = report.summary(results)
    (out / "summary.txt").write_text(text, encoding="utf-8")
    print(text)
    return 1 if bad else 0


def run_stage(options: argparse.Namespace) -> int:
    """Run one stage in this process."""
    bench = GpuBench(
        options.out, options.work, options.device, options.quick, options.data_dir, options.began, options.deadline
    )
    sys.path.insert(1, str(ROOT))
    if options.curve:
        curves = importlib.import_module("gpu_stages.curves")
        print(json.dumps(curves.curve(bench, "cpu", options.curve, "float32", "off")[0]))
        return 0
    module, _, function = STAGES[options.stage].function.partition(".")
    stage = getattr(importlib.import_module(f"gpu_stages.{module}"), function)
    return 0 if bench.attempt(options.stage, "whole", lambda: stage(bench), needs=0) else 1


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--data-dir", type=Path, help="folder above MNIST/raw (default: the built-in digits)")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"comma-separated: {', '.join(STAGES)}")
    parser.add_argument("--budget", type=float, default=1500.0, help="seconds for all stages (default: 1500)")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", WORK / "out")), help="folder of results")
    parser.add_argument("--packed", type=Path, help="folder that --pack made")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to check that it runs; the numbers mean nothing"
    )
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="fill this folder and measure nothing")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="results to write into the docs")
    parser.add_argument("--work", type=Path, default=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--curve", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=math.inf, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.stage or options.curve:
        return run_stage(options)
    if options.pack:
        print(packing.pack(options.pack, options.data_dir))
        return 0
    if options.table:
        print(report.write(read(options.table)))
        return 0
    return run_all(options)


if __name__ == "__main__":
    sys.exit(main())
