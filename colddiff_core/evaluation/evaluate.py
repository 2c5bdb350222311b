"""Restore degraded test images and measure the result."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from colddiff_core import sampling, seeds
from colddiff_core.evaluation.metrics import Figures, Intervals, MetricAccumulator, Reference
from colddiff_core.experiment import Experiment
from colddiff_core.images import quantize
from colddiff_core.sampling import DegradedImages, Sampling, Step

COLUMNS = ("degraded", "direct", "sampled", "naive")
PHOTOGRAPH_BITS = 8
GRAIN = 16  # images that threads divide evenly in a convolution
MOST = {"cpu": 64, "cuda": 512}  # images per batch if memory allows: multiples of GRAIN


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How test images are degraded and restored, for every sampler.

    Attributes:
        t: Severity.
        count: Number of test images.
        seed: Seed of the degradations and the sampling.
        stride: Severities per sampling step.
        is_8bit: Round degraded images to 8 bits, as in a photograph, whatever the preset does.
        batch_size: Images per batch; None for as many as memory allows.
    """

    t: int
    count: int
    seed: int = 0
    stride: int = 1
    is_8bit: bool = False
    batch_size: int | None = None

    def sampling(self, experiment: Experiment, sampler: str) -> Sampling:
        """Return the settings of a sampler."""
        return Sampling(sampler, self.stride, self.seed, PHOTOGRAPH_BITS if self.is_8bit else experiment.bits)


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The result of measuring one kind of images.

    Attributes:
        figures: Figures by name.
        intervals: Their 95 % intervals; None for a figure without one.
        has_too_few_images: Whether there are too few images for a reliable Frechet distance.
        shown: The first images, (K, C, H, W) float32 in [-1, 1]; (0,) if none were asked for.
        degraded: The degraded images that `shown` was restored from, in the same shape.
    """

    figures: Figures
    intervals: Intervals
    has_too_few_images: bool
    shown: Tensor
    degraded: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class RestoredBatch:
    """A batch of restored images.

    Attributes:
        numbers: Indices of the originals, (B,) int64.
        x: Restored images, (B, C, H, W) float32.
        x_t: The degraded images they were restored from, (B, C, H, W) float32.
        count: The first `count` images count; the rest are padding.
    """

    numbers: Tensor
    x: Tensor
    x_t: Tensor
    count: int


def index_batches(experiment: Experiment, reference: Reference, count: int, batch_size: int | None) -> Sequence[Tensor]:
    """Return the indices of the test images to measure (those of `ImageSet.draw`) in batches, each (B,) int64."""
    return reference.test.draw(count).split(batch_size or experiment.batch_size(MOST))


def padded_size(count: int, batch_size: int) -> int:
    """Return the size that every batch is padded to.

    Short batches are padded because the bits of an image depend on the batch shape and, unless it is a multiple of
    GRAIN, on the number of threads, which varies with the number of processes.
    """
    return min(batch_size, -(-count // GRAIN) * GRAIN)


def compile_for(
    experiment: Experiment, settings: EvaluationSettings, samplers: Iterable[str | None], batch_count: int
) -> None:
    """With `sample.compile` = "auto", compile the network if restoring the batches with each sampler is long enough."""
    steps = [settings.sampling(experiment, sampler).count(settings.t) for sampler in samplers if sampler is not None]
    experiment.compile_for(batch_count * sum(steps))


def restore_batches(
    experiment: Experiment,
    reference: Reference,
    batches: Iterable[Tensor],
    timer: SamplingTimer,
    settings: EvaluationSettings,
    sampler: str | None,
    size: int,
) -> Iterator[RestoredBatch]:
    """Degrade and restore batches of test images. An image does not depend on the batches before it.

    Args:
        experiment: The run's operator and network.
        reference: Holds the test images.
        batches: Indices of the images, (B,) int64 each.
        timer: Counts the sampling time.
        settings: Severity, seed and so on.
        sampler: Name of the sampler; None leaves the images degraded.
        size: Pad each batch to this size (`padded_size`) with its first image.

    Raises:
        UsageError: The sampler, t or stride does not fit the operator.
    """
    for batch in batches:
        indices = torch.cat([batch, batch[:1].expand(size - len(batch))])
        numbers = indices.tolist()
        x0 = reference.test.images(indices, experiment.device)
        x_t, frozen = experiment.degrade(x0, settings.t, seeds.image_generators(settings.seed, numbers))
        x_t = quantize(x_t, PHOTOGRAPH_BITS) if settings.is_8bit else x_t
        x = x_t
        if sampler is not None:
            degraded = DegradedImages(x_t, settings.t, frozen, numbers)
            sampling_settings = settings.sampling(experiment, sampler)
            if not timer.images:  # warm up first: tables, memory and kernels are created on first use
                next(experiment.restore(degraded, sampling_settings))
            x = timer.finish(experiment.restore(degraded, sampling_settings))
        yield RestoredBatch(indices, x, x_t, len(batch))


def restore(
    experiment: Experiment,
    reference: Reference,
    settings: EvaluationSettings,
    sampler: str | None,
    *,
    shown: int = 0,
    progress: Callable[[int], None] = lambda images: None,
) -> EvaluationResult:
    """Measure test images degraded to severity t and restored.

    The images are those of `ImageSet.draw`. Adds to the figures of `MetricAccumulator`: evaluations of the network
    and milliseconds per image.

    Args:
        experiment: The run's operator and network.
        reference: What the images are measured against.
        settings: Severity, number of images and so on.
        sampler: Name of the sampler; None measures the degraded images.
        shown: Number of images to return.
        progress: Called with the number of images of each finished batch.

    Raises:
        UsageError: The sampler, t or stride does not fit the operator.
    """
    meter, timer = MetricAccumulator(reference, has_originals=True), SamplingTimer(experiment.device)
    restored: list[Tensor] = []
    degraded: list[Tensor] = []
    batches = index_batches(experiment, reference, settings.count, settings.batch_size)
    size = padded_size(settings.count, settings.batch_size or experiment.batch_size(MOST))
    compile_for(experiment, settings, [sampler], len(batches))
    for batch in restore_batches(experiment, reference, batches, timer, settings, sampler, size):
        meter.update(batch.x, batch.numbers, batch.count)
        if sum(map(len, restored)) < shown:
            restored.append(batch.x[: batch.count].clamp(-1, 1).cpu())
            degraded.append(batch.x_t[: batch.count].cpu())
        progress(batch.count)
    figures = meter.figures() | timer.figures()
    pictures = [torch.cat(parts)[:shown] if parts else torch.empty(0) for parts in (restored, degraded)]
    return EvaluationResult(figures, meter.intervals(), meter.has_too_few_images, *pictures)


def evaluate(
    experiment: Experiment, reference: Reference, settings: EvaluationSettings, columns: Sequence[str] = COLUMNS
) -> dict[str, EvaluationResult]:
    """Measure the same test images restored in several ways, one per column (see `column_sampler`).

    Raises:
        UsageError: A sampler, t or stride does not fit the operator.
    """
    return {column: restore(experiment, reference, settings, column_sampler(experiment, column)) for column in columns}


def column_sampler(experiment: Experiment, column: str) -> str | None:
    """Return the sampler of a column: None for "degraded", the run's own for "sampled", else the column's name."""
    named: dict[str, str | None] = {"degraded": None, "sampled": experiment.config.sample.sampler}
    return named.get(column, column)


class SamplingTimer:
    """Count the time and the network evaluations of sampling, without degrading and measuring."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.images = 0
        self.evaluations = 0

    def finish(self, steps: Iterator[Step]) -> Tensor:
        """Run a sampler to the end and return x_0, (B, C, H, W) float32."""
        self._wait()
        started = time.perf_counter()
        last = sampling.last(steps)
        self._wait()
        self.seconds += time.perf_counter() - started
        self.images += len(last.x)
        self.evaluations = last.count
        return last.x

    def totals(self) -> tuple[float, int, int]:
        """Return the seconds, the images, and the evaluations per image."""
        return self.seconds, self.images, self.evaluations

    def add(self, totals: Sequence[float]) -> None:
        """Add the totals of another timer."""
        self.seconds += totals[0]
        self.images += int(totals[1])
        self.evaluations = max(self.evaluations, int(totals[2]))

    def figures(self) -> Figures:
        """Return evaluations and milliseconds per image, or nothing if nothing was sampled."""
        if not self.images:
            return {}
        return {"evaluations": self.evaluations, "milliseconds": 1000 * self.seconds / self.images}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
