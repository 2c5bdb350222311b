"""Compare training on several processes with training on one: results, speed and the cost of a failure.

Usage: python benchmarks/ranks.py [--cases same,pace,meeting,killed,elsewhere,threads] [--rounds 3] [--steps 50]
                                  [--quick] [--out FILE]
same       losses, gradient norms and weights of two processes against one's, in float32
pace       images/s of one process and of two, each with one thread
meeting    time to agree after a step and to sum the gradients, by the number of processes
killed     `--nproc 2 --max-restarts 2` with one process killed: seconds until it resumes, and the result
elsewhere  a run of two processes resumed on one and on three
threads    thread counts that give the same bits as one thread, by batch size
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
# Passes that one and two processes split alike, and passes that they do not.
CONFIGS = {
    "digits-mask": ("digits-mask", "train.batch_size=16", "train.accumulate=2"),
    "28 px": ("digits-blur", "data.size=28", "train.batch_size=16", "train.accumulate=2"),
    "28 px, one pass": ("digits-blur", "data.size=28", "train.batch_size=32", "train.accumulate=1"),
}
IMAGES = 32  # per step
QUICK = ("data.size=12", "model.width=8", "model.multipliers=[1,2]", "degradation.steps=5")
TIMEOUT_SECONDS = 600  # for a training
KILLED = ("train.checkpoint_every=20", "train.steps=100")  # for the case `killed`
ROUNDS = 100  # per message
Results = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RanksBench:
    """The folder and sizes of the measurements, and how to start a training."""

    folder: Path
    steps: int
    rounds: int
    is_quick: bool

    def words(self, name: str, run: Path, *more: str, processes: int = 1) -> list[str]:
        """Return the command line that starts a training or continues it."""
        preset, *changes = CONFIGS[name]
        changes += [setting.format(steps=self.steps) for setting in SMALL]
        changes += [*(QUICK if self.is_quick else ()), *more]
        words = [sys.executable, "-m", "colddiff_cli", "train", "--preset", preset, "--out", str(run), "--continue"]
        words += ["--device", "cpu", *(word for change in changes for word in ("--set", change))]
        return words + (["--nproc", str(processes), "--max-restarts", "2"] if processes > 1 else [])

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(words, text=True, env=environment, **pipes)

    def train(self, words: list[str]) -> None:
        """Train to the end; raise RuntimeError with the output if that fails."""
        process = self.start(words)
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        if process.returncode:
            raise RuntimeError(output[-2000:])

    def trained(self, name: str, processes: int, place: str = "") -> Path:
        """Return the run of a configuration on that many processes, trained on first use."""
        run = self.folder / f"{name.replace(' ', '-')}-{processes}{place}"
        if not run.exists():
            self.train(self.words(name, run, processes=processes))
        return run


def logged(run: Path) -> list[Results]:
    """Return the complete lines of the log, none if there is no log yet."""
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def weights(run: Path) -> torch.Tensor:
    """Return the last checkpoint's weights as one float64 vector."""
    import safetensors.torch

    newest = max((run / "checkpoints").glob("step-*"))
    tensors = safetensors.torch.load_file(newest / "model.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def difference(one: Path, other: Path, since: int = 0) -> Results:
    """Return the largest relative differences of two runs in their logs and weights."""
    pairs = [pair for pair in zip(logged(one), logged(other), strict=True) if pair[0]["step"] > since]
    assert pairs, "nothing to compare"
    assert all(a["step"] == b["step"] for a, b in pairs)
    results: Results = {"first loss": abs(pairs[0][0]["loss"] - pairs[0][1]["loss"]) / abs(pairs[0][0]["loss"])}
    results |= {key: max(abs(a[key] - b[key]) / abs(a[key]) for a, b in pairs) for key in ("loss", "grad_norm")}
    a, b = weights(one), weights(other)
    results["weights, largest"] = float((a - b).abs().max())
    results["weights, relative L2"] = float((a - b).norm() / a.norm())
    return results | {"bit for bit": bool((a == b).all())}


def same(bench: RanksBench) -> Results:
    """Compare two processes with one, and passes of 16 images with passes of 32."""
    results = {name: difference(bench.trained(name, 1), bench.trained(name, 2)) for name in CONFIGS}
    one, other = (bench.trained(name, 1) for name in ("28 px", "28 px, one pass"))
    results["one, other passes"] = difference(other, one)
    results["two, same passes"] = difference(one, bench.trained("28 px, one pass", 2))
    return results


def rate(run: Path) -> float:
    """Return the images/s after the first fifth of the steps."""
    lines = logged(run)
    first = lines[max(0, len(lines) // 5 - 1)]
    return IMAGES * (lines[-1]["step"] - first["step"]) / (lines[-1]["elapsed"] - first["elapsed"])


def pace(bench: RanksBench) -> Results:
    results = {}
    for name in ("digits-mask", "28 px"):
        rates = {
            count: [rate(bench.trained(name, count, f"-round-{n}" if n else "")) for n in range(bench.rounds)]
            for count in (1, 2)
        }
        ratio = statistics.median(rates[2]) / statistics.median(rates[1])
        results[name] = {"one": rates[1], "two": rates[2], "ratio": ratio}
    return results


def meeting(bench: RanksBench) -> Results:
    """Time messages between processes of this script."""
    results = {}
    for count in (1, 2):
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        process = bench.start([*words, __file__, "--messages"])
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        if process.returncode:
            raise RuntimeError(output[-2000:])
        results[str(count)] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    return results


def messages() -> None:
    """As one of several processes, time an agreement and a sum of gradients; the first process prints the result."""
    from colddiff_core import devices, experiment
    from colddiff_core.config import presets
    from colddiff_core.distributed import group

    job = group.join(devices.choose("cpu"))
    built = experiment.build(presets.load("digits-mask", ["train.precision=float32"]), 1, torch.device("cpu"))
    count = sum(parameter.numel() for parameter in built.restorer.parameters())
    gradient = torch.zeros(count)

    def timed(work: Callable[[], object], times: int) -> list[float]:
        times_ms = []
        for _ in range(times):
            job.all_max(0)  # start together
            began = time.perf_counter()
            work()
            times_ms.append(1000 * (time.perf_counter() - began))
        return sorted(times_ms)

    agreeing, adding = timed(lambda: job.all_max(0, 0, 0), ROUNDS), timed(lambda: job.sum(gradient), ROUNDS // 5)
    if job.is_first:
        parts = {"agreement, ms": agreeing, "gradients, ms": adding}
        print(json.dumps({"gradients, bytes": 4 * count} | {key: _spread(value) for key, value in parts.items()}))
    group.leave()


def _spread(values: list[float]) -> list[float]:
    """Return the median, the smallest and the largest."""
    return [statistics.median(values), min(values), max(values)]


def killed(bench: RanksBench) -> Results:
    """Kill the second process at a step, in several runs."""
    calm = bench.folder / "calm"
    bench.train(bench.words("digits-mask", calm, *KILLED, processes=2))
    results = {}
    for number in range(bench.rounds):
        run = bench.folder / f"killed-{number}"
        lost = _kill_once(bench, run, at=55 + number)
        results[str(number)] = lost | difference(calm, run)
    return results


def _kill_once(bench: RanksBench, run: Path, at: int) -> Results:
    process = bench.start(bench.words("digits-mask", run, *KILLED, processes=2))
    _until(process, lambda: _step(run) >= at)
    os.kill(_process_of(process.pid, rank=1), signal.SIGKILL)
    began = time.monotonic()
    _until(process, lambda: _resumed(run) is not None)
    resumed, base = time.monotonic() - began, _resumed(run)
    _until(process, lambda: _step(run) > base)  # the log was truncated to the checkpoint
    stepped = time.monotonic() - began
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    if process.returncode:
        raise RuntimeError(output[-2000:])
    failed = next(event["step"] for event in _events(run) if event["event"] == "failed")
    return {"at": failed, "steps lost": failed - base, "s to resumed": resumed, "s to a step": stepped}


def _resumed(run: Path) -> int | None:
    """Return the step that a run resumed from, None if it has not."""
    return next((event["step"] for event in _events(run) if event["event"] == "resumed"), None)


def _until(process: subprocess.Popen[str], is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not is_so():
        if process.poll() is not None or time.monotonic() > deadline:
            output, _ = process.communicate(timeout=10)
            raise RuntimeError(f"it ended: {output[-2000:]}")
        time.sleep(0.02)


def _step(run: Path) -> int:
    lines = logged(run)
    return lines[-1]["step"] if lines else 0


def _events(run: Path) -> list[Results]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def _process_of(agent: int, rank: int) -> int:
    """Return the process number of a rank among an agent's children."""
    import psutil

    children = psutil.Process(agent).children(recursive=True)
    return next(child.pid for child in children if child.environ().get("RANK") == str(rank))


def elsewhere(bench: RanksBench) -> Results:
    """Stop a run of two processes halfway, and resume it on one, two and three."""
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


def threads(bench: RanksBench) -> Results:
    """Compare thread counts on the CPU; processes that share its cores have fewer threads each."""
    from colddiff_core import experiment
    from colddiff_core.config import presets

    results = {}
    for name in ("digits-mask", "mnist-blur-small"):
        built = experiment.build(presets.load(name, list(QUICK) if bench.is_quick else []), 1, torch.device("cpu"))
        side, last = built.config.data.size, built.operator.steps
        results[name] = {}
        for count in (1, 7, 16, 50, 64, 100):
            x_t = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(count)) * 2 - 1
            frozen = built.freeze(x_t, [torch.Generator().manual_seed(number) for number in range(count)])
            outputs = {}
            for number in (1, 2, 3, 4, 6, 8, 16):
                torch.set_num_threads(number)
                with torch.no_grad():
                    outputs[number] = built.restorer(x_t, last, frozen)
            same = [str(number) for number, x in outputs.items() if torch.equal(x, outputs[1])]
            results[name][f"{count} images"] = " ".join(same)
    return results


CASES: dict[str, Callable[[RanksBench], Results]] = {
    "same": same,
    "pace": pace,
    "meeting": meeting,
    "killed": killed,
    "elsewhere": elsewhere,
    "threads": threads,
}


def formatted(value: object) -> str:
    if isinstance(value, list):
        middle, low, high = _spread([float(part) for part in value])
        return f"{middle:.3g} ({low:.3g}..{high:.3g})"
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.3g}"


def show(name: str, results: Results) -> None:
    print(name)
    for label, row in results.items():
        print(f"  {label:<19}" + ", ".join(f"{key} {formatted(value)}" for key, value in row.items()))
    sys.stdout.flush()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help=f"comma-separated: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of the pace, and kills")
    parser.add_argument("--steps", type=int, default=50, help="steps of each training")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; the numbers mean nothing"
    )
    parser.add_argument("--out", type=Path, help="add all results to this file")
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
    outputs = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            outputs[name] = CASES[name](RanksBench(Path(place), options.steps, options.rounds, options.quick))
            show(name, outputs[name])
            if options.out:
                options.out.write_text(json.dumps(outputs, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
