"""Generate images: draw x_T from a prior and take it back to x_0, batch by batch.

All batches have the same size, and every image has its own random generators, so image k is the same bit for bit
however many are generated.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator

import torch

from colddiff_core import datasets, seeds
from colddiff_core.datasets import from_config
from colddiff_core.distributed import group
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.experiment import Experiment
from colddiff_core.inference import batches, condition
from colddiff_core.inference.batches import BatchFilter, every_batch
from colddiff_core.inference.condition import ClassNames, Condition
from colddiff_core.inference.open_run import TrainedRun
from colddiff_core.runs import Run
from colddiff_core.sampling import DegradedImages, Sampling, Step, final, fitting, priors, sound
from colddiff_core.sampling.priors import InitialState, Prior, PriorSource, Weights

MOST_NOISE = 1.0  # wider noise leaves little else of x_T
EXAMPLE = "pretrained:digits-blur-generate"  # a run that generates and comes with the package
SEVERITIES = 10  # at which the inverse is looked at
NO_CONDITION = Condition()


@dataclasses.dataclass(frozen=True)
class GeneratedBatch:
    """Images first to first + count - 1; `start` and `steps` may hold more, to fill the batch."""

    first: int
    count: int
    start: InitialState
    steps: Iterator[Step]


@dataclasses.dataclass(frozen=True)
class Generator:
    """Generates images with a run's experiment and a prior.

    Attributes:
        noise: Width of the white noise on x_T that breaks the symmetry between its pixels.
        batch_size: Images at a time.
        condition: Their classes.
    """

    experiment: Experiment
    prior: Prior
    source: PriorSource
    weights: Weights
    noise: float
    batch_size: int
    condition: Condition = NO_CONDITION

    def starts(self, seed: int, numbers: range) -> InitialState:
        """Draw the starting points of the images with these numbers."""
        generators = seeds.image_generators(seed, numbers, "prior")
        return priors.draw(self.prior, self.source, self.weights, generators, self.noise)

    def generate(
        self, count: int, sampling: Sampling, *, accepts: BatchFilter = every_batch
    ) -> Iterator[GeneratedBatch]:
        """Generate images 0 to count - 1 in batches; skipped batches do not change the others.

        Raises:
            UsageError: The sampler, stride or condition does not fit the run.
        """

        def start(numbers: range) -> InitialState:
            return self.starts(sampling.seed, numbers)

        return self._batches(count, start, list, sampling, accepts)

    def interpolate(
        self, count: int, sampling: Sampling, *, accepts: BatchFilter = every_batch
    ) -> Iterator[GeneratedBatch]:
        """Generate `count` images from x_T on the way from image 0's to image 1's, as `generate` does otherwise.

        The first is image 0 and the last is image 1, except with "ddpm": all images then share the sampler noise of
        image 0, so that they change with x_T alone.

        Raises:
            UsageError: As for `generate`; or there are several classes.
        """
        if len(self.condition.labels) > 1:
            raise UsageError(
                "The images between two are of one class.", "Give --class once, or leave out --interpolate."
            )
        ends = self.starts(sampling.seed, range(2))
        states = priors.between(self.prior, self.experiment.operator, ends, count)

        def start(numbers: range) -> InitialState:
            return states[torch.tensor(numbers).clamp(max=count - 1)]

        def zeros(numbers: range) -> list[int]:
            return [0] * len(numbers)  # the same sampler noise for all, so that they change smoothly

        return self._batches(count, start, zeros, sampling, accepts)

    def _batches(
        self,
        count: int,
        start: Callable[[range], InitialState],
        noises: Callable[[range], list[int]],
        sampling: Sampling,
        accepts: BatchFilter,
    ) -> Iterator[GeneratedBatch]:
        built = self.experiment
        sampling.check(built.operator)
        exact = dataclasses.replace(sampling, bits=0)  # a prior's x_T is not rounded
        self.condition.check(built)
        built.compile_for(-(-count // self.batch_size) * sampling.count(built.operator.steps))

        def batch(numbers: range) -> GeneratedBatch:
            state = start(numbers).to(built.device)
            x_T = DegradedImages(state.x, built.operator.steps, state.frozen, noises(numbers))
            labels = self.condition.of(numbers, built.device)
            steps = sound(built.restore(x_T, exact, labels, self.condition.guidance))
            return GeneratedBatch(numbers.start, min(len(numbers), count - numbers.start), state, steps)

        return map(batch, batches.batches(count, self.batch_size, accepts))


def prepare(
    run: Run,
    built: Experiment,
    name: str | None,
    components: int | None = None,
    noise: float | None = None,
    chosen: Condition = NO_CONDITION,
) -> Generator:
    """Build the generator of a run; the prior is fitted once and kept in the run.

    All processes of a job must call this. Rank 0 fits the prior, and its memory sets the batch size.

    Args:
        name: The prior; None for the operator's default.
        components: Gaussians in the prior's mixture; None for one.
        noise: Width of the noise on x_T; None for the width that the run was trained with, or else the prior's.
            A width that is given is used even if the run makes only noise of it, with a ColddiffWarning.
        chosen: The classes of the images, and how far to lean towards them; by default any.

    Raises:
        UsageError: The prior, components, noise or condition does not fit the run, or it can make only noise.
    """
    chosen.check(built)
    prior = priors.find(name, built.operator)
    if noise is not None and not math.isfinite(noise):
        raise UsageError(f"noise = {noise} is not finite.", f"Use 0 to {MOST_NOISE:g}.")
    if noise is not None and not 0 <= noise <= MOST_NOISE:
        raise UsageError(f"noise = {noise:g} is out of range: x_T lies in [-1, 1].", f"Use 0 to {MOST_NOISE:g}.")
    if noise is not None and prior.noise is None:
        raise UsageError(f"The prior '{prior.name}' has no symmetry to break with noise.", "Leave --noise out.")
    ranks = group.current()
    width = usual_noise(built, prior) if noise is None else noise
    if is_noise_magnified(built, width):
        what = f"{run.label} restores pictures; generating with it makes only noise"
        if noise is None:
            remedy = (
                f"Use a run whose preset ends in -generate, such as {EXAMPLE}. To see the noise: --noise {width:g}."
            )
            raise UsageError(f"{what}.", remedy)
        if ranks.is_first:
            warnings.warn(ColddiffWarning(what), stacklevel=2)
    source = _source(built)
    weights = {}
    if ranks.is_first:
        own, published = (folder / fitting.FOLDER for folder in (run.outputs, run.path))
        weights = fitting.load_or_fit(prior, source, own, components, published)
    weights = dict(ranks.broadcast_tensors(weights))
    if prior.is_drawn_from_images and not ranks.is_alone:
        ranks.one_process_first(source.images)
    size = ranks.broadcast_json(chosen.batch_size(built))
    return Generator(built, prior, source, weights, width, size, chosen)


def can_generate(built: Experiment) -> bool:
    """Return whether the operator has a prior of its own from which the restorer can make more than noise."""
    name = built.operator.priors[0]
    return name != "degraded" and not is_noise_magnified(built, usual_noise(built, priors.find(name, built.operator)))


def usual_noise(built: Experiment, prior: Prior) -> float:
    """Return the width of the noise on x_T that a run was trained with, or else the prior's."""
    return 0.0 if prior.noise is None else built.config.degradation.dither or prior.noise


def is_noise_magnified(built: Experiment, noise: float) -> bool:
    """Return whether the restorer magnifies noise of this width on x_T until it hides the picture.

    An inverse magnifies what D damps. A consistent restorer adds that to its output, and a network that is shown the
    inverse has learned to ignore it only if x_t was noisy in training.
    """
    model, op = built.config.model, built.operator
    is_misled = model.inputs == "inverse" and not built.config.degradation.dither
    if not noise or not (model.consistent or is_misled):
        return False
    generators = seeds.image_generators(0, range(1), "prior")
    field = noise * torch.randn((1, *built.shape), generator=generators[0])
    frozen = built.freeze(field, generators)
    severities = {round(1 + (op.steps - 1) * place / (SEVERITIES - 1)) for place in range(SEVERITIES)}
    return any(float(op.invert(field, t, frozen, model.floor).std(correction=0)) > MOST_NOISE for t in severities)


def _source(built: Experiment) -> PriorSource:
    @functools.cache
    def images() -> datasets.ImageSet:
        return from_config.load_images(built.config, "train", built.channels)

    return PriorSource(built.operator, built.shape, images, built.freeze, built.observe, built.second)


def generate(
    trained: TrainedRun,
    count: int,
    *,
    seed: int = 0,
    prior: str | None = None,
    noise: float | None = None,
    sampling: Sampling | None = None,
    label: ClassNames | None = None,
    guidance: float = 1.0,
) -> torch.Tensor:
    """Generate images (count, C, H, W), float32 in [-1, 1], on the CPU: those of `colddiff generate --seed`.

    Args:
        prior: What x_T is drawn from; None for the operator's default.
        noise: As for `prepare`.
        sampling: None for the run's own; its seed gives way to `seed`.
        label: For a conditional network, the class by name or number, several that the images take in turn, or "all".
        guidance: With a class, how far to lean towards it: 1 as trained, up to 20. See `models.guidance`.

    Raises:
        UsageError: The count, prior, noise, sampling, label or guidance does not fit the run, or it can make only
            noise.
    """
    if count < 1:
        raise UsageError(f"count = {count}: nothing to generate.", "Use 1 or more.")
    built = trained.experiment
    sampling = dataclasses.replace(sampling or Sampling.of(built.config), seed=seed)
    chosen = condition.named(trained.run, built, label, guidance)
    batches_ = prepare(trained.run, built, prior, noise=noise, chosen=chosen).generate(count, sampling)
    return torch.cat([final(batch.steps)[: batch.count].clamp(-1, 1).cpu() for batch in batches_])
