"""Stages `train` and `table`: train and evaluate the paper's MNIST model for minutes, and run benchmarks/speed.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from speed import QUICK

from gpu_stages.bench import COMMAND, ROOT, GpuBench, Result

PRESET = "mnist-blur"
CHANGES = (  # minutes instead of days
    "train.lr=2e-4", "train.warmup=200", "train.clip=1.0", "train.ema_decay=0.999", "train.ema_every=1",
    "train.steps=200000", "train.sample_every=0", "train.checkpoint_every=2000", "train.log_every=50",
)  # fmt: skip
QUICKER = ("train.log_every=1", "train.compile=off")
TRAIN_SECONDS, TEST_IMAGES = 300.0, 2000
EVAL_SECONDS = 45.0  # reserved for the evaluation
STOP_SECONDS = 30.0  # for the last checkpoint
START_SECONDS = 60.0  # until the first logged line, while it compiles
CASES = ("sample-paper", "degradations", "train-small", "sample-128", "train-paper")
CASE_SECONDS = 30.0


def run(bench: GpuBench) -> None:
    run = bench.work / "run"
    bench.attempt("train", "training", lambda: train(bench, run), needs=5)
    bench.attempt("train", "evaluation", lambda: evaluate(bench, run), needs=5)
    bench.attempt("train", "pictures", lambda: sample(bench, run), needs=5)


def colddiff(bench: GpuBench, *words: str) -> list[str]:
    return [sys.executable, "-m", "colddiff_cli", *words, "--device", bench.device]


def train(bench: GpuBench, run: Path) -> Result:
    """Train until the time is up, then stop with SIGTERM, on which training saves a checkpoint."""
    shutil.rmtree(run, ignore_errors=True)
    changes = [*CHANGES, *bench.pictures(1), *((*QUICK, *QUICKER) if bench.is_quick else ())]
    settings = [word for change in changes for word in ("--set", change)]
    process = subprocess.Popen(
        colddiff(bench, "train", "--preset", PRESET, "--out", str(run), *settings), env=environment()
    )
    began, seconds = time.time(), min(TRAIN_SECONDS, max(5.0, bench.left - EVAL_SECONDS))
    seconds = 1.0 if bench.is_quick else seconds
    while process.poll() is None and time.time() < began + seconds + (0 if lines(run, "metrics") else START_SECONDS):
        time.sleep(0.2)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        code: Any = process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        code = "killed"
    logged = lines(run, "metrics")
    if not logged:
        return {"code": code, "failed": "no metrics", "events": lines(run, "events")[-8:]}
    shutil.copy(run / "metrics.jsonl", bench.out)
    rates = [line["images_per_second"] for line in logged[2:] or logged]
    first, last = logged[0], logged[-1]
    return {
        "code": code,
        "steps": last["step"],
        "elapsed": last["elapsed"],
        "images_per_second": statistics.median(rates),
        "first_loss": first["loss"],
        "last_loss": last["loss"],
        "events": lines(run, "events")[-8:],
    }


def lines(run: Path, name: str) -> list[Result]:
    """Return the complete lines of a run's log; none if there is no log yet."""
    path = run / f"{name}.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def evaluate(bench: GpuBench, run: Path) -> Result:
    count = "16" if bench.is_quick else str(TEST_IMAGES)
    printed = finished(bench, colddiff(bench, "eval", str(run), "--n", count, "--features", "none", "--json"))
    found = json.loads(printed.splitlines()[-1])
    return {key: found[key] for key in ("n", "t", "step", "precision", "metrics", "intervals", "paper")}


def sample(bench: GpuBench, run: Path) -> Result:
    out = bench.out / "restored.png"
    finished(bench, colddiff(bench, "sample", str(run), "--out", str(out), "--force"))
    return {"file": out.name, "bytes": out.stat().st_size}


def run_table(bench: GpuBench) -> None:
    for case in bench.few(CASES):
        bench.attempt("table", case, lambda c=case: measured(bench, c), needs=2 if bench.is_quick else CASE_SECONDS)


def measured(bench: GpuBench, case: str) -> Result:
    """Run a case of benchmarks/speed.py with one round."""
    answer = bench.work / "speed.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, str(COMMAND.with_name("speed.py")), "--device", bench.device, "--cases", case]
    command += ["--rounds", "1", "--compile", "off", "--json", str(answer), "--history", str(bench.work / "history")]
    command += ["--data-dir", str(bench.data)] if bench.data and case != "sample-128" else []
    command += ["--quick"] if bench.is_quick else []
    finished(bench, command)
    rows = json.loads(answer.read_text(encoding="utf-8"))["cases"][case]["rows"]
    return {"rows": [[r["row"], r["unit"], r["plain"]["median"], r["ours"]["median"], r["ratio"]] for r in rows]}


def finished(bench: GpuBench, command: list[str]) -> str:
    """Run a command until the deadline and return what it printed; raise RuntimeError with its last lines."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=min(600.0, max(1.0, bench.left)),
        env=environment(),
    )
    print(done.stdout[-2500:], done.stderr[-1000:], flush=True)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {(done.stderr.strip() or done.stdout.strip())[-500:]}")
    return done.stdout


def environment() -> dict[str, str]:
    """Return the environment of a process that can import this project."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
