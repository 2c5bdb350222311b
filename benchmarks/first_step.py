"""Time from the launch of a training to the end of its first optimizer step.

Plain: `python benchmarks/plain.py`, until it prints its first loss. Ours: `colddiff train` with all its setup, until
the run has its first line of metrics. Both are killed then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from jobs import BenchmarkJob, Rows, row

POLL_SECONDS = 0.002
TIMEOUT_SECONDS = 900.0


def _launched(command: list[str], folder: str, has_stepped: Callable[[str], bool]) -> float:
    """Return the seconds until the first step; raise RuntimeError with the last line of stderr if there is none."""
    output, errors = Path(folder) / "output", Path(folder) / "errors"
    with output.open("wb") as out, errors.open("wb") as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder)
        try:
            while time.perf_counter() - began < TIMEOUT_SECONDS:
                if has_stepped(folder):
                    return time.perf_counter() - began
                if process.poll() is not None:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise RuntimeError(lines[-1] if lines else "ended without a step")


def _repeated(job: BenchmarkJob, command: Callable[[str], list[str]], has_stepped: Callable[[str], bool]) -> Rows:
    times = []
    for _ in range(job.pick(1, 2, 3)):
        with tempfile.TemporaryDirectory() as folder:
            times.append(_launched(command(folder), folder, has_stepped))
    return {"launch to first step": row(times)}


def plain_side(job: BenchmarkJob) -> Rows:
    script = str(Path(__file__).with_name("plain.py"))
    command = [sys.executable, script, json.dumps(job.settings), str(job.device)]
    return _repeated(job, lambda folder: command, lambda folder: b"\n" in (Path(folder) / "output").read_bytes())


def ours_side(job: BenchmarkJob) -> Rows:
    from colddiff_core.config import toml

    settings = dict(job.settings)
    settings["train"] = settings["train"] | {"log_every": 1}

    def command(folder: str) -> list[str]:
        preset = Path(folder) / "preset.toml"
        preset.write_text(toml.dump(settings), encoding="utf-8")
        words = ["train", "--preset", str(preset), "--out", str(Path(folder) / "run"), "--device", str(job.device)]
        return [sys.executable, "-m", "colddiff_cli", *words]

    return _repeated(job, command, _has_logged)


def _has_logged(folder: str) -> bool:
    metrics = Path(folder) / "run" / "metrics.jsonl"
    return metrics.is_file() and b"\n" in metrics.read_bytes()
