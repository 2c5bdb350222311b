"""Frechet and kernel distances between generated or restored images and real ones, on features of the images.

Streaming: memory grows with the number of features, not with the number of images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation import bootstrap
from colddiff_core.evaluation.bootstrap import Interval

MANY_FEATURES = 256  # above it a Frechet distance is costly and gets fewer groups and replicates
GROUPS, FEW_GROUPS = 20, 10  # groups of images that the bootstrap of a Frechet distance resamples
REPLICATES, FEW_REPLICATES = 200, 12  # of that bootstrap
DEVIATIONS = 1.96  # half the width of a normal distribution's 95 % interval
BLOCK, BLOCKS = 200, 10  # images per block of the kernel distance; blocks kept of the real images
MIN_IMAGES_PER_GROUP, MIN_BLOCKS = 4, 5  # for an interval
MULTIPLIER, MODULUS = 2_654_435_761, 2**32  # Knuth's multiplicative hash: neighbors fall into different groups
CHUNK_IMAGES = 500  # real images processed at a time


class Features(Protocol):
    """A feature extractor that distances are measured on."""

    @property
    def name(self) -> str:
        """Return "FID" for Inception's features, "FD-<data set>" for others, so that the two are not confused."""
        ...

    @property
    def size(self) -> int:
        """Return the number of features per image."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, size) float32 on the CPU for images (B, C, H, W) float32 in [-1, 1]."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Return what to record beside a result: weights and their hash, accuracy and the like."""
        ...


def labels(features: Features) -> dict[str, str]:
    """Return the keys and names of both distances, such as {"fd": "FD-mnist", "kd": "KD-mnist"}."""
    frechet = features.name
    kernel = frechet.replace("F", "K", 1)
    return {name.partition("-")[0].lower(): name for name in (frechet, kernel)}


class Moments:
    """Running sums of features by group of images, for the mean and covariance of all or of a resample."""

    def __init__(self, size: int) -> None:
        """Start with no images; they have `size` features each."""
        self.groups = GROUPS if size <= MANY_FEATURES else FEW_GROUPS
        self.count = torch.zeros(self.groups, dtype=torch.float64)
        self.total = torch.zeros(self.groups, size, dtype=torch.float64)
        self.products = torch.zeros(self.groups, size, size, dtype=torch.float64)
        self.image_count = 0

    def update(self, features: Tensor, numbers: Sequence[int]) -> None:
        """Add features (B, D) of images; the number of an image alone decides its group."""
        rows = features.double().cpu()
        groups = torch.tensor([number * MULTIPLIER % MODULUS * self.groups // MODULUS for number in numbers])
        for group in groups.unique().tolist():
            part = rows[groups == group]
            self.count[group] += len(part)
            self.total[group] += part.sum(0)
            self.products[group] += part.T @ part
        self.image_count += len(rows)

    def gaussian(self, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean (D,) and covariance (D, D), float64; each group counts `weights` (groups,) times."""
        weights = torch.ones(self.groups, dtype=torch.float64) if weights is None else weights
        count = (weights * self.count).sum()
        mean = weights @ self.total / count
        if count < 2:
            return mean, torch.zeros_like(self.products[0])
        products = torch.einsum("g,gij->ij", weights, self.products)
        return mean, (products - count * torch.outer(mean, mean)) / (count - 1)


class GaussianStats:
    """A fixed Gaussian to measure Frechet distances to: mean (D,), covariance (D, D), float64."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        """Compute the square root of the covariance once."""
        self.mean, self.covariance = mean, covariance
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        self.root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def distance(self, mean: Tensor, covariance: Tensor) -> float:
        """Return the squared Frechet distance to the Gaussian with that mean (D,) and covariance (D, D).

        |m - m'|^2 + tr(S + S' - 2 (S'^(1/2) S S'^(1/2))^(1/2))
        """
        inner = self.root @ covariance @ self.root
        crossed = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
        spread = covariance.trace() + self.covariance.trace() - 2 * crossed
        return float((mean - self.mean).square().sum() + spread)


@dataclasses.dataclass(frozen=True)
class ReferenceStats:
    """Features of the real images: their moments, and a sample in blocks (K, BLOCK, D) float32."""

    features: Features
    moments: Moments
    blocks: Tensor

    @property
    def count(self) -> int:
        """Return the number of real images."""
        return self.moments.image_count

    @functools.cached_property
    def gaussian(self) -> GaussianStats:
        """Return the Gaussian fitted to all real images."""
        return GaussianStats(*self.moments.gaussian())

    @property
    def has_too_few_images(self) -> bool:
        """Return whether there are too few real images for a covariance of full rank."""
        return self.count <= self.features.size


def reference_stats(
    features: Features, images: ImageSet, progress: Callable[[int], None] = lambda images: None
) -> ReferenceStats:
    """Return the statistics of a set of real images; `progress` gets the size of each chunk."""
    moments = Moments(features.size)
    picked = images.draw(BLOCKS * BLOCK)
    sample = torch.empty(len(picked), features.size)
    for first in range(0, len(images), CHUNK_IMAGES):
        part = slice(first, min(first + CHUNK_IMAGES, len(images)))
        rows = features(images.images(part))
        moments.update(rows, range(part.start, part.stop))
        is_picked = (picked >= part.start) & (picked < part.stop)
        sample[is_picked] = rows[picked[is_picked] - first]
        progress(len(rows))
    size = min(BLOCK, -(-len(sample) // 2))  # at least two blocks: see `Distances._discrepancy`
    return ReferenceStats(features, moments, sample[: len(sample) // size * size].view(-1, size, features.size))


class Distances:
    """Frechet and kernel distance of a stream of images to the real ones.

    Frechet distance: between Gaussians fitted to the features. It is biased upward for few images, and with no more
    images than features the covariance lacks full rank (`has_too_few_images`). Its interval is the value plus or minus
    1.96 standard deviations of a bootstrap over groups of images; percentiles would add to the bias. Restored images
    are resampled together with their originals, generated ones (`numbers` None) alone.

    Kernel distance: the unbiased squared maximum mean discrepancy with kernel (x.y / D + 1)^3, averaged over blocks of
    200 images. Its interval is a bootstrap over blocks, if there are at least five.

    Images are (B, C, H, W) float32 in [-1, 1].

    Source: Heusel et al. 2017, equation 6; Binkowski et al. 2018; Zaremba et al. 2013 for blocks.
    """

    def __init__(self, reference_stats: ReferenceStats) -> None:
        """Start with no images."""
        self.reference = reference_stats
        self.moments = Moments(reference_stats.features.size)
        self.pending = torch.empty(0, reference_stats.features.size)
        self.block = reference_stats.blocks.shape[1]
        self.is_paired = False
        self.discrepancies: list[tuple[float, int]] = []  # with the number of images, by block

    def update(self, images: Tensor, numbers: Sequence[int] | None = None) -> None:
        """Add images; `numbers` are the indices of their originals in the real set, None for generated images."""
        self.add(self.reference.features(images), numbers)

    def add(self, rows: Tensor, numbers: Sequence[int] | None = None) -> None:
        """Add features (B, D) float32 of images; `numbers` as in `update`."""
        first = self.moments.image_count
        self.is_paired = numbers is not None
        self.moments.update(rows, range(first, first + len(rows)) if numbers is None else numbers)
        self.pending = torch.cat([self.pending, rows])
        while len(self.pending) >= self.block:
            self.discrepancies.append(self._discrepancy(self.pending[: self.block]))
            self.pending = self.pending[self.block :]

    @property
    def has_too_few_images(self) -> bool:
        """Return whether a covariance lacks full rank, for lack of images here or in the real set."""
        return self.moments.image_count <= self.reference.features.size or self.reference.has_too_few_images

    def result(self) -> dict[str, float | None]:
        """Return both distances; None for fewer than two images or features that are not finite."""
        frechet, kernel = labels(self.reference.features)
        if not self._is_measurable:
            return {frechet: None, kernel: None}
        blocks = self._blocks()
        weight = sum(size for _, size in blocks)
        mean = sum(value * size for value, size in blocks) / weight if weight else None
        return {frechet: self._frechet(), kernel: mean}

    def intervals(self) -> dict[str, Interval | None]:
        """Return the 95 % interval of each distance, None if there are too few images."""
        frechet, kernel = labels(self.reference.features)
        if not self._is_measurable:
            return {frechet: None, kernel: None}
        return {frechet: self._frechet_interval(), kernel: self._kernel_interval()}

    @property
    def _is_measurable(self) -> bool:
        is_finite = bool(self.moments.total.isfinite().all())  # not if the network has diverged
        return min(self.moments.image_count, self.reference.count) > 1 and is_finite

    def _frechet_interval(self) -> Interval | None:
        if self.moments.image_count < MIN_IMAGES_PER_GROUP * self.moments.groups:
            return None
        groups, is_cheap = self.moments.groups, self.reference.features.size <= MANY_FEATURES
        numbers = seeds.generator("bootstrap", "groups")
        drawn = torch.randint(groups, (REPLICATES if is_cheap else FEW_REPLICATES, groups), generator=numbers)
        reference, values = self.reference, []
        for row in drawn:
            weights = row.bincount(minlength=groups).double()
            real = GaussianStats(*reference.moments.gaussian(weights)) if self.is_paired else reference.gaussian
            values.append(real.distance(*self.moments.gaussian(weights)))
        # Resampling G groups gives (G - 1) / G of the variance.
        deviation = float(torch.tensor(values).std()) * (groups / (groups - 1)) ** 0.5
        value = self._frechet()
        return value - DEVIATIONS * deviation, value + DEVIATIONS * deviation

    def _frechet(self) -> float:
        return self.reference.gaussian.distance(*self.moments.gaussian())

    def _kernel_interval(self) -> Interval | None:
        blocks = torch.tensor(self._blocks(), dtype=torch.float64)
        if len(blocks) < MIN_BLOCKS:
            return None
        weighted = torch.stack([blocks.prod(1), blocks[:, 1]], dim=1)
        return bootstrap.intervals(weighted, lambda means: means[..., :1] / means[..., 1:])[0]

    def _blocks(self) -> list[tuple[float, int]]:
        last = self._discrepancy(self.pending) if len(self.pending) > 1 else None
        return self.discrepancies + ([last] if last else [])

    def _discrepancy(self, block: Tensor) -> tuple[float, int]:
        # Both come in the order of `ImageSet.draw`. The estimate is unbiased only for independent images, so a block of
        # restored ones is compared with the originals of another block.
        blocks = self.reference.blocks
        real = blocks[(len(self.discrepancies) + len(blocks) // 2) % len(blocks)]
        return kernel_discrepancy(real[: len(block)].double(), block.double()), len(block)


def kernel_discrepancy(real: Tensor, other: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets of features, each (N, D) float64; NaN for N < 2.

    Source: Binkowski et al. 2018, with their kernel (x y / D + 1)^3.
    """
    count = len(real)
    if count < 2:
        return math.nan

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = sum(float(k.sum() - k.trace()) for k in (kernel(real, real), kernel(other, other)))
    return within / (count * (count - 1)) - 2 * float(kernel(real, other).mean())
