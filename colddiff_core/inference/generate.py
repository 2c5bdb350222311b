"""Images from nothing: a prior's x_T, taken back to x_0 batch by batch.

Every batch has the same number of images, the last one too, and every image its own generators: image k is the
same, bit for bit, however many are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import torch

from colddiff_core import datasets, seeds
from colddiff_core.datasets import from_config
from colddiff_core.distributed import group
from colddiff_core.errors import UsageError
from colddiff_core.experiment import Experiment
from colddiff_core.inference import batches
from colddiff_core.inference.batches import BatchFilter, every_batch
from colddiff_core.runs import Run
from colddiff_core.sampling import DegradedImages, Sampling, Step, fitting, priors
from colddiff_core.sampling.priors import InitialState, Prior, PriorSource, Weights

# Images at a time, if memory has room: a batch is computed whole, and few images would pay for a large one.
MOST = {"cpu": 16, "cuda": 256}
MOST_NOISE = 1.0  # wider and little else is left of x_T


@dataclasses.dataclass(frozen=True)
class GeneratedBatch:
    """Images first..first + count - 1 of those asked for; `start` and `steps` may hold more, which nobody asked for."""

    first: int
    count: int
    start: InitialState
    steps: Iterator[Step]


@dataclasses.dataclass(frozen=True)
class Generator:
    """A run's experiment with a prior: all that images are generated from.

    noise: width of the white noise on x_T that breaks the symmetry between its pixels; batch_size: images at a time.
    """

    experiment: Experiment
    prior: Prior
    source: PriorSource
    weights: Weights
    noise: float
    batch_size: int

    def starts(self, seed: int, numbers: range) -> InitialState:
        """Return where the images of these numbers start."""
        generators = seeds.image_generators(seed, numbers, "prior")
        return priors.draw(self.prior, self.source, self.weights, generators, self.noise)

    def generate(
        self, count: int, sampling: Sampling, *, label: int | None = None, accepts: BatchFilter = every_batch
    ) -> Iterator[GeneratedBatch]:
        """Return images 0..count - 1 in batches; `label` is the class of them all, None for any.

        Batches that are not accepted are left out, and change nothing of the others.
        Raises UsageError for a sampler, stride or label that does not suit the run.
        """

        def start(numbers: range) -> InitialState:
            return self.starts(sampling.seed, numbers)

        return self._batches(count, start, list, sampling, label, accepts)

    def interpolate(
        self, count: int, sampling: Sampling, *, label: int | None = None, accepts: BatchFilter = every_batch
    ) -> Iterator[GeneratedBatch]:
        """Return `count` images from x_T between those of images 0 and 1, both included; else as `generate`.

        The first is image 0 and the last image 1. With "ddpm" the last is not, by design: the noise that it draws is
        image 0's all the way, so that the images change with x_T alone.
        """
        ends = self.starts(sampling.seed, range(2))
        states = priors.between(self.prior, self.experiment.operator, ends, count)

        def start(numbers: range) -> InitialState:
            return states[torch.tensor(numbers).clamp(max=count - 1)]

        def zeros(numbers: range) -> list[int]:
            return [0] * len(numbers)  # one noise for them all, so that a random sampler too goes evenly across

        return self._batches(count, start, zeros, sampling, label, accepts)

    def _batches(
        self,
        count: int,
        start: Callable[[range], InitialState],
        noises: Callable[[range], list[int]],
        sampling: Sampling,
        label: int | None,
        accepts: BatchFilter,
    ) -> Iterator[GeneratedBatch]:
        built = self.experiment
        sampling.check(built.operator)
        exact = dataclasses.replace(sampling, bits=0)  # a prior's x_T is not rounded
        check_label(built, label)
        labels = None if label is None else torch.full((self.batch_size,), label, device=built.device)

        def batch(numbers: range) -> GeneratedBatch:
            state = start(numbers).to(built.device)
            x_T = DegradedImages(state.x, built.operator.steps, state.frozen, noises(numbers))
            steps = built.restore(x_T, exact, labels)
            return GeneratedBatch(numbers.start, min(len(numbers), count - numbers.start), state, steps)

        return map(batch, batches.batches(count, self.batch_size, accepts))


def prepare(
    run: Run, built: Experiment, name: str | None, components: int | None = None, noise: float | None = None
) -> Generator:
    """Return what a run's images are generated from; `name` None is its operator's default prior.

    noise None is the width that the run was trained with, else the prior's own. The prior is fitted once and kept
    in the run. All processes of a job prepare: the first fits, and its memory decides on how many images there are at a
    time. Raises UsageError for a prior, components or noise that do not suit the run.
    """
    prior = priors.find(name, built.operator)
    if noise is not None and not math.isfinite(noise):
        raise UsageError(f"noise = {noise} is not finite.", "Give its width; pictures span 2.")
    if noise is not None and not 0 <= noise <= MOST_NOISE:
        raise UsageError(f"noise = {noise:g} is out of range: x_T lies in [-1, 1].", f"Use 0 to {MOST_NOISE:g}.")
    if noise is not None and prior.noise is None:
        raise UsageError(f"The prior '{prior.name}' has no symmetry that noise could break.", "Leave --noise out.")
    source = _source(built)
    together = group.current()
    weights = fitting.load_or_fit(prior, source, run.path / "priors", components) if together.is_first else {}
    weights = dict(together.broadcast_tensors(weights))
    if prior.is_drawn_from_images and not together.is_alone:
        together.one_process_first(source.images)
    size = together.broadcast_json(built.batch_size(MOST))
    if noise is None:
        noise = 0.0 if prior.noise is None else built.config.degradation.dither or prior.noise
    return Generator(built, prior, source, weights, noise, size)


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


def _source(built: Experiment) -> PriorSource:
    @functools.cache
    def images() -> datasets.ImageSet:
        return from_config.load_images(built.config, "train", built.channels)

    side = built.config.data.size
    return PriorSource(built.operator, (built.channels, side, side), images, built.freeze, built.observe, built.second)
