"""Training on several processes, held to training on one: the same steps, what they cost, and what a failure costs.

Usage: python benchmarks/ranks.py [--cases same,pace,meeting,killed,elsewhere,threads] [--rounds 3] [--steps 50]
                                  [--quick] [--out FILE]
same       losses, gradient norms and weights of two processes against one's, in float32
pace       images/s of one process and of two, each with one thread
meeting    what agreeing after a step and adding up the gradients take, by the number of processes
killed     `--nproc 2 --max-restarts 2`, a process of it killed: seconds until it goes on, and what it comes to
elsewhere  a run of two processes that goes on as one, and as three
threads    with how many threads a network computes the bits that it does with one, by images of a batch
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
SMALL = ("train.steps={steps}", "train.sample_every=0", "train.log_every=1", "train.precision=float32")
# Passes that one process and two share evenly, and passes that they do not.
CONFIGS = {
    "digits-mask": ("digits-mask", "train.batch_size=16", "train.accumulate=2"),
    "28 px": ("digits-blur", "data.size=28", "train.batch_size=16", "train.accumulate=2"),
    "28 px, one pass": ("digits-blur", "data.size=28", "train.batch_size=32", "train.accumulate=1"),
}
IMAGES = 32  # of a step of each
QUICK = ("data.size=12", "model.width=8", "model.multipliers=[1,2]", "degradation.steps=5")
PATIENCE = 600  # seconds for a training
KILLED = ("train.checkpoint_every=20", "train.steps=100")  # where a process is
ROUNDS = 100  # of a message
Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is measured with."""

    folder: Path
    steps: int
    rounds: int
    is_quick: bool

    def words(self, name: str, run: Path, *more: str, processes: int = 1) -> list[str]:
        """Return the command line of a training, which goes on where there is one."""
        preset, *changes = CONFIGS[name]
        changes += [setting.format(steps=self.steps) for setting in SMALL]
        changes += [*(QUICK if self.is_quick else ()), *more]
        words = [sys.executable, "-m", "colddiff_cli", "train", "--preset", preset, "--out", str(run), "--continue"]
        words += ["--device", "cpu", *(word for change in changes for word in ("--set", change))]
        return words + (["--nproc", str(processes), "--max-restarts", "2"] if processes > 1 else [])

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        told = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(words, text=True, env=told, **pipes)

    def train(self, words: list[str]) -> None:
        """Train to the end; raises RuntimeError with what was said where that fails."""
        process = self.start(words)
        said, _ = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise RuntimeError(said[-2000:])

    def trained(self, name: str, processes: int, place: str = "") -> Path:
        """Return the run of a configuration on so many processes, trained the first time it is asked for."""
        run = self.folder / f"{name.replace(' ', '-')}-{processes}{place}"
        if not run.exists():
            self.train(self.words(name, run, processes=processes))
        return run


def logged(run: Path) -> list[Found]:
    """Return the log's lines; no line where there is no log yet, nor one that is half written."""
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def weights(run: Path) -> torch.Tensor:
    """Return the last checkpoint's weights in one row, float64."""
    import safetensors.torch

    newest = max((run / "checkpoints").glob("step-*"))
    tensors = safetensors.torch.load_file(newest / "model.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def difference(one: Path, other: Path, since: int = 0) -> Found:
    """Return how far two runs are apart: largest relative differences of what was logged, and of the weights."""
    pairs = [pair for pair in zip(logged(one), logged(other), strict=True) if pair[0]["step"] > since]
    assert pairs, "nothing to compare"
    assert all(a["step"] == b["step"] for a, b in pairs)
    found: Found = {"first loss": abs(pairs[0][0]["loss"] - pairs[0][1]["loss"]) / abs(pairs[0][0]["loss"])}
    found |= {key: max(abs(a[key] - b[key]) / abs(a[key]) for a, b in pairs) for key in ("loss", "grad_norm")}
    a, b = weights(one), weights(other)
    found["weights, largest"] = float((a - b).abs().max())
    found["weights, relative L2"] = float((a - b).norm() / a.norm())
    return found | {"bit for bit": bool((a == b).all())}


def same(bench: Bench) -> Found:
    """Two processes against one; and what comes of the passes alone, which are of 16 images or of 32."""
    found = {name: difference(bench.trained(name, 1), bench.trained(name, 2)) for name in CONFIGS}
    one, other = (bench.trained(name, 1) for name in ("28 px", "28 px, one pass"))
    found["one, other passes"] = difference(other, one)
    found["two, same passes"] = difference(one, bench.trained("28 px, one pass", 2))
    return found


def rate(run: Path) -> float:
    """Return the images/s of the steps after the first fifth."""
    lines = logged(run)
    first = lines[max(0, len(lines) // 5 - 1)]
    return IMAGES * (lines[-1]["step"] - first["step"]) / (lines[-1]["elapsed"] - first["elapsed"])


def pace(bench: Bench) -> Found:
    found = {}
    for name in ("digits-mask", "28 px"):
        rates = {
            count: [rate(bench.trained(name, count, f"-round-{n}" if n else "")) for n in range(bench.rounds)]
            for count in (1, 2)
        }
        ratio = statistics.median(rates[2]) / statistics.median(rates[1])
        found[name] = {"one": rates[1], "two": rates[2], "ratio": ratio}
    return found


def meeting(bench: Bench) -> Found:
    """By processes of this file's own: what messages take between them."""
    found = {}
    for count in (1, 2):
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        process = bench.start([*words, __file__, "--messages"])
        said, _ = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise RuntimeError(said[-2000:])
        found[str(count)] = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return found


def messages() -> None:
    """As one of several processes, time the agreement after a step and the gradients of a network; the first tells."""
    from colddiff_core import devices, experiment
    from colddiff_core.config import presets
    from colddiff_core.distributed import group

    job = group.join(devices.choose("cpu"))
    built = experiment.build(presets.load("digits-mask", ["train.precision=float32"]), 1, torch.device("cpu"))
    count = sum(parameter.numel() for parameter in built.restorer.parameters())
    gradient = torch.zeros(count)

    def timed(work: Callable[[], object], times: int) -> list[float]:
        told = []
        for _ in range(times):
            job.all_max(0)  # they begin together
            began = time.perf_counter()
            work()
            told.append(1000 * (time.perf_counter() - began))
        return sorted(told)

    agreeing, adding = timed(lambda: job.all_max(0, 0, 0), ROUNDS), timed(lambda: job.sum(gradient), ROUNDS // 5)
    if job.is_first:
        parts = {"agreement, ms": agreeing, "gradients, ms": adding}
        print(json.dumps({"gradients, bytes": 4 * count} | {key: _spread(value) for key, value in parts.items()}))
    group.leave()


def _spread(values: list[float]) -> list[float]:
    """Return the median, the smallest and the largest."""
    return [statistics.median(values), min(values), max(values)]


def killed(bench: Bench) -> Found:
    """Kill the second process at a step, time and again."""
    calm = bench.folder / "calm"
    bench.train(bench.words("digits-mask", calm, *KILLED, processes=2))
    found = {}
    for number in range(bench.rounds):
        run = bench.folder / f"killed-{number}"
        lost = _kill_once(bench, run, at=55 + number)
        found[str(number)] = lost | difference(calm, run)
    return found


def _kill_once(bench: Bench, run: Path, at: int) -> Found:
    process = bench.start(bench.words("digits-mask", run, *KILLED, processes=2))
    _until(process, lambda: _step(run) >= at)
    os.kill(_process_of(process.pid, rank=1), signal.SIGKILL)
    began = time.monotonic()
    _until(process, lambda: _resumed(run) is not None)
    resumed, base = time.monotonic() - began, _resumed(run)
    _until(process, lambda: _step(run) > base)  # the log was cut back to the checkpoint
    stepped = time.monotonic() - began
    said, _ = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise RuntimeError(said[-2000:])
    failed = next(event["step"] for event in _events(run) if event["event"] == "failed")
    return {"at": failed, "steps lost": failed - base, "s to resumed": resumed, "s to a step": stepped}


def _resumed(run: Path) -> int | None:
    """Return the step that a run has gone on from."""
    return next((event["step"] for event in _events(run) if event["event"] == "resumed"), None)


def _until(process: subprocess.Popen[str], is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if process.poll() is not None or time.monotonic() > deadline:
            said, _ = process.communicate(timeout=10)
            raise RuntimeError(f"it ended: {said[-2000:]}")
        time.sleep(0.02)


def _step(run: Path) -> int:
    lines = logged(run)
    return lines[-1]["step"] if lines else 0


def _events(run: Path) -> list[Found]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def _process_of(agent: int, rank: int) -> int:
    """Return the number of the process of a rank, among those that an agent started."""
    import psutil

    children = psutil.Process(agent).children(recursive=True)
    return next(child.pid for child in children if child.environ().get("RANK") == str(rank))


def elsewhere(bench: Bench) -> Found:
    """Stop a run of two processes half way, and go on as one, as two and as three."""
    import shutil

    half = bench.folder / "half"
    bench.train(bench.words("digits-mask", half, f"train.steps={bench.steps // 2}", processes=2))
    kept = {}
    for count in (1, 2, 3):
        run = bench.folder / f"on-{count}"
        shutil.copytree(half, run)
        words = [sys.executable, "-m", "colddiff_cli", "train", "--resume", str(run), "--device", "cpu"]
        words += ["--set", f"train.steps={bench.steps}", "--nproc", str(count)]
        bench.train(words)
        kept[count] = run
    since = bench.steps // 2
    return {f"on {count}": difference(kept[2], kept[count], since) for count in (1, 3)}


def threads(bench: Bench) -> Found:
    """On the CPU: processes that share its cores have fewer threads each than one by itself."""
    from colddiff_core import experiment
    from colddiff_core.config import presets

    found = {}
    for name in ("digits-mask", "mnist-blur-small"):
        built = experiment.build(presets.load(name, list(QUICK) if bench.is_quick else []), 1, torch.device("cpu"))
        side, last = built.config.data.size, built.operator.steps
        found[name] = {}
        for count in (1, 7, 16, 50, 64, 100):
            x_t = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(count)) * 2 - 1
            frozen = built.freeze(x_t, [torch.Generator().manual_seed(number) for number in range(count)])
            made = {}
            for number in (1, 2, 3, 4, 6, 8, 16):
                torch.set_num_threads(number)
                with torch.no_grad():
                    made[number] = built.restorer(x_t, last, frozen)
            same = [str(number) for number, x in made.items() if torch.equal(x, made[1])]
            found[name][f"{count} images"] = " ".join(same)
    return found


CASES: dict[str, Callable[[Bench], Found]] = {
    "same": same,
    "pace": pace,
    "meeting": meeting,
    "killed": killed,
    "elsewhere": elsewhere,
    "threads": threads,
}


def told(value: object) -> str:
    if isinstance(value, list):
        middle, low, high = _spread([float(part) for part in value])
        return f"{middle:.3g} ({low:.3g}..{high:.3g})"
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.3g}"


def show(name: str, found: Found) -> None:
    print(name)
    for label, row in found.items():
        print(f"  {label:<19}" + ", ".join(f"{key} {told(value)}" for key, value in row.items()))
    sys.stdout.flush()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help=f"with commas between: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often the pace is measured, and a process killed")
    parser.add_argument("--steps", type=int, default=50, help="of each training")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which measure nothing: does it run?")
    parser.add_argument("--out", type=Path, help="write everything measured to this file, beside what is there")
    parser.add_argument("--messages", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if options.messages:
        messages()
        return 0
    names = options.cases.split(",")
    if unknown := [name for name in names if name not in CASES]:
        print(f"unknown case {unknown[0]}; known: {', '.join(CASES)}", file=sys.stderr)
        return 2
    made = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            made[name] = CASES[name](Bench(Path(place), options.steps, options.rounds, options.quick))
            show(name, made[name])
            if options.out:
                options.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
