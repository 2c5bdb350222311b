"""The cases of benchmarks/speed.py; each has a plain side (benchmarks/plain.py) and ours.

A side imports only its own code: colddiff_core is not loaded while the plain side is timed.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import first_step
import folder
import torch
from jobs import BenchmarkJob, Rows, row
from torch import Tensor

SAMPLINGS = (("tacos", 1), ("tacos", 5), ("naive", 5), ("direct", 1))


@dataclasses.dataclass(frozen=True)
class BenchmarkCase:
    """A measurement: its preset, the two sides, and the largest useful number of rounds.

    A case that measures both sides in one process has `both`, whose rows have `plain` and `ours`.
    """

    preset: str
    plain: Callable[[BenchmarkJob], Rows] | None = None
    ours: Callable[[BenchmarkJob], Rows] | None = None
    both: Callable[[BenchmarkJob], Rows] | None = None
    most_rounds: int = 99


# Training


def _steps_timed(job: BenchmarkJob, steps: Iterator[object]) -> Rows:
    """Time optimizer steps after a warm-up, in blocks on a GPU, which runs asynchronously."""
    block, training = job.pick(1, 1, 20), job.settings["train"]
    for _ in itertools.islice(steps, job.pick(1, 1, 10)):
        pass
    times = job.seconds(lambda: list(itertools.islice(steps, block)), job.pick(1, 3, 5))
    images = training["batch_size"] * training["accumulate"]
    return {"optimizer step": row([seconds / block for seconds in times], images=images)}


def train_plain(job: BenchmarkJob) -> Rows:
    import plain

    rows = _steps_timed(job, plain.train(job.settings, job.device))
    rows["optimizer step"]["flops"] = training_flops(job)
    return rows


def train_ours(job: BenchmarkJob) -> Rows:
    """Time the Trainer's own loop in a run directory, with log, heartbeat and weight average."""
    from colddiff_core import experiment, runs
    from colddiff_core.config import presets
    from colddiff_core.datasets import from_config
    from colddiff_core.training.trainer import Trainer

    config = presets.from_table(job.settings, "settings")
    sets = from_config.load_images(config, "train", has_margin=True), from_config.load_images(config, "test")
    built = experiment.build(config, sets[0].channels, _chosen(job))
    with tempfile.TemporaryDirectory() as place:
        run = runs.create(Path(place) / "run", config, {})
        steps = Trainer(built, *sets, run).steps()
        rows = _steps_timed(job, steps)
        steps.close()
        run.close()
        assert not run.checkpoints(), "a checkpoint was timed with the steps"
    return rows


def training_flops(job: BenchmarkJob) -> int:
    """Return the floating-point operations of an optimizer step: three times those of the forward passes."""
    import plain
    from torch.utils.flop_counter import FlopCounterMode

    training, size = job.settings["train"], job.settings["data"]["size"]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = plain.PlainUNet(job.channels, job.channels, job.settings["model"])
        count = training["batch_size"]
        network(torch.zeros(count, job.channels, size, size), torch.zeros(count, dtype=torch.int64))
    return 3 * training["accumulate"] * counter.get_total_flops()


def _chosen(job: BenchmarkJob) -> torch.device:
    """Return the device, set up as by the commands."""
    from colddiff_core import devices

    return devices.choose(str(job.device))


# Sampling


def _noise(job: BenchmarkJob, count: int) -> Tensor:
    shape = (count, job.channels, job.settings["data"]["size"], job.settings["data"]["size"])
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(job.device)


def _plain_parts(job: BenchmarkJob) -> tuple[Any, Any]:
    import plain

    network = plain.PlainUNet(job.channels, job.channels, job.settings["model"]).to(job.device).eval()
    return network, plain.PlainBlur(job.settings["degradation"], job.channels, job.device)


def _experiment(job: BenchmarkJob) -> Any:
    from colddiff_core import experiment
    from colddiff_core.config import presets
    from colddiff_core.models import compiling

    built = experiment.build(presets.from_table(job.settings, "settings"), job.channels, _chosen(job))
    built.restorer.unet.prepare_for_inference()  # as when a run is opened
    mode = compiling.mode(job.compile, job.device, compiling.MIN_EVALUATIONS, job.settings["data"]["size"])
    compiling.compile_network(built.restorer.unet, mode)
    return built


def _samplings(job: BenchmarkJob, restore: Callable[[str, int], object], images: int) -> Rows:
    """Time every sampler, with more repeats for short ones."""
    for _ in range(job.pick(1, 2, 3)):  # a compiled network records its graphs in the second call
        restore("direct", 1)
    rows, steps = {}, job.settings["degradation"]["steps"]
    for sampler, stride in SAMPLINGS:
        passes = 1 if sampler == "direct" else -(-steps // stride)
        repeats = job.pick(1, max(1, min(5, 8 // passes)), max(3, 40 // passes))
        times = job.seconds(lambda s=sampler, k=stride: restore(s, k), repeats)
        rows[sampler if sampler == "direct" else f"{sampler}, stride {stride}"] = row(times, images=images)
    return rows


def sample_plain(job: BenchmarkJob) -> Rows:
    import plain

    network, blur = _plain_parts(job)
    x0 = _noise(job, job.pick(2, 32, 64))
    x_t = blur(x0, blur.steps)
    return _samplings(job, lambda s, k: plain.sample(network, blur, x_t, blur.steps, s, k), len(x0))


def sample_ours(job: BenchmarkJob) -> Rows:
    from colddiff_core import sampling, seeds

    built = _experiment(job)
    x0, t = _noise(job, job.pick(2, 32, 64)), built.operator.steps
    numbers = range(len(x0))
    x_t, frozen = built.degrade(x0, t, seeds.image_generators(0, numbers))

    def restore(sampler: str, stride: int) -> Tensor:
        degraded = sampling.DegradedImages(x_t, t, frozen, numbers)
        return sampling.final(built.restore(degraded, sampling.Sampling(sampler, stride, bits=built.bits)))

    return _samplings(job, restore, len(x0))


def _single_steps(
    job: BenchmarkJob, step: Callable[[Tensor, int], object], degrade: Callable[[Tensor, int], Tensor], x: Tensor
) -> Rows:
    """Time TACoS steps across the severities, and the share of D in them.

    The severities are evenly spaced, so a step takes the mean time of a full sampling run, which is T times that.
    """
    steps = job.settings["degradation"]["steps"]
    severities = sorted({max(1, round(steps * share)) for share in (1 / 6, 1 / 2, 5 / 6)})
    for _ in range(job.pick(1, 1, 3)):
        step(x, 1)
    whole, alone = [], []
    for _ in range(job.pick(1, 2, 3)):
        for times, work in ((whole, step), (alone, lambda x, s: (degrade(x, s), degrade(x, s - 1)))):
            times.append(statistics.mean(job.seconds(lambda s=s, w=work: w(x, s), 1)[0] for s in severities))
    shares = [100 * part / total for part, total in zip(alone, whole, strict=True)]
    return {
        "a TACoS step": row(whole, images=len(x)),
        f"{len(x)} images from T = {steps}": row([steps * seconds for seconds in whole]),
        "D of a step, twice": row(alone),
        "D's share of a step": row(shares, unit="%"),
    }


def steps_plain(job: BenchmarkJob) -> Rows:
    import plain

    network, blur = _plain_parts(job)

    def step(x: Tensor, s: int) -> Tensor:
        return next(plain.sample_steps(network, blur, x, s, "tacos", 1))

    with torch.no_grad():
        return _single_steps(job, step, blur, _noise(job, job.pick(1, 2, 64)))


def steps_ours(job: BenchmarkJob) -> Rows:
    from colddiff_core import seeds
    from colddiff_core.sampling import DegradedImages, Sampling

    built = _experiment(job)
    x = _noise(job, job.pick(1, 2, 64))
    frozen = built.freeze(x, seeds.image_generators(0, range(len(x))))
    for s in range(built.operator.steps + 1):  # fill the operator's tables, which a sampler does once
        built.operator(x, s, frozen)

    def step(x: Tensor, s: int) -> object:
        return next(built.restore(DegradedImages(x, s, frozen), Sampling("tacos")))

    with torch.no_grad():
        return _single_steps(job, step, lambda x, s: built.operator(x, s, frozen), x)


# D alone


def degradations_both(job: BenchmarkJob) -> Rows:
    """Time every operator against its literal form in one process, as in benchmarks/degradations.py."""
    import degradations

    rows = {}
    for label, name, parameters, shape in degradations.CASES[:1] if job.is_quick else degradations.CASES:
        result = degradations.measure(label, name, parameters, shape, job.device)
        key = f"{label}, {shape[-1]} px"
        more = {
            "shape": shape,
            "difference": result["difference"],
            "flat": result["flat"],
            "mixed_ms": result["mixed_ms"],
        }
        rows[key] = {
            "plain": result["literal_rounds"],
            "ours": result["closed_rounds"],
            "unit": "s",
            "images": 0,
        } | more
    return rows


CASES = {
    "train-paper": BenchmarkCase("mnist-blur", train_plain, train_ours),
    "train-small": BenchmarkCase("mnist-blur-small", train_plain, train_ours),
    "sample-paper": BenchmarkCase("mnist-blur", sample_plain, sample_ours),
    "sample-128": BenchmarkCase("celeba-blur-generate", steps_plain, steps_ours),
    "first-step": BenchmarkCase("mnist-blur", first_step.plain_side, first_step.ours_side),
    "folder": BenchmarkCase("mnist-blur", folder.plain_side, folder.ours_side),
    "degradations": BenchmarkCase("mnist-blur", both=degradations_both, most_rounds=1),
}


def difference(job: BenchmarkJob) -> dict[str, float]:
    """Return the largest difference of the plain network's output from ours in float32, and the largest output."""
    import plain

    from colddiff_core.models import UNet

    settings = {key: job.settings["model"][key] for key in ("width", "multipliers", "block", "attention")}
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    ours = UNet(job.channels, job.channels, **settings).eval().to(job.device)
    theirs = plain.PlainUNet(job.channels, job.channels, settings).eval().to(job.device)
    theirs.load_state_dict(ours.state_dict())
    x, t = _noise(job, 2), torch.tensor([1, job.settings["degradation"]["steps"]], device=job.device)
    with torch.no_grad():
        a, b = ours(x, t), theirs(x, t)
    return {"difference": float((a - b).abs().max()), "largest": float(a.abs().max())}


def run(name: str, side: str, job: BenchmarkJob) -> Mapping[str, Any]:
    """Return the rows of one side of a case, and its peak memory in bytes."""
    if side == "difference":
        return difference(job)
    return {"rows": getattr(CASES[name], side)(job), "memory": job.memory()}
