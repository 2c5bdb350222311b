"""Stages `speed` and `generate`: images per second of training steps and of complete sampling runs."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import cases
import torch
from jobs import BenchmarkJob
from speed import QUICK

from colddiff_core import devices, experiment, seeds
from colddiff_core.config import presets
from colddiff_core.config.schema import Config
from colddiff_core.datasets import ImageSet
from colddiff_core.datasets.from_config import load_images
from colddiff_core.models import compiling
from colddiff_core.sampling import DegradedImages, Sampling
from colddiff_core.training.log_meter import TrainingLog
from colddiff_core.training.step import Stepper
from gpu_stages.bench import COMMAND, GpuBench, Result

PAPER, LARGE, SMALL = "mnist-blur", "celeba-blur-generate", "mnist-blur-small"
CHANNELS = {PAPER: 1, LARGE: 3, SMALL: 1}
MADE_UP_IMAGES = 512  # of random pixels: decoding a real data set would take longer than the measurement
WARM_STEPS = 4  # a compiled network compiles in the first, records CUDA graphs in the second, then replays them
PLAIN = "plain"


@dataclasses.dataclass(frozen=True)
class TrainingSpeed:
    """A training whose speed is measured; needs: seconds that must be left, more if it compiles."""

    preset: str
    way: str
    overrides: tuple[str, ...] = ()
    needs: float = 12.0

    @property
    def label(self) -> str:
        return f"{self.preset} {self.way}"


EAGER, GRAPHS, COMPILED = "train.compile=off", "train.compile=reduce-overhead", "train.compile=default"
TF32 = "model.stem=tf32"
TRAININGS = (
    TrainingSpeed(PAPER, "eager", (EAGER,)),
    TrainingSpeed(LARGE, "eager", (EAGER,)),
    TrainingSpeed(PAPER, PLAIN),
    TrainingSpeed(LARGE, PLAIN, needs=20),
    TrainingSpeed(PAPER, "eager, stem tf32", (EAGER, TF32)),
    TrainingSpeed(LARGE, "eager, stem tf32", (EAGER, TF32)),
    TrainingSpeed(PAPER, "eager, 512 images", (EAGER, "train.accumulate=16")),
    TrainingSpeed(PAPER, "eager, float32", (EAGER, "train.precision=float32")),
    TrainingSpeed(SMALL, "eager", (EAGER,)),
    TrainingSpeed(PAPER, "CUDA graphs", (GRAPHS,), needs=50),
    TrainingSpeed(PAPER, "CUDA graphs, stem tf32", (GRAPHS, TF32), needs=50),
    TrainingSpeed(LARGE, "compiled", (COMPILED,), needs=50),
)
SAMPLED_IMAGES = (64, 512)
GENERATED_IMAGES = 64
WAYS = ("eager", "default", "reduce-overhead")


def run(bench: GpuBench) -> None:
    peak = bench.product_flops(torch.bfloat16)
    for row in (TRAININGS[0], TRAININGS[2]) if bench.is_quick else TRAININGS:
        work = plain_training if row.way == PLAIN else training
        bench.attempt("speed", row.label, lambda r=row, w=work: w(bench, r, peak), needs=row.needs)
        forget(bench)
    for count in bench.few(SAMPLED_IMAGES):
        bench.attempt("speed", f"{PAPER} eager", lambda n=count: whole(bench, PAPER, n, "eager"))


def run_generations(bench: GpuBench) -> None:
    for way in bench.few(WAYS):
        needs = 10 if way == "eager" else 40
        bench.attempt("generate", f"{LARGE} {way}", lambda w=way: whole(bench, LARGE, GENERATED_IMAGES, w), needs)
        forget(bench)


def forget(bench: GpuBench) -> None:
    """Drop compiled code and cached memory, so that they do not affect the next row."""
    torch.compiler.reset()
    if bench.is_cuda:
        torch.cuda.empty_cache()


def configured(bench: GpuBench, preset: str, overrides: tuple[str, ...]) -> Config:
    return presets.load(preset, [*overrides, *bench.pictures(CHANNELS[preset]), *(QUICK if bench.is_quick else ())])


def images_for(config: Config, channels: int) -> ImageSet:
    """Return the data set for one channel, and random pixels for three."""
    if channels == 1:
        return load_images(config, "train", has_margin=True)
    shape = (MADE_UP_IMAGES, channels, config.data.size, config.data.size)
    return ImageSet(torch.randint(0, 256, shape, generator=seeds.generator(0), dtype=torch.uint8))


def figures(job: BenchmarkJob, times: list[float], images: int, peak: float) -> Result:
    """Return the rates of steps with these durations, in seconds."""
    seconds = statistics.median(times)
    return {
        "images_per_second": images / seconds,
        "step_ms": 1e3 * seconds,
        "low_ms": 1e3 * min(times),
        "high_ms": 1e3 * max(times),
        "share_of_peak": cases.training_flops(job) / seconds / peak,
    }


def training(bench: GpuBench, row: TrainingSpeed, peak: float) -> Result:
    """Time optimizer steps in blocks, because the device works asynchronously."""
    device = devices.choose(bench.device)
    config = configured(bench, row.preset, row.overrides)
    job = BenchmarkJob(config.to_table(), device, bench.is_quick)
    images = images_for(config, CHANNELS[row.preset])
    said: list[str] = []
    stepper = Stepper(experiment.build(config, images.channels, device), images, said.append)
    log, block, numbers = TrainingLog(device, 0), job.pick(1, 1, 10), iter(range(10**9))
    start = job.now()
    for _ in range(WARM_STEPS):
        stepper.take(next(numbers), log)
    ready = job.now() - start
    if job.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    times, issued = [], []
    for _ in range(job.pick(1, 2, 5)):
        start = job.now()
        for _ in range(block):
            stepper.take(next(numbers), log)
        issued.append((time.perf_counter() - start) / block)  # CPU time to launch a step, without waiting for it
        times.append((job.now() - start) / block)
    found = figures(job, times, stepper.size, peak)
    found |= {"passes": len(stepper.draw(0)), "cpu_ms": 1e3 * statistics.median(issued)}
    return found | {"peak_gib": job.memory() / 2**30, "ready_s": ready, "ok": not said, "said": said}


def plain_training(bench: GpuBench, row: TrainingSpeed, peak: float) -> Result:
    """Time the optimizer steps of benchmarks/plain.py in its own process, from the losses that it prints."""
    config = configured(bench, row.preset, row.overrides)
    job = BenchmarkJob(config.to_table(), torch.device(bench.device), bench.is_quick)
    script = str(COMMAND.with_name("plain.py"))
    process = subprocess.Popen(
        [sys.executable, script, json.dumps(job.settings), bench.device], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    most, until = job.pick(2, 5, 60), min(40.0, bench.left - 2)
    alarm = threading.Timer(until, process.kill)
    alarm.start()
    ends = []
    try:
        for _ in process.stdout:
            ends.append(time.perf_counter())
            if len(ends) > most:
                break
    finally:
        alarm.cancel()
        process.kill()
        process.wait()
    if len(ends) < 3 - bench.is_quick:
        raise RuntimeError(f"{len(ends)} steps in {until:.0f} s")
    warm = min(5, len(ends) // 2)
    times = [after - before for before, after in zip(ends[warm - 1 :], ends[warm:], strict=False)]
    images = config.train.batch_size * config.train.accumulate
    return figures(job, times, images, peak) | {"steps": len(times)}


def whole(bench: GpuBench, preset: str, count: int, way: str) -> Result:
    """Sample from x_T to x_0 by TACoS at stride 1, as `generate` does, and time the steps after the second."""
    device = devices.choose(bench.device)
    mode = compiling.OFF if way == "eager" else way
    config = configured(bench, preset, (f"sample.compile={mode}",))
    job, channels = BenchmarkJob(config.to_table(), device, bench.is_quick), CHANNELS[preset]
    built = experiment.build(config, channels, device)
    network: Any = built.restorer.unet
    compiling.compile_network(network.prepare_for_inference(), mode)
    numbers, t = range(2 if bench.is_quick else count), built.operator.steps
    x0 = torch.rand(len(numbers), *built.shape, generator=seeds.generator(0)).to(device) * 2 - 1
    x_t, frozen = built.degrade(x0, t, seeds.image_generators(0, numbers))
    start = job.now()
    steps = built.restore(DegradedImages(x_t, t, frozen, numbers), Sampling.of(config))
    for _ in range(2):
        next(steps)
    ready = job.now() - start
    if job.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    start, taken, x = job.now(), 0, x_t
    for step in steps:
        taken, x = taken + 1, step.x
        if bench.left < 3:
            break
    each = (job.now() - start) / max(taken, 1)
    found = {"images": len(numbers), "severities": t, "step_ms": 1e3 * each, "whole_s": each * t, "steps": taken}
    return found | {
        "images_per_second": len(numbers) / (each * t),
        "ready_s": ready,
        "peak_gib": job.memory() / 2**30,
        "finite": bool(x.isfinite().all()),  # not a failure: an untrained network may diverge
    }
