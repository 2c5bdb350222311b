"""Images from nothing: a prior's x_T, taken back to x_0 batch by batch.

Every batch has the same number of images, the last one too, and every image its own generators: image k is the
same, bit for bit, however many are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from colddiff_core import datasets, experiment, priors, sampling, seeds
from colddiff_core.degradations import Frozen
from colddiff_core.errors import UsageError
from colddiff_core.experiment import Experiment
from colddiff_core.priors import Generators, Prior, Source, Start, Weights
from colddiff_core.runs import Run
from colddiff_core.sampling import Step

BATCH = {"cpu": 16, "cuda": 128}  # images at a time: arithmetic differs in its last bits with the size of a batch


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images first..first + count - 1 of those asked for; `start` and `steps` may hold more, which nobody asked for."""

    first: int
    count: int
    start: Start
    steps: Iterator[Step]


@dataclasses.dataclass(frozen=True)
class Generator:
    """A run's experiment with a prior: all that images are generated from.

    noise: width of the white noise on x_T that breaks the symmetry between its pixels.
    """

    experiment: Experiment
    prior: Prior
    source: Source
    weights: Weights
    noise: float

    @property
    def batch_size(self) -> int:
        return BATCH[self.experiment.device.type]

    def starts(self, seed: int, numbers: range) -> Start:
        """Return where the images of these numbers start."""
        generators = seeds.image_generators(seed, numbers, "prior")
        return priors.draw(self.prior, self.source, self.weights, generators, self.noise)

    def generate(
        self, count: int, *, seed: int, sampler: str, stride: int = 1, label: int | None = None
    ) -> Iterator[Batch]:
        """Yield images 0..count - 1 in batches; `label` is the class of them all, None for any.

        Raises UsageError for a sampler, stride or label that does not suit the run.
        """
        for first in range(0, count, self.batch_size):
            numbers = range(first, first + self.batch_size)
            start = self.starts(seed, numbers)
            noise = seeds.image_generators(seed, numbers, "sampler")
            steps = self._steps(start, noise, sampler, stride, label)
            yield Batch(first, min(self.batch_size, count - first), start, steps)

    def interpolate(
        self, count: int, *, seed: int, sampler: str, stride: int = 1, label: int | None = None
    ) -> Iterator[Batch]:
        """Yield `count` images from x_T on the way between those of images 0 and 1, both included."""
        ends = self.starts(seed, range(2))
        for first in range(0, count, self.batch_size):
            shown = min(self.batch_size, count - first)
            start = priors.between(self.prior, self.experiment.operator, ends, count)
            rows = torch.arange(first, first + self.batch_size).clamp_(max=count - 1)
            part = Start(start.base[rows], start.field[rows], start.noise, start.frozen[rows])
            # One noise for them all, so that a random sampler too goes evenly from one to the other.
            noise = seeds.image_generators(seed, [0] * len(rows), "sampler")
            yield Batch(first, shown, part, self._steps(part, noise, sampler, stride, label))

    def _steps(self, start: Start, noise: Generators, sampler: str, stride: int, label: int | None) -> Iterator[Step]:
        built = self.experiment
        on_device = start.to(built.device)
        labels = None if label is None else torch.full((len(start.base),), label, device=built.device)
        restore = functools.partial(built.restorer, labels=labels)
        return sampling.sample(
            restore,
            built.operator,
            on_device.x,
            built.operator.steps,
            on_device.frozen,
            sampler=sampler,
            stride=stride,
            generator=noise,
        )


def prepare(
    run: Run, built: Experiment, name: str | None, components: int | None = None, noise: float | None = None
) -> Generator:
    """Return what a run's images are generated from; `name` None is its operator's default prior.

    noise None is the width that the run was trained with, else the prior's own. The prior is fitted once and kept
    in the run. Raises UsageError for a prior, components or noise that do not suit the run.
    """
    prior = priors.find(name, built.operator)
    if noise is not None and not math.isfinite(noise):
        raise UsageError(f"noise = {noise} is not finite.", "Give its width; pictures span 2.")
    if noise is not None and prior.noise is None:
        raise UsageError(f"The prior '{prior.name}' has no symmetry that noise could break.", "Leave --noise out.")
    source = _source(built)
    weights = priors.load_or_fit(prior, source, run.path / "priors", components)
    if noise is None:
        noise = 0.0 if prior.noise is None else built.config.degradation.dither or prior.noise
    return Generator(built, prior, source, weights, noise)


def check_label(built: Experiment, label: int | None) -> None:
    """Raise UsageError for a class that the run does not know."""
    classes = built.config.model.classes
    if label is None or 0 <= label < classes:
        return
    if not classes:
        raise UsageError(
            f"--class {label}: this run was trained without classes.",
            "Leave it out, or train with --set model.classes=N.",
        )
    raise UsageError(f"--class {label} is out of range.", f"This run knows classes 0 to {classes - 1}.")


def _source(built: Experiment) -> Source:
    config = built.config

    @functools.cache
    def images() -> datasets.ImageSet:
        return experiment.load_images(config, "train", built.channels)

    def degrade(x0: Tensor, generators: Generators) -> tuple[Tensor, Frozen]:
        return built.degrade(x0, built.operator.steps, generators)

    side = config.data.size
    return Source(built.operator, (built.channels, side, side), images, degrade, built.second)
