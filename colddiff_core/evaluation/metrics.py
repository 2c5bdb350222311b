"""Measure images: each against its original, and their distribution against all test images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation import bootstrap
from colddiff_core.evaluation.bootstrap import Interval
from colddiff_core.evaluation.classifier import Classifier
from colddiff_core.evaluation.distances import Distances, Features, ReferenceStats
from colddiff_core.evaluation.fidelity import Fidelity, PerceptualDistance

Figures = dict[str, Any]
Intervals = dict[str, Interval | None]


@dataclasses.dataclass(frozen=True)
class Reference:
    """What images are measured against.

    Attributes:
        test: The originals.
        train: Loads the training images.
        classifier: Classifies images, if the data set has labels.
        target: Statistics that distances between distributions are measured to.
        perceptual: LPIPS, if its weights are available.
        features: The target's features, on ranks that extract features but compute no distances.
    """

    test: ImageSet
    train: Callable[[], ImageSet]
    classifier: Classifier | None = None
    target: ReferenceStats | None = None
    perceptual: PerceptualDistance | None = None
    features: Features | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the features and LPIPS weights, to record beside a result."""
        metadata: dict[str, Any] = {
            "features": None,
            "perceptual": self.perceptual.metadata() if self.perceptual else None,
        }
        if self.target:
            features = self.target.features
            described = {"name": features.name, "size": features.size, "images": self.target.count}
            metadata["features"] = described | features.metadata()
        return metadata

    def title(self, dataset: str) -> str:
        """Return a name for the images, such as "cifar10 (JPEG)" if they differ from the published data set."""
        return f"{dataset} ({self.test.note})" if self.test.note else dataset


@dataclasses.dataclass(frozen=True)
class ImageMeasurements:
    """Measurements of each image in a batch, on the CPU. None means not measured.

    Attributes:
        numbers: Indices of the originals, (B,) int64.
        rows: Output of `Fidelity.measure`, (B, 3 or 4) float64.
        features: (B, D) float32.
        predicted: The predicted class, (B,) int64.
        judged: Whether the class is right, (B,) bool; without originals the highest probability, (B,) float32.
    """

    numbers: Tensor | None = None
    rows: Tensor | None = None
    features: Tensor | None = None
    predicted: Tensor | None = None
    judged: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the measurements by name, as they are stored in a file."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: tensor for name, tensor in fields.items() if tensor is not None}

    def first(self, count: int | None) -> ImageMeasurements:
        """Return the measurements of the first images; None for all."""
        return ImageMeasurements(**{name: tensor[:count] for name, tensor in self.tensors().items()})


class MetricAccumulator:
    """Measure a stream of images; memory grows only by a few numbers per image.

    With originals: rmse, psnr, ssim and lpips (see `Fidelity`), and accuracy, the share of images that the classifier
    assigns to their class. Without: confidence, the mean of its highest probability, and classes, how many images it
    assigns to each. In both cases: the distances of `Distances`. A figure that cannot be computed is None.
    """

    def __init__(self, reference: Reference, *, has_originals: bool) -> None:
        self.reference = reference
        self.fidelity = Fidelity(reference.perceptual) if has_originals else None
        self.distances = Distances(reference.target) if reference.target else None
        self.judged: list[Tensor] = []  # see `ImageMeasurements`
        self.predicted: list[Tensor] = []

    def update(self, images: Tensor, numbers: Tensor | None = None, count: int | None = None) -> None:
        """Measure images and add them.

        Args:
            images: (B, C, H, W) float32; clamped to [-1, 1].
            numbers: Indices of their originals in the test set, (B,) int64.
            count: Add only the first images; the rest are padding.

        Raises:
            UsageError: Images and originals differ in shape.
        """
        self.add(self.measure(images, numbers).first(count))

    @torch.no_grad()
    def measure(self, images: Tensor, numbers: Tensor | None = None) -> ImageMeasurements:
        """Return the measurements of each image without adding them; see `update` for the arguments.

        Raises:
            UsageError: Images and originals differ in shape.
        """
        images, reference = images.clamp(-1, 1), self.reference
        rows = predicted = judged = None
        if self.fidelity:
            assert numbers is not None
            rows = self.fidelity.measure(images, reference.test.images(numbers, images.device))
        features = reference.target.features if reference.target else reference.features
        network = reference.classifier
        if network is not None:
            scores = network(images.to(network.accuracy.device)).cpu()
            predicted, labels = scores.argmax(1), reference.test.labels
            is_known = numbers is not None and labels is not None
            judged = predicted == labels[numbers].cpu() if is_known else scores.softmax(1).amax(1)  # type: ignore[index]
        return ImageMeasurements(numbers, rows, features(images) if features else None, predicted, judged)

    def add(self, measurements: ImageMeasurements) -> None:
        """Add measured images."""
        if self.fidelity and measurements.rows is not None:
            self.fidelity.add(measurements.rows)
        if self.distances and measurements.features is not None:
            numbers = None if measurements.numbers is None else measurements.numbers.tolist()
            self.distances.add(measurements.features, numbers)
        if measurements.predicted is not None and measurements.judged is not None:
            self.predicted.append(measurements.predicted)
            self.judged.append(measurements.judged)

    @property
    def has_too_few_images(self) -> bool:
        """Return whether there are too few images for a reliable Frechet distance."""
        return self.distances is not None and self.distances.has_too_few_images

    def figures(self) -> Figures:
        """Return the figures so far."""
        figures: Figures = dict(self.fidelity.result()) if self.fidelity else {}
        figures |= self.distances.result() if self.distances else {}
        network = self.reference.classifier
        if network is None:
            return figures
        figures[self._judgment] = float(torch.cat(self.judged).double().mean())
        if not self.fidelity:
            classes = network.head.out_features
            figures["classes"] = torch.cat(self.predicted).bincount(minlength=classes).tolist()
        return figures

    def intervals(self) -> Intervals:
        """Return the 95 % intervals of the figures that have one."""
        intervals: Intervals = dict(self.fidelity.intervals()) if self.fidelity else {}
        intervals |= self.distances.intervals() if self.distances else {}
        if self.judged:
            judged = torch.cat(self.judged).double().unsqueeze(1)
            intervals[self._judgment] = bootstrap.intervals(judged, lambda means: means)[0]
        return intervals

    @property
    def _judgment(self) -> str:
        return "accuracy" if self.fidelity else "confidence"
