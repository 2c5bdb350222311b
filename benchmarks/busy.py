"""Pace of a training on an idle machine and beside one busy loop per processor: python benchmarks/busy.py

Each line is one network: images per second with a thread per processor, with as many as the load leaves, as the command
line does it, with threads that sleep while they wait, and with a single thread. Each figure is of a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = ["train.batch_size=16", "train.sample_every=0", "train.checkpoint_every=1000000", "train.precision=float32"]
WARM_STEPS, WARM_SECONDS = 5, 3.0  # not counted
FOLLOWING = "following"
WAYS: dict[str, dict[str, str]] = {
    "all threads": {},
    FOLLOWING: {},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
MOST_SECONDS = 600


def paced(width: int, seconds: float, *, is_following: bool) -> float:
    """Train for some seconds in this process; return the images per second."""
    from colddiff_core.config import presets
    from colddiff_core.distributed import threads
    from colddiff_core.training import start

    if is_following:
        threads.follow_load()
    config = presets.load("digits-blur", [*SETTINGS, f"model.width={width}", "train.steps=1000000"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = start.start(config, Path(folder) / "run", "cpu")
        started, began, last, steps = time.perf_counter(), 0.0, 0.0, 0
        for tick in trainer.steps():
            last = time.perf_counter()
            if not began and tick.step >= WARM_STEPS and last - started >= WARM_SECONDS:
                began = last
            elif began:
                steps += 1
            if began and last - began >= seconds:
                break
        trainer.run.close()
    return steps * config.train.batch_size / (last - began)


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep `count` processors busy in the context."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(width: int, seconds: float, way: str) -> float:
    """Return the images per second of a training in a new process."""
    unset = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    command = [sys.executable, __file__, "--worker", str(width), "--seconds", str(seconds)]
    command += ["--following"] if way == FOLLOWING else []
    environment = kept | WAYS[way] | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=MOST_SECONDS
    )
    return float(finished.stdout.splitlines()[-1])


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32], help="of the networks (8 16 32)")
    parser.add_argument("--seconds", type=float, default=6, help="of each training (6)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--worker", type=int, metavar="WIDTH", help="train in this process, and print its pace")
    parser.add_argument("--following", action="store_true", help="the same, with as many threads as the load leaves")
    options = parser.parse_args(arguments)
    if options.worker:
        print(paced(options.worker, options.seconds, is_following=options.following))
        return 0
    count = os.cpu_count() or 1
    rows: dict[str, dict[str, float]] = {}
    for loops in (0, count):
        with busy_loops(loops):
            for width in options.widths:
                name = f"width {width}, {f'{loops} busy loops' if loops else 'idle'}"
                rows[name] = {way: measure(width, options.seconds, way) for way in WAYS}
                if not options.json:
                    cells = (f"{way} {pace:7.1f}" for way, pace in rows[name].items())
                    print(f"{name:24} images/s: {'   '.join(cells)}", flush=True)
    if options.json:
        print(json.dumps({"processors": count, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
