"""Stage `curves`: losses of the same steps on the CPU and on the device, in float32 and bfloat16, and compiled."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

import torch

from colddiff_core import devices, experiment
from colddiff_core.config import presets
from colddiff_core.datasets.from_config import load_images
from colddiff_core.training.log_meter import TrainingLog
from colddiff_core.training.step import Stepper
from gpu_stages.bench import COMMAND, GpuBench, Result

PRESET = "mnist-blur-small"
LOOKS = {  # networks: the paper's kind, and a consistent one with an inverse
    "convnext": (
        "model.inputs=plain", "model.consistent=false", "model.block=convnext", "model.attention=all",
        "train.batch_size=32", "train.accumulate=2",
    ),
    "resnet": (),
}  # fmt: skip
TINY = ("model.width=8", "model.multipliers=[1,2]", "train.batch_size=8", "data.size=16")
COMPILED = (("convnext", "reduce-overhead"), ("resnet", "default"))
COMPILE_SECONDS = 45.0  # needed to start a compiled training
EARLY_STEPS, LATE_STEPS = 5, 15
MOST_EARLY = {"float32": 0.02, "bf16": 0.05}  # relative difference, before rounding errors grow
MOST_LATE = 0.05


def run(bench: GpuBench) -> None:
    on_cpu = {look: started(bench, look) for look in LOOKS}  # in parallel, on CPU cores that the GPU stages leave idle
    found: dict[str, list[float]] = {}

    def on_device(look: str, precision: str, mode: str = "off") -> Result:
        began = time.time()
        losses, _, said = curve(bench, bench.device, look, precision, mode)
        found[f"{look} {precision} {mode}"] = losses
        late = statistics.mean(losses[-LATE_STEPS:])
        return {
            "ok": not said,
            "first": losses[0],
            "late": late,
            "seconds": round(time.time() - began, 1),
            "said": said,
        }

    for look in LOOKS:
        for precision in MOST_EARLY:
            bench.attempt("curves", f"{look} {precision}", lambda k=look, p=precision: on_device(k, p))
        bench.attempt("curves", f"{look} bf16, the same bits twice", lambda k=look: repeated(bench, k))
    for look, process in on_cpu.items():
        bench.attempt("curves", f"{look} on the cpu", lambda k=look, p=process: ended(bench, k, p, found))
        for precision in MOST_EARLY:
            compare(bench, found, look, precision, "off")
    for look, mode in bench.few(COMPILED) if bench.is_cuda else ():  # on a CPU compiling takes minutes
        bench.attempt(
            "curves", f"{look} bf16 {mode}", lambda k=look, m=mode: on_device(k, "bf16", m), needs=COMPILE_SECONDS
        )
        compare(bench, found, look, "bf16", mode)
        torch.compiler.reset()


def curve(
    bench: GpuBench, device: str, look: str, precision: str, mode: str
) -> tuple[list[float], list[torch.Tensor], list[str]]:
    """Train a few steps; return their losses, the weights, and messages about problems."""
    place = devices.choose(device)
    overrides = [*bench.pictures(1), *LOOKS[look], *(TINY if bench.is_quick else ())]
    config = presets.load(PRESET, [*overrides, f"train.precision={precision}", f"train.compile={mode}"])
    images = load_images(config, "train", has_margin=True)
    said: list[str] = []
    stepper, log = Stepper(experiment.build(config, images.channels, place), images, said.append), TrainingLog(place, 0)
    steps = 3 if bench.is_quick else 40
    for step in range(steps):
        stepper.take(step, log)
    losses = torch.cat(log.losses).view(steps, -1).mean(1).tolist()
    return losses, [weight.detach() for weight in stepper.parts.network.parameters()], said


def repeated(bench: GpuBench, look: str) -> Result:
    """Train twice from the same seed and compare the weights."""
    (_, first, _), (_, second, _) = (curve(bench, bench.device, look, "bf16", "off") for _ in range(2))
    return {"ok": all(torch.equal(a, b) for a, b in zip(first, second, strict=True))}


def started(bench: GpuBench, look: str) -> subprocess.Popen[str]:
    """Start a training on the CPU, which prints its losses."""
    command = [sys.executable, str(COMMAND), "--curve", look, "--out", str(bench.out), "--work", str(bench.work)]
    command += ["--data-dir", str(bench.data)] if bench.data else []
    command += ["--quick"] if bench.is_quick else []
    threads = 1 if bench.is_quick else max(1, (os.cpu_count() or 2) // len(LOOKS) - 1)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def ended(bench: GpuBench, look: str, process: subprocess.Popen[str], found: dict[str, list[float]]) -> Result:
    """Wait for a training on the CPU and keep its losses."""
    try:
        printed, _ = process.communicate(timeout=max(1.0, min(bench.left - 5, 600.0)))
    finally:
        process.kill()
    found[f"{look} cpu"] = losses = json.loads(printed.splitlines()[-1])
    return {"first": losses[0], "late": statistics.mean(losses[-LATE_STEPS:])}


def compare(bench: GpuBench, found: dict[str, list[float]], look: str, precision: str, mode: str) -> None:
    """Record how far a loss curve is from the CPU's in float32, if both exist."""
    expected, own = found.get(f"{look} cpu"), found.get(f"{look} {precision} {mode}")
    if expected is None or own is None:
        return
    pairs = zip(expected[:EARLY_STEPS], own[:EARLY_STEPS], strict=True)
    early = max(abs(a - b) / a for a, b in pairs)
    late = statistics.mean(own[-LATE_STEPS:]) / statistics.mean(expected[-LATE_STEPS:]) - 1
    is_ok = early < MOST_EARLY[precision] and abs(late) < MOST_LATE
    label = f"{look} {precision}{'' if mode == 'off' else f' {mode}'} against the cpu"
    bench.record("curves", label, ok=is_ok, early=early, late=late)
