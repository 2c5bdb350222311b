"""What benchmarks/speed.py measures: each case has a plain side (benchmarks/plain.py) and ours.

A side runs in a process of its own and imports its own code alone: nothing of colddiff_core is loaded where the plain
side is timed.
"""

from __future__ import annotations

import dataclasses
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Rows = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a side is given.

    settings: a resolved preset as plain tables; directory: of the data sets, None for what is built in.
    """

    settings: Mapping[str, Any]
    device: torch.device
    is_quick: bool
    directory: Path | None = None

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def pick(self, quick: int, cpu: int, cuda: int) -> int:
        """Return the count that suits the machine."""
        return quick if self.is_quick else cuda if self.is_cuda else cpu

    def now(self) -> float:
        """Return the time, in seconds, once the device has done what it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, work: Callable[[], object], repeats: int) -> list[float]:
        """Return the time of each repeat."""
        times = []
        for _ in range(repeats):
            start = self.now()
            work()
            times.append(self.now() - start)
        return times


@dataclasses.dataclass(frozen=True)
class Case:
    """Something measured: its preset, the two sides, and changes to the preset."""

    preset: str
    plain: Callable[[Job], Rows]
    ours: Callable[[Job], Rows]


def row(seconds: list[float], images: float = 0, **more: Any) -> dict[str, Any]:
    """Return a measured row; with `images`, of each repeat, it is told in images per second."""
    return {"seconds": seconds, "images": images} | more


# Training


def _steps_timed(job: Job, steps: Iterator[object], first: int, name: str) -> Rows:
    """Time optimizer steps: blocks of them on a GPU, which works ahead of Python."""
    block = job.pick(1, 1, 20)
    for _ in itertools.islice(steps, first):
        pass
    times = job.seconds(lambda: list(itertools.islice(steps, block)), job.pick(1, 3, 5))
    training = job.settings["train"]
    images = training["batch_size"] * training["accumulate"]
    return {name: row([seconds / block for seconds in times], images)}


def train_plain(job: Job) -> Rows:
    import plain

    rows = _steps_timed(job, plain.train(job.settings, job.device), job.pick(1, 1, 10), "optimizer step")
    rows["optimizer step"]["flops"] = training_flops(job.settings)
    return rows


def train_ours(job: Job) -> Rows:
    from colddiff_core import runs

    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(job, Path(folder) / "run")
        steps = trainer.steps()
        rows = _steps_timed(job, steps, job.pick(1, 1, 10), "optimizer step")
        steps.close()
        trainer.run.close()
        assert not runs.Run(Path(folder) / "run").checkpoints(), "a checkpoint was timed with the steps"
    return rows


def _trainer(job: Job, path: Path) -> Any:
    from colddiff_core import experiment, presets, runs
    from colddiff_core.training import Trainer

    config = presets.from_table(job.settings, "settings")
    sets = experiment.load_images(config, "train"), experiment.load_images(config, "test")
    built = experiment.build(config, sets[0].channels, _chosen(job))
    return Trainer(built, *sets, runs.create(path, config, {}))


def _chosen(job: Job) -> torch.device:
    """Return the device, set up as the commands set it up."""
    from colddiff_core import devices

    return devices.choose(str(job.device))


def training_flops(settings: Mapping[str, Any]) -> int:
    """Return the floating-point operations of an optimizer step: the forward passes', three times."""
    import plain
    from torch.utils.flop_counter import FlopCounterMode

    training, size = settings["train"], settings["data"]["size"]
    channels = settings["data"]["channels"] or 1
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = plain.PlainUNet(channels, channels, settings["model"])
        count = training["batch_size"]
        network(torch.zeros(count, channels, size, size), torch.zeros(count, dtype=torch.int64))
    return 3 * training["accumulate"] * counter.get_total_flops()


# Sampling

SAMPLINGS = (("tacos", 1), ("tacos", 5), ("naive", 5), ("direct", 1))


def _samplings(job: Job, restore: Callable[[Tensor, str, int], Tensor], x: Tensor) -> Rows:
    """Time every sampler: as many repeats as make a few seconds of network passes."""
    restore(x, "direct", 1)
    rows = {}
    steps = job.settings["degradation"]["steps"]
    for sampler, stride in SAMPLINGS:
        passes = 1 if sampler == "direct" else -(-steps // stride)
        repeats = job.pick(1, max(1, min(5, 8 // passes)), max(3, 40 // passes))
        times = job.seconds(lambda s=sampler, k=stride: restore(x, s, k), repeats)
        rows[f"{sampler}, stride {stride}" if sampler != "direct" else sampler] = row(times, len(x))
    return rows


def _picture(job: Job, count: int) -> Tensor:
    channels, size = job.settings["data"]["channels"] or 1, job.settings["data"]["size"]
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def sample_plain(job: Job) -> Rows:
    import plain

    x0 = _picture(job, job.pick(2, 32, 64)).to(job.device)
    network = plain.PlainUNet(x0.shape[1], x0.shape[1], job.settings["model"]).to(job.device).eval()
    blur = plain.PlainBlur(job.settings["degradation"], x0.shape[1], job.device)
    x_t = blur(x0, blur.steps)
    return _samplings(job, lambda x, sampler, k: plain.sample(network, blur, x, blur.steps, sampler, k), x_t)


def sample_ours(job: Job) -> Rows:
    from colddiff_core import sampling, seeds

    built = _experiment(job)
    x0 = _picture(job, job.pick(2, 32, 64)).to(built.device)
    t = built.operator.steps
    x_t, frozen = built.degrade(x0, t, seeds.image_generators(0, range(len(x0))))

    def restore(x: Tensor, sampler: str, stride: int) -> Tensor:
        numbers = range(len(x))
        way = {"sampler": sampler, "stride": stride, "seed": 0, "numbers": numbers, "bits": built.bits}
        return sampling.final(built.restore(x, t, frozen, **way))

    return _samplings(job, restore, x_t)


def _experiment(job: Job) -> Any:
    from colddiff_core import experiment, presets

    config = presets.from_table(job.settings, "settings")
    built = experiment.build(config, config.data.channels or 1, _chosen(job))
    built.restorer.eval()
    return built


CASES = {
    "train-paper": Case("mnist-blur", train_plain, train_ours),
    "train-small": Case("mnist-blur-small", train_plain, train_ours),
    "sample-paper": Case("mnist-blur", sample_plain, sample_ours),
}


def difference(job: Job) -> dict[str, float]:
    """Return how far the plain network's output is from ours at the same weights in float32, and how large it is."""
    import plain

    from colddiff_core.models import UNet

    model = dict(job.settings["model"])
    settings = {key: model[key] for key in ("width", "multipliers", "block", "attention")}
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    ours = UNet(1, 1, **settings).eval().to(job.device)
    theirs = plain.PlainUNet(1, 1, settings).eval().to(job.device)
    theirs.load_state_dict(ours.state_dict())
    x = _picture(job, 2)[:, :1].to(job.device)
    t = torch.tensor([1, job.settings["degradation"]["steps"]], device=job.device)
    with torch.no_grad():
        a, b = ours(x, t), theirs(x, t)
    return {"difference": float((a - b).abs().max()), "largest": float(a.abs().max())}


def run(name: str, side: str, job: Job) -> dict[str, Any]:
    """Return what a side of a case measures, with the most memory it held, in bytes."""
    if side == "difference":
        return difference(job)
    made: dict[str, Any] = {"rows": getattr(CASES[name], side)(job)}
    if job.is_cuda:
        made["memory"] = torch.cuda.max_memory_allocated(job.device)
        made["device"] = torch.cuda.get_device_name(job.device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        made["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        made["device"] = "cpu"
    return made | {"threads": torch.get_num_threads(), "torch": torch.__version__}
