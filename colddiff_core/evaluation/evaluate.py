"""What a run's restorations are worth: held against the originals, and as a whole against all test images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from colddiff_core import sampling, seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation import bootstrap
from colddiff_core.evaluation.bootstrap import Interval
from colddiff_core.evaluation.classifier import Classifier
from colddiff_core.evaluation.distances import Distances, Features, ReferenceStats
from colddiff_core.evaluation.fidelity import Fidelity, PerceptualDistance
from colddiff_core.experiment import Experiment
from colddiff_core.images import quantize
from colddiff_core.sampling import DegradedImages, Sampling, Step

COLUMNS = ("degraded", "direct", "sampled", "naive")
PHOTOGRAPH_BITS = 8
GRAIN = 16  # images of which threads share a convolution evenly
MOST = {"cpu": 64, "cuda": 512}  # images at a time, if memory has room: whole numbers of GRAIN
Figures = dict[str, Any]
Intervals = dict[str, Interval | None]


@dataclasses.dataclass(frozen=True)
class Reference:
    """What images are held against.

    test: the originals; train: loads the training images; classifier: of the classes, where the images have labels;
    target: what distances between distributions are measured to; perceptual: LPIPS, where its weights are there;
    features: what the target is seen by, for a process that only looks at images and measures no distance.
    """

    test: ImageSet
    train: Callable[[], ImageSet]
    classifier: Classifier | None = None
    target: ReferenceStats | None = None
    perceptual: PerceptualDistance | None = None
    features: Features | None = None

    def metadata(self) -> dict[str, Any]:
        """Return what a record says of the features and of LPIPS that images are measured with."""
        found: dict[str, Any] = {
            "features": None,
            "perceptual": self.perceptual.metadata() if self.perceptual else None,
        }
        if self.target:
            seen = self.target.features
            found["features"] = {"name": seen.name, "size": seen.size, "images": self.target.count} | seen.metadata()
        return found

    def title(self, dataset: str) -> str:
        """Return what the images are to be called: "cifar10 (JPEG)" where they are not the data set as published."""
        return f"{dataset} ({self.test.note})" if self.test.note else dataset


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How test images are degraded and restored, whatever the sampler.

    count: test images; batch_size: how many at a time, None for as many as fit; is_8bit: the degraded images are
    rounded to 8 bits first, as a photograph is, whatever the preset does.
    """

    t: int
    count: int
    seed: int = 0
    stride: int = 1
    is_8bit: bool = False
    batch_size: int | None = None

    def sampling(self, experiment: Experiment, sampler: str) -> Sampling:
        """Return how a sampler restores the images."""
        return Sampling(sampler, self.stride, self.seed, PHOTOGRAPH_BITS if self.is_8bit else experiment.bits)


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What images came to: figures by name, their 95 % intervals, and the first of them.

    is_scarce: they are too few for a Frechet distance that can be relied on; shown: (K, C, H, W) float32 in [-1, 1];
    degraded: what those were restored from.
    """

    figures: Figures
    intervals: Intervals
    has_too_few_images: bool
    shown: Tensor
    degraded: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class ImageMeasurements:
    """What there is to know of each of some images, before anything is said of them all: (B, ...), on the CPU.

    rows: as `Fidelity.look` has it; features: (B, D) float32; predicted: (B,) int64, the class that the classifier
    takes it for; judged: (B,), right or not, or its highest probability; numbers: (B,) int64, of the originals. None is
    what is not measured.
    """

    numbers: Tensor | None = None
    rows: Tensor | None = None
    features: Tensor | None = None
    predicted: Tensor | None = None
    judged: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it by name, as a file holds it."""
        every = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def first(self, count: int | None) -> ImageMeasurements:
        """Return what there is to know of the first images; None for all of them."""
        return ImageMeasurements(**{name: tensor[:count] for name, tensor in self.tensors().items()})


class MetricAccumulator:
    """Measures a stream of images, in memory that does not grow with their number but for a few figures an image.

    With originals: rmse, psnr, ssim, lpips as `Fidelity` has them, and accuracy: how many the classifier still takes
    for their class. Without: confidence, the mean of its highest probability, and classes: how many it takes for each.
    Both: the distances of `Distances`. None is a figure that cannot be had.
    """

    def __init__(self, reference: Reference, *, has_originals: bool) -> None:
        self.reference = reference
        self.fidelity = Fidelity(reference.perceptual) if has_originals else None
        self.distances = Distances(reference.target) if reference.target else None
        self.judged: list[Tensor] = []  # right or not, or the highest probability
        self.predicted: list[Tensor] = []

    def update(self, images: Tensor, numbers: Tensor | None = None, count: int | None = None) -> None:
        """Add images (B, C, H, W) float32 in [-1, 1], and the numbers (B,) of their originals in the test set.

        count: how many of them, from the first on, are to be added; the others fill the batch up.
        """
        self.add(self.look(images, numbers).first(count))

    @torch.no_grad()
    def look(self, images: Tensor, numbers: Tensor | None = None) -> ImageMeasurements:
        """Return what there is to know of each image, for `add`; takes what `update` does, and changes nothing."""
        images, reference = images.clamp(-1, 1), self.reference
        rows = predicted = judged = None
        if self.fidelity:
            assert numbers is not None
            rows = self.fidelity.measure(images, reference.test.images(numbers).to(images.device))
        features = reference.target.features if reference.target else reference.features
        network = reference.classifier
        if network is not None:
            scores = network(images.to(network.accuracy.device)).cpu()
            predicted, labels = scores.argmax(1), reference.test.labels
            is_known = numbers is not None and labels is not None
            judged = predicted == labels[numbers].cpu() if is_known else scores.softmax(1).amax(1)  # type: ignore[index]
        return ImageMeasurements(numbers, rows, features(images) if features else None, predicted, judged)

    def add(self, seen: ImageMeasurements) -> None:
        """Add images that were looked at."""
        if self.fidelity and seen.rows is not None:
            self.fidelity.add(seen.rows)
        if self.distances and seen.features is not None:
            self.distances.add(seen.features, None if seen.numbers is None else seen.numbers.tolist())
        if seen.predicted is not None and seen.judged is not None:
            self.predicted.append(seen.predicted)
            self.judged.append(seen.judged)

    @property
    def has_too_few_images(self) -> bool:
        return self.distances is not None and self.distances.has_too_few_images

    def figures(self) -> Figures:
        """Return the figures so far."""
        found: Figures = dict(self.fidelity.result()) if self.fidelity else {}
        found |= self.distances.result() if self.distances else {}
        network = self.reference.classifier
        if network is None:
            return found
        found[self._judgment] = float(torch.cat(self.judged).double().mean())
        if not self.fidelity:
            classes = network.head.out_features
            found["classes"] = torch.cat(self.predicted).bincount(minlength=classes).tolist()
        return found

    def intervals(self) -> Intervals:
        """Return the 95 % interval of each figure that has one."""
        found: Intervals = dict(self.fidelity.intervals()) if self.fidelity else {}
        found |= self.distances.intervals() if self.distances else {}
        if self.judged:
            judged = torch.cat(self.judged).double().unsqueeze(1)
            found[self._judgment] = bootstrap.intervals(judged, lambda means: means)[0]
        return found

    @property
    def _judgment(self) -> str:
        return "accuracy" if self.fidelity else "confidence"


@dataclasses.dataclass(frozen=True)
class RestoredBatch:
    """A batch of restorations x and what they were restored from, x_t: (B, C, H, W) float32; numbers: (B,), of x0.

    The first `count` of them are those that were asked for; the others fill the batch up.
    """

    numbers: Tensor
    x: Tensor
    x_t: Tensor
    count: int


def batches(experiment: Experiment, reference: Reference, count: int, batch_size: int | None) -> Sequence[Tensor]:
    """Return the numbers of the test images that are measured, those of `ImageSet.draw`, batch by batch."""
    return reference.test.draw(count).split(batch_size or experiment.batch_size(MOST))


def filled(count: int, batch_size: int) -> int:
    """Return how many images are computed at a time where `count` are measured, `batch_size` at a time at most.

    A short batch is filled up: an image's bits depend on the shape of what it is computed in, and, where that is no
    whole number of GRAIN images, on the number of threads, and so on how many processes share the processors.
    """
    return min(batch_size, -(-count // GRAIN) * GRAIN)


def make(
    experiment: Experiment,
    reference: Reference,
    parts: Iterable[Tensor],
    clock: SamplingTimer,
    settings: EvaluationSettings,
    sampler: str | None,
    size: int,
) -> Iterator[RestoredBatch]:
    """Restore batches of test images from severity t, or with sampler None leave them as they are there.

    An image comes out the same whatever batches are made before it. size: as `filled` has it, to which batches are
    filled up by their first image.
    """
    for part in parts:
        whole = torch.cat([part, part[:1].expand(size - len(part))])
        numbers = whole.tolist()
        x0 = reference.test.images(whole).to(experiment.device)
        x_t, frozen = experiment.degrade(x0, settings.t, seeds.image_generators(settings.seed, numbers))
        x_t = quantize(x_t, PHOTOGRAPH_BITS) if settings.is_8bit else x_t
        x = x_t
        if sampler is not None:
            degraded, how = DegradedImages(x_t, settings.t, frozen, numbers), settings.sampling(experiment, sampler)
            if not clock.images:  # tables, memory and kernels are made ready when first needed: not on the clock
                next(experiment.restore(degraded, how))
            x = clock.finish(experiment.restore(degraded, how))
        yield RestoredBatch(whole, x, x_t, len(part))


def restore(
    experiment: Experiment,
    reference: Reference,
    settings: EvaluationSettings,
    sampler: str | None,
    *,
    shown: int = 0,
    progress: Callable[[int], None] = lambda images: None,
) -> EvaluationResult:
    """Return how test images come back from severity t, or with sampler None how they are there.

    The images are those of `ImageSet.draw`. Beside the figures of `MetricAccumulator`: evaluations of the network, and
    milliseconds an image. `progress` is called with the number of images of every batch.
    """
    meter, clock = MetricAccumulator(reference, has_originals=True), SamplingTimer(experiment.device)
    made: list[Tensor] = []
    inputs: list[Tensor] = []
    parts = batches(experiment, reference, settings.count, settings.batch_size)
    size = filled(settings.count, settings.batch_size or experiment.batch_size(MOST))
    for batch in make(experiment, reference, parts, clock, settings, sampler, size):
        meter.update(batch.x, batch.numbers, batch.count)
        if sum(len(part) for part in made) < shown:
            made.append(batch.x[: batch.count].clamp(-1, 1).cpu())
            inputs.append(batch.x_t[: batch.count].cpu())
        progress(batch.count)
    measured = meter.figures() | clock.figures()
    pictures = [torch.cat(parts)[:shown] if parts else torch.empty(0) for parts in (made, inputs)]
    return EvaluationResult(measured, meter.intervals(), meter.has_too_few_images, *pictures)


def evaluate(
    experiment: Experiment, reference: Reference, settings: EvaluationSettings, columns: Sequence[str] = COLUMNS
) -> dict[str, EvaluationResult]:
    """Return how the same test images come back in several ways.

    "sampled" is the configured sampler, any other column but "degraded" a sampler's name.
    """
    return {column: restore(experiment, reference, settings, sampler(experiment, column)) for column in columns}


def sampler(experiment: Experiment, column: str) -> str | None:
    """Return the sampler of a column of `evaluate`, None for the one that is not restored."""
    named: dict[str, str | None] = {"degraded": None, "sampled": experiment.config.sample.sampler}
    return named.get(column, column)


class SamplingTimer:
    """Counts the network's evaluations and the seconds of sampling alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.images = 0
        self.evaluations = 0

    def finish(self, steps: Iterator[Step]) -> Tensor:
        """Run a sampler to its end and return x_0."""
        self._wait()
        started = time.perf_counter()
        last = sampling.last(steps)
        self._wait()
        self.seconds += time.perf_counter() - started
        self.images += len(last.x)
        self.evaluations = last.count
        return last.x

    def told(self) -> tuple[float, int, int]:
        """Return seconds, images, and evaluations an image."""
        return self.seconds, self.images, self.evaluations

    def add(self, told: Sequence[float]) -> None:
        """Add what another clock told."""
        self.seconds += told[0]
        self.images += int(told[1])
        self.evaluations = max(self.evaluations, int(told[2]))

    def figures(self) -> Figures:
        """Return both, nothing where nothing was sampled."""
        if not self.images:
            return {}
        return {"evaluations": self.evaluations, "milliseconds": 1000 * self.seconds / self.images}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
