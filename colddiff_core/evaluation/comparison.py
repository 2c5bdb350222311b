"""Compare samplers, strides and runs on the same images and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from colddiff_core.evaluation import diversity, evaluate
from colddiff_core.evaluation.evaluate import EvaluationResult, EvaluationSettings, SamplingTimer
from colddiff_core.evaluation.metrics import Figures, MetricAccumulator, Reference
from colddiff_core.experiment import Experiment
from colddiff_core.inference.generate import Generator
from colddiff_core.sampling import Sampling

CHUNK_IMAGES = 500  # measured at a time
DIVERSITY_IMAGES = 1000  # each is compared with every other and with every training image


@dataclasses.dataclass(frozen=True)
class Contender:
    """A run, a sampler and a stride to compare: restores from severity t, or generates if it has a generator."""

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
    """Measure `count` restored test images, see `evaluate.restore`.

    Raises:
        UsageError: The sampler, t or stride does not fit the operator.
    """
    settings = EvaluationSettings(contender.t, count, seed, contender.stride, batch_size=batch_size)
    return evaluate.restore(
        contender.experiment, reference, settings, contender.sampler, shown=shown, progress=progress
    )


def generate(
    contender: Contender,
    reference: Reference,
    *,
    count: int,
    seed: int,
    shown: int,
    diversity_count: int = DIVERSITY_IMAGES,
    progress: Callable[[int], None] = lambda images: None,
) -> EvaluationResult:
    """Measure `count` generated images.

    Adds to the figures of `MetricAccumulator`: pairwise and nearest, the mean RMSE (on [0, 1]) between two images and
    to the nearest training image, over the first `diversity_count` images; evaluations of the network and
    milliseconds per image.

    Raises:
        UsageError: The sampler or stride does not fit the operator.
    """
    assert contender.generator is not None
    timer, meter = SamplingTimer(contender.experiment.device), MetricAccumulator(reference, has_originals=False)
    kept: list[Tensor] = []
    sampling = Sampling(contender.sampler, contender.stride, seed)
    # Warm up: tables, memory and kernels are created on first use.
    next(next(contender.generator.generate(count, sampling)).steps)
    for batch in contender.generator.generate(count, sampling):
        images = timer.finish(batch.steps)[: batch.count].clamp(-1, 1).cpu()
        meter.update(images)
        if batch.first < max(shown, diversity_count):
            kept.append(images)
        progress(batch.count)
    first = torch.cat(kept)
    figures = meter.figures() | _variety(first[:diversity_count], reference) | timer.figures()
    return EvaluationResult(figures, meter.intervals(), meter.has_too_few_images, first[:shown])


def describe(images: Tensor, reference: Reference, labels: Tensor | None = None) -> EvaluationResult:
    """Measure images without originals, (N, C, H, W) float32 in [-1, 1]: the figures of `generate` except time.

    With `labels` (N,) int64, the classes that the images should be of, accuracy is the share that the classifier
    assigns to theirs.
    """
    meter = _measure(images, reference)
    figures = meter.figures() | _variety(images, reference)
    if labels is not None and reference.classifier is not None:
        figures["accuracy"] = float((torch.cat(meter.predicted) == labels).double().mean())
    return EvaluationResult(figures, meter.intervals(), meter.has_too_few_images, images)


def describe_real(count: int, reference: Reference) -> EvaluationResult:
    """Measure real images, as a bound for generated ones.

    Uses `count` test images, or all if there are fewer. Distances are those of as many training images.
    """
    numbers = reference.test.draw(count)
    result = describe(reference.test.images(numbers), dataclasses.replace(reference, target=None))
    if reference.target is None:
        return result
    train = reference.train()
    meter = _measure(train.images(train.draw(len(numbers))), dataclasses.replace(reference, classifier=None))
    figures: Figures = result.figures | meter.figures()
    return dataclasses.replace(result, figures=figures, intervals=result.intervals | meter.intervals())


def _measure(images: Tensor, reference: Reference) -> MetricAccumulator:
    meter = MetricAccumulator(reference, has_originals=False)
    for part in images.split(CHUNK_IMAGES):
        meter.update(part)
    return meter


def _variety(images: Tensor, reference: Reference) -> Figures:
    """Return the distances of images to each other and to the training images; empty without images."""
    if not len(images):
        return {}
    return {
        "pairwise": diversity.pairwise_distance(images) if len(images) > 1 else None,
        "nearest": float(diversity.nearest_neighbors(images, reference.train()).distance.mean()),
    }
