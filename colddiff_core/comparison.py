"""The same images and seeds, restored or generated in several ways: what the paper's argument rests on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from colddiff_core import diversity, sampling, seeds
from colddiff_core.classifier import Classifier
from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation import Fidelity
from colddiff_core.experiment import Experiment
from colddiff_core.generation import Generator
from colddiff_core.sampling import Step

CHUNK = 500  # images that a classifier sees at a time
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to restore from severity t, or with a `generator` to generate: a run, a sampler and a stride."""

    label: str
    experiment: Experiment
    sampler: str
    stride: int
    t: int
    generator: Generator | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a contender came to: its figures by name, its first images, and what those were restored from or None.

    shown, degraded: (K, C, H, W) float32 in [-1, 1].
    """

    figures: Figures
    shown: Tensor
    degraded: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Reference:
    """What contenders are held against: the images, and a classifier of them where they have labels."""

    train: Callable[[], ImageSet]
    test: ImageSet
    classifier: Classifier | None


def restore(
    contender: Contender,
    reference: Reference,
    *,
    count: int,
    seed: int,
    batch_size: int,
    shown: int,
    progress: Callable[[int], None] = lambda images: None,
) -> Outcome:
    """Return how the first `count` test images come back.

    rmse, psnr, ssim as `Fidelity` has them; distance: Frechet distance to the test images' features; accuracy: how many
    are still of their class; evaluations of the network and milliseconds an image.
    """
    built, meter, clock = contender.experiment, Fidelity(), _Clock(contender.experiment.device)
    made: list[Tensor] = []
    inputs: list[Tensor] = []
    for first in range(0, count, batch_size):
        numbers = range(first, min(first + batch_size, count))
        x0 = reference.test.images(slice(numbers.start, numbers.stop)).to(built.device)
        x_t, frozen = built.degrade(x0, contender.t, seeds.image_generators(seed, numbers))
        way: dict[str, Any] = {"sampler": contender.sampler, "stride": contender.stride, "seed": seed}
        way["numbers"] = numbers
        if not first:  # tables, memory and kernels are made ready when they are first needed: not on the clock
            next(built.restore(x_t, contender.t, frozen, **way))
        x = clock.finish(built.restore(x_t, contender.t, frozen, **way))
        meter.update(x, x0)
        made.append(x.clamp(-1, 1).cpu())
        if first < shown:
            inputs.append(x_t.cpu())
        progress(len(x0))
    images = torch.cat(made)
    figures: Figures = dict(meter.result())
    figures |= _judge(images, reference, reference.test.labels) | clock.figures()
    return Outcome(figures, images[:shown], torch.cat(inputs)[:shown])


def generate(
    contender: Contender,
    reference: Reference,
    *,
    count: int,
    seed: int,
    shown: int,
    progress: Callable[[int], None] = lambda images: None,
) -> Outcome:
    """Return what `count` images from nothing are like.

    distance as in `restore`; confidence: mean of the classifier's highest probability; classes: how many images it
    takes for each class; pairwise: between two images, nearest: to the nearest training image, mean RMSE on [0, 1].
    None is a figure that there are too few images for.
    """
    assert contender.generator is not None
    clock = _Clock(contender.experiment.device)
    made = []
    way: dict[str, Any] = {"seed": seed, "sampler": contender.sampler, "stride": contender.stride}
    next(next(contender.generator.generate(1, **way)).steps)
    for batch in contender.generator.generate(count, **way):
        made.append(clock.finish(batch.steps)[: batch.count].clamp(-1, 1).cpu())
        progress(batch.count)
    images = torch.cat(made)
    return Outcome(describe(images, reference) | clock.figures(), images[:shown])


def describe(images: Tensor, reference: Reference) -> Figures:
    """Return the figures of images (N, C, H, W) that answer to no original: those of `generate` but time."""
    nearest = diversity.nearest_neighbours(images, reference.train())
    figures = _judge(images, reference, None)
    return figures | {
        "pairwise": diversity.pairwise_distance(images) if len(images) > 1 else None,
        "nearest": float(nearest.distance.mean()),
    }


def describe_real(count: int, reference: Reference) -> Figures:
    """Return the figures that images drawn from the data have: what perfect generation would come to.

    The first `count` test images (all there are if fewer), their distance that of as many training images.
    """
    count = min(count, len(reference.test))
    figures = describe(reference.test.images(slice(0, count)), reference)
    train = reference.train()
    others = train.images(torch.linspace(0, len(train) - 1, min(count, len(train))).long())
    return figures | {"distance": _judge(others, reference, None)["distance"]}


@torch.no_grad()
def _judge(images: Tensor, reference: Reference, labels: Tensor | None) -> Figures:
    """Return what the classifier makes of images; `labels` are their classes where they have any."""
    network = reference.classifier
    if network is None:
        return {"distance": None} | ({"accuracy": None} if labels is not None else {"confidence": None})
    device = network.accuracy.device
    scores = torch.cat([network(part.to(device)).cpu() for part in images.split(CHUNK)])
    figures: Figures = {"distance": _distance(images, reference, network)}
    predicted = scores.argmax(1)
    if labels is not None:
        return figures | {"accuracy": float((predicted == labels[: len(images)]).double().mean())}
    return figures | {
        "confidence": float(scores.softmax(1).amax(1).mean()),
        "classes": predicted.bincount(minlength=scores.shape[1]).tolist(),
    }


def _distance(images: Tensor, reference: Reference, network: Classifier) -> float | None:
    """Return the Frechet distance to all test images; None where either are too few to have a covariance."""
    found, wanted = (_features(part, network) for part in (images, reference.test))
    return diversity.frechet_distance(found, wanted) if min(len(found), len(wanted)) > found.shape[1] else None


def _features(images: Tensor | ImageSet, network: Classifier) -> Tensor:
    device = network.accuracy.device
    if isinstance(images, Tensor):
        parts: Iterator[Tensor] = iter(images.split(CHUNK))
    else:
        parts = (images.images(slice(first, first + CHUNK)) for first in range(0, len(images), CHUNK))
    return torch.cat([network.features(part.to(device)).cpu() for part in parts])


class _Clock:
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
        return {"evaluations": self.evaluations, "milliseconds": 1000 * self.seconds / self.images}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
