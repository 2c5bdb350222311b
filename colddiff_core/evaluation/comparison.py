"""The same images and seeds, restored or generated in several ways: what the paper's argument rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from colddiff_core.evaluation import diversity, evaluate
from colddiff_core.evaluation.evaluate import (
    EvaluationResult,
    EvaluationSettings,
    Figures,
    MetricAccumulator,
    Reference,
    SamplingTimer,
)
from colddiff_core.experiment import Experiment
from colddiff_core.inference.generate import Generator
from colddiff_core.sampling import Sampling

CHUNK = 500  # images measured at a time
DESCRIBED = 1000  # images whose variety is measured: every pair of them is, and every training image


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to restore from severity t, or with a `generator` to generate: a run, a sampler and a stride."""

    label: str
    experiment: Experiment
    sampler: str
    stride: int
    t: int
    generator: Generator | None = None


def restore(
    contender: Contender,
    reference: Reference,
    *,
    count: int,
    seed: int,
    shown: int,
    batch_size: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> EvaluationResult:
    """Return how `count` test images come back, as `evaluation.restore` does."""
    settings = EvaluationSettings(contender.t, count, seed, contender.stride, batch_size=batch_size)
    built, sampler = contender.experiment, contender.sampler
    return evaluate.restore(built, reference, settings, sampler, shown=shown, progress=progress)


def generate(
    contender: Contender,
    reference: Reference,
    *,
    count: int,
    seed: int,
    shown: int,
    described: int = DESCRIBED,
    progress: Callable[[int], None] = lambda images: None,
) -> EvaluationResult:
    """Return what `count` images from nothing are like.

    Beside the figures of `MetricAccumulator`, pairwise: between two images, nearest: to the nearest training image,
    mean RMSE on
    [0, 1], of the first `described` images at most; evaluations of the network and milliseconds an image.
    """
    assert contender.generator is not None
    clock, meter = SamplingTimer(contender.experiment.device), MetricAccumulator(reference, has_originals=False)
    kept: list[Tensor] = []
    sampling = Sampling(contender.sampler, contender.stride, seed)
    next(next(contender.generator.generate(1, sampling)).steps)
    for batch in contender.generator.generate(count, sampling):
        images = clock.finish(batch.steps)[: batch.count].clamp(-1, 1).cpu()
        meter.update(images)
        if batch.first < max(shown, described):
            kept.append(images)
        progress(batch.count)
    first = torch.cat(kept)
    figures = meter.figures() | _variety(first[:described], reference) | clock.figures()
    return EvaluationResult(figures, meter.intervals(), meter.has_too_few_images, first[:shown])


def describe(images: Tensor, reference: Reference) -> EvaluationResult:
    """Return what images (N, C, H, W) are like that answer to no original: the figures of `generate` but time."""
    meter = _measure(images, reference)
    return EvaluationResult(
        meter.figures() | _variety(images, reference), meter.intervals(), meter.has_too_few_images, images
    )


def describe_real(count: int, reference: Reference) -> EvaluationResult:
    """Return what images drawn from the data are like: what perfect generation would come to.

    `count` test images (all there are if fewer), their distances those of as many training images.
    """
    numbers = reference.test.draw(count)
    found = describe(reference.test.images(numbers), dataclasses.replace(reference, target=None))
    if reference.target is None:
        return found
    train = reference.train()
    others = train.images(train.draw(len(numbers)))
    meter = _measure(others, dataclasses.replace(reference, classifier=None))
    figures: Figures = found.figures | meter.figures()
    return dataclasses.replace(found, figures=figures, intervals=found.intervals | meter.intervals())


def _measure(images: Tensor, reference: Reference) -> MetricAccumulator:
    meter = MetricAccumulator(reference, has_originals=False)
    for part in images.split(CHUNK):
        meter.update(part)
    return meter


def _variety(images: Tensor, reference: Reference) -> Figures:
    """Return how far images are from each other and from the training images; nothing of no images."""
    if not len(images):
        return {}
    return {
        "pairwise": diversity.pairwise_distance(images) if len(images) > 1 else None,
        "nearest": float(diversity.nearest_neighbors(images, reference.train()).distance.mean()),
    }
