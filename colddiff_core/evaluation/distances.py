"""Distances between what images are made and what images there are: Frechet and kernel distances of features.

Streaming: what is kept grows with the number of features, not with the number of images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation import bootstrap
from colddiff_core.evaluation.bootstrap import Interval

GROUPS, FEW_GROUPS = 20, 10  # of images, that the spread of a Frechet distance is told from; with MANY features
REPLICATES, COSTLY_REPLICATES = 200, 12  # bootstrap replicates with few features, and with MANY
MANY = 256
NORMAL = 1.96  # standard deviations to either side of a 95 % interval
BLOCK, BLOCKS = 200, 10  # images of a block of the kernel distance; blocks kept of the real images
LEAST_OF_GROUP, LEAST_BLOCKS = 4, 5  # for an interval: images a group on average, blocks
MIXER, MODULUS = 2_654_435_761, 2**32  # of Knuth's multiplicative hashing: neighbors fall into unlike groups
CHUNK = 500  # real images looked at a time


class Features(Protocol):
    """What distances are measured on.

    name: "FID" for Inception's features, "FD-<data set>" for others, so that nobody takes one for the other; size:
    features an image.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Take images (B, C, H, W) float32 in [-1, 1] to features (B, size) float32 on the CPU."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Return what a record must say of them: weights and their hash, accuracy and the like."""
        ...


def labels(features: Features) -> dict[str, str]:
    """Return the keys of both distances and what they are called: {"fd": "FD-mnist", "kd": "KD-mnist"}."""
    frechet = features.name
    kernel = frechet.replace("F", "K", 1)
    return {name.partition("-")[0].lower(): name for name in (frechet, kernel)}


class Moments:
    """Sums of features by group of images, from which mean and covariance of all, or of a resample, follow."""

    def __init__(self, size: int) -> None:
        self.groups = GROUPS if size <= MANY else FEW_GROUPS
        self.count = torch.zeros(self.groups, dtype=torch.float64)
        self.total = torch.zeros(self.groups, size, dtype=torch.float64)
        self.products = torch.zeros(self.groups, size, size, dtype=torch.float64)
        self.seen = 0

    def update(self, features: Tensor, numbers: Sequence[int]) -> None:
        """Add features (B, D) of images of these numbers, which alone decide on the group that each is in."""
        rows = features.double().cpu()
        groups = torch.tensor([number * MIXER % MODULUS * self.groups // MODULUS for number in numbers])
        for group in groups.unique().tolist():
            part = rows[groups == group]
            self.count[group] += len(part)
            self.total[group] += part.sum(0)
            self.products[group] += part.T @ part
        self.seen += len(rows)

    def gaussian(self, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean (D,) and covariance (D, D), every group counted `weights` (groups,) times."""
        weights = torch.ones(self.groups, dtype=torch.float64) if weights is None else weights
        count = (weights * self.count).sum()
        mean = weights @ self.total / count
        if count < 2:
            return mean, torch.zeros_like(self.products[0])
        products = torch.einsum("g,gij->ij", weights, self.products)
        return mean, (products - count * torch.outer(mean, mean)) / (count - 1)


class GaussianStats:
    """A Gaussian that others' Frechet distances to are wanted: mean (D,), covariance (D, D), float64."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean, covariance
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        self.root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def distance(self, mean: Tensor, covariance: Tensor) -> float:
        """Return |m - m'|^2 + tr(S + S' - 2 (S'^(1/2) S S'^(1/2))^(1/2))."""
        inner = self.root @ covariance @ self.root
        crossed = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
        spread = covariance.trace() + self.covariance.trace() - 2 * crossed
        return float((mean - self.mean).square().sum() + spread)


@dataclasses.dataclass(frozen=True)
class ReferenceStats:
    """Real images as features see them: their moments, and some of the features, blocks (K, BLOCK, D) float32."""

    features: Features
    moments: Moments
    blocks: Tensor

    @property
    def count(self) -> int:
        return self.moments.seen

    @functools.cached_property
    def known(self) -> GaussianStats:
        """Return the distribution of all the images."""
        return GaussianStats(*self.moments.gaussian())

    @property
    def has_too_few_images(self) -> bool:
        """Tell whether the real images are too few for their covariance to have full rank."""
        return self.count <= self.features.size


def reference_stats(
    features: Features, images: ImageSet, progress: Callable[[int], None] = lambda images: None
) -> ReferenceStats:
    """Return what distances to a set of images are measured against."""
    moments = Moments(features.size)
    picked = images.draw(BLOCKS * BLOCK)
    some = torch.empty(len(picked), features.size)
    for first in range(0, len(images), CHUNK):
        part = slice(first, min(first + CHUNK, len(images)))
        found = features(images.images(part))
        moments.update(found, range(part.start, part.stop))
        is_here = (picked >= part.start) & (picked < part.stop)
        some[is_here] = found[picked[is_here] - first]
        progress(len(found))
    size = min(BLOCK, -(-len(some) // 2))  # two blocks at least: see `Distances`
    return ReferenceStats(features, moments, some[: len(some) // size * size].view(-1, size, features.size))


class Distances:
    """Frechet and kernel distance of a stream of images to the real ones.

    Frechet: of Gaussians fitted to the features. It grows as images get fewer, and from as many images as features down
    a covariance has not full rank (`is_scarce`). Its interval is the value and 1.96 standard deviations of a bootstrap
    over groups of images: the spread alone, for resampling adds to the bias by few images. Restored images are
    resampled together with their originals, generated ones (numbers None) by themselves.
    Kernel: the unbiased squared maximum mean discrepancy with kernel (x.y / D + 1)^3, mean over blocks of 200 images
    (every image is in one), and its bootstrap over blocks where there are five.

    Source: Heusel et al. 2017, equation 6; Binkowski et al. 2018; Zaremba et al. 2013 for blocks.
    """

    def __init__(self, reference_stats: ReferenceStats) -> None:
        self.target = reference_stats
        self.moments = Moments(reference_stats.features.size)
        self.pending = torch.empty(0, reference_stats.features.size)
        self.block = reference_stats.blocks.shape[1]
        self.is_paired = False
        self.discrepancies: list[tuple[float, int]] = []  # of a block, and how many images it has

    def update(self, images: Tensor, numbers: Sequence[int] | None = None) -> None:
        """Add images (B, C, H, W) float32 in [-1, 1]; `numbers` are those of their originals among the real ones."""
        self.add(self.target.features(images), numbers)

    def add(self, found: Tensor, numbers: Sequence[int] | None = None) -> None:
        """Add the features (B, D) float32 of images; `numbers` as `update` takes them."""
        seen = self.moments.seen
        self.is_paired = numbers is not None
        self.moments.update(found, range(seen, seen + len(found)) if numbers is None else numbers)
        self.pending = torch.cat([self.pending, found])
        while len(self.pending) >= self.block:
            self.discrepancies.append(self._discrepancy(self.pending[: self.block]))
            self.pending = self.pending[self.block :]

    @property
    def has_too_few_images(self) -> bool:
        """Tell whether a covariance lacks full rank: fewer images than features, or one more."""
        return self.moments.seen <= self.target.features.size or self.target.has_too_few_images

    def result(self) -> dict[str, float | None]:
        """Return both distances; None for fewer than two images, and for images that are not finite."""
        frechet, kernel = labels(self.target.features)
        if not self._is_measurable:
            return {frechet: None, kernel: None}
        blocks = self._blocks()
        weight = sum(size for _, size in blocks)
        mean = sum(value * size for value, size in blocks) / weight if weight else None
        return {frechet: self._frechet(), kernel: mean}

    def intervals(self) -> dict[str, Interval | None]:
        """Return the 95 % interval of each, None where there are too few images for one."""
        frechet, kernel = labels(self.target.features)
        if not self._is_measurable:
            return {frechet: None, kernel: None}
        return {frechet: self._frechet_interval(), kernel: self._kernel_interval()}

    @property
    def _is_measurable(self) -> bool:
        is_finite = bool(self.moments.total.isfinite().all())  # else the network has diverged
        return min(self.moments.seen, self.target.count) > 1 and is_finite

    def _frechet_interval(self) -> Interval | None:
        if self.moments.seen < LEAST_OF_GROUP * self.moments.groups:
            return None
        groups, is_cheap = self.moments.groups, self.target.features.size <= MANY
        numbers = seeds.generator("bootstrap", "groups")
        drawn = torch.randint(groups, (REPLICATES if is_cheap else COSTLY_REPLICATES, groups), generator=numbers)
        found = []
        for row in drawn:
            weights = row.bincount(minlength=groups).double()
            known = GaussianStats(*self.target.moments.gaussian(weights)) if self.is_paired else self.target.known
            found.append(known.distance(*self.moments.gaussian(weights)))
        # Resampling G groups shows (G - 1) / G of the variance.
        deviation = float(torch.tensor(found).std()) * (groups / (groups - 1)) ** 0.5
        value = self._frechet()
        return value - NORMAL * deviation, value + NORMAL * deviation

    def _frechet(self) -> float:
        return self.target.known.distance(*self.moments.gaussian())

    def _kernel_interval(self) -> Interval | None:
        blocks = torch.tensor(self._blocks(), dtype=torch.float64)
        if len(blocks) < LEAST_BLOCKS:
            return None
        weighted = torch.stack([blocks.prod(1), blocks[:, 1]], dim=1)
        return bootstrap.intervals(weighted, lambda means: means[..., :1] / means[..., 1:])[0]

    def _blocks(self) -> list[tuple[float, int]]:
        last = self._discrepancy(self.pending) if len(self.pending) > 1 else None
        return self.discrepancies + ([last] if last else [])

    def _discrepancy(self, block: Tensor) -> tuple[float, int]:
        from torchmetrics.image.kid import poly_mmd  # noqa: PLC0415 - seconds that only this needs

        # Both come in the order of `ImageSet.draw`. The estimate is unbiased for independent images: a block of
        # restored ones is held against the originals of others.
        known = self.target.blocks
        real = known[(len(self.discrepancies) + len(known) // 2) % len(known)]
        return float(poly_mmd(real[: len(block)].double(), block.double())), len(block)
