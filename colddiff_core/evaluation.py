"""What a run's restorations are worth: held against the originals, and as a whole against all test images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from colddiff_core import figures, sampling, seeds
from colddiff_core.classifier import Classifier
from colddiff_core.datasets import ImageSet
from colddiff_core.distribution import Distances, Target
from colddiff_core.experiment import Experiment
from colddiff_core.fidelity import Fidelity, Perceptual
from colddiff_core.figures import Interval
from colddiff_core.images import quantize
from colddiff_core.sampling import Step

COLUMNS = ("degraded", "direct", "sampled", "naive")
PHOTOGRAPH_BITS = 8
MOST = {"cpu": 100, "cuda": 512}  # images at a time, if memory has room
Figures = dict[str, Any]
Intervals = dict[str, Interval | None]


@dataclasses.dataclass(frozen=True)
class Reference:
    """What images are held against.

    test: the originals; train: loads the training images; classifier: of the classes, where the images have labels;
    target: what distances between distributions are measured to; perceptual: LPIPS, where its weights are there.
    """

    test: ImageSet
    train: Callable[[], ImageSet]
    classifier: Classifier | None = None
    target: Target | None = None
    perceptual: Perceptual | None = None

    def about(self) -> dict[str, Any]:
        """Return what a record says of the features and of LPIPS that images are measured with."""
        found: dict[str, Any] = {"features": None, "perceptual": self.perceptual.about() if self.perceptual else None}
        if self.target:
            seen = self.target.features
            found["features"] = {"name": seen.name, "size": seen.size, "images": self.target.count} | seen.about()
        return found

    def title(self, dataset: str) -> str:
        """Return what the images are to be called: "cifar10 (JPEG)" where they are not the data set as published."""
        return f"{dataset} ({self.test.note})" if self.test.note else dataset


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What images came to: figures by name, their 95 % intervals, and the first of them.

    is_scarce: they are too few for a Frechet distance that can be relied on; shown: (K, C, H, W) float32 in [-1, 1];
    degraded: what those were restored from.
    """

    figures: Figures
    intervals: Intervals
    is_scarce: bool
    shown: Tensor
    degraded: Tensor | None = None


class Meter:
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

    @torch.no_grad()
    def update(self, images: Tensor, numbers: Tensor | None = None) -> None:
        """Add images (B, C, H, W) float32 in [-1, 1], and the numbers (B,) of their originals in the test set."""
        images = images.clamp(-1, 1)
        if self.fidelity:
            assert numbers is not None
            self.fidelity.update(images, self.reference.test.images(numbers).to(images.device))
        if self.distances:
            self.distances.update(images, None if numbers is None else numbers.tolist())
        network = self.reference.classifier
        if network is None:
            return
        scores = network(images.to(network.accuracy.device)).cpu()
        self.predicted.append(scores.argmax(1))
        labels = self.reference.test.labels
        if numbers is not None and labels is not None:
            self.judged.append(self.predicted[-1] == labels[numbers].cpu())
        else:
            self.judged.append(scores.softmax(1).amax(1))

    @property
    def is_scarce(self) -> bool:
        return self.distances is not None and self.distances.is_scarce

    def figures(self) -> Figures:
        """Return the figures so far."""
        found: Figures = dict(self.fidelity.result()) if self.fidelity else {}
        found |= self.distances.result() if self.distances else {}
        network = self.reference.classifier
        if network is None:
            return found
        found[self._judgement] = float(torch.cat(self.judged).double().mean())
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
            found[self._judgement] = figures.intervals(judged, lambda means: means)[0]
        return found

    @property
    def _judgement(self) -> str:
        return "accuracy" if self.fidelity else "confidence"


def restore(
    experiment: Experiment,
    reference: Reference,
    *,
    sampler: str | None,
    t: int,
    count: int,
    seed: int = 0,
    stride: int = 1,
    batch_size: int | None = None,
    is_8bit: bool = False,
    shown: int = 0,
    progress: Callable[[int], None] = lambda images: None,
) -> Outcome:
    """Return how `count` test images come back from severity t, or with sampler None how they are there.

    The images are those of `ImageSet.draw`. batch_size: how many at a time, None for as many as fit.
    is_8bit: round the degraded images to 8 bits first, as a photograph is, whatever the preset does. Beside the figures
    of `Meter`: evaluations of the network, and milliseconds an image. `progress` is told of every batch's images.
    """
    meter, clock = Meter(reference, has_originals=True), Clock(experiment.device)
    made: list[Tensor] = []
    inputs: list[Tensor] = []
    for part in reference.test.draw(count).split(batch_size or experiment.batch_size(MOST)):
        numbers = part.tolist()
        x0 = reference.test.images(part).to(experiment.device)
        x_t, frozen = experiment.degrade(x0, t, seeds.image_generators(seed, numbers))
        x_t = quantize(x_t, PHOTOGRAPH_BITS) if is_8bit else x_t
        x = x_t
        if sampler is not None:
            way: dict[str, Any] = {"sampler": sampler, "stride": stride, "seed": seed, "numbers": numbers}
            way["bits"] = PHOTOGRAPH_BITS if is_8bit else experiment.bits
            if not clock.images:  # tables, memory and kernels are made ready when first needed: not on the clock
                next(experiment.restore(x_t, t, frozen, **way))
            x = clock.finish(experiment.restore(x_t, t, frozen, **way))
        meter.update(x, part)
        if sum(len(part) for part in made) < shown:
            made.append(x.clamp(-1, 1).cpu())
            inputs.append(x_t.cpu())
        progress(len(x0))
    measured = meter.figures() | clock.figures()
    pictures = [torch.cat(parts)[:shown] if parts else torch.empty(0) for parts in (made, inputs)]
    return Outcome(measured, meter.intervals(), meter.is_scarce, *pictures)


def evaluate(
    experiment: Experiment, reference: Reference, *, columns: Sequence[str] = COLUMNS, **common: Any
) -> dict[str, Outcome]:
    """Return how the same test images come back in several ways; `common` is as `restore` takes it.

    "sampled" is the configured sampler, any other column but "degraded" a sampler's name.
    """
    named: dict[str, str | None] = {"degraded": None, "sampled": experiment.config.sample.sampler}
    return {column: restore(experiment, reference, sampler=named.get(column, column), **common) for column in columns}


class Clock:
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

    def figures(self) -> Figures:
        """Return both, nothing where nothing was sampled."""
        if not self.images:
            return {}
        return {"evaluations": self.evaluations, "milliseconds": 1000 * self.seconds / self.images}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
