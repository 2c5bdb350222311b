"""Distances between what images are made and what images there are: Frechet and kernel distances of features.

Streaming: what is kept grows with the number of features, not with the number of images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.figures import Interval

GROUPS = 20  # of images, that the spread of a Frechet distance is told from
REPLICATES, COSTLY_REPLICATES = 200, 25  # bootstrap replicates with few features, and with MANY
MANY = 256
NORMAL = 1.96  # standard deviations to either side of a 95 % interval
BLOCK, BLOCKS = 200, 10  # images of a block of the kernel distance; blocks kept of the real images
LEAST_BLOCKS = 5  # for an interval
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

    def about(self) -> dict[str, Any]:
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
        self.count = torch.zeros(GROUPS, dtype=torch.float64)
        self.total = torch.zeros(GROUPS, size, dtype=torch.float64)
        self.products = torch.zeros(GROUPS, size, size, dtype=torch.float64)
        self.seen = 0

    def update(self, features: Tensor) -> None:
        """Add features (B, D); image k of the stream goes into group k mod GROUPS, however it is batched."""
        rows = features.double().cpu()
        for row in range(min(GROUPS, len(rows))):
            part = rows[row::GROUPS]
            group = (self.seen + row) % GROUPS
            self.count[group] += len(part)
            self.total[group] += part.sum(0)
            self.products[group] += part.T @ part
        self.seen += len(rows)

    def gaussian(self, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean (D,) and covariance (D, D), every group counted `weights` (GROUPS,) times."""
        weights = torch.ones(GROUPS, dtype=torch.float64) if weights is None else weights
        count = (weights * self.count).sum()
        mean = weights @ self.total / count
        if count < 2:
            return mean, torch.zeros_like(self.products[0])
        products = torch.einsum("g,gij->ij", weights, self.products)
        return mean, (products - count * torch.outer(mean, mean)) / (count - 1)


@dataclasses.dataclass(frozen=True)
class Target:
    """Real images as features see them.

    mean (D,), covariance (D, D) and its root (D, D) float64; blocks: some of the features (K, BLOCK, D) float32.
    """

    features: Features
    count: int
    mean: Tensor
    covariance: Tensor
    root: Tensor
    blocks: Tensor

    @property
    def is_scarce(self) -> bool:
        """Tell whether the real images are too few for their covariance to have full rank."""
        return self.count <= self.features.size


def target(features: Features, images: ImageSet, progress: Callable[[int], None] = lambda images: None) -> Target:
    """Return what distances to a set of images are measured against."""
    moments = Moments(features.size)
    picked = torch.linspace(0, len(images) - 1, min(len(images), BLOCKS * BLOCK)).long()
    kept = []
    for first in range(0, len(images), CHUNK):
        part = slice(first, min(first + CHUNK, len(images)))
        found = features(images.images(part))
        moments.update(found)
        kept.append(found[picked[(picked >= part.start) & (picked < part.stop)] - first])
        progress(len(found))
    mean, covariance = moments.gaussian()
    # Neighbours in the set lie in different blocks, so that each block is like the whole.
    some = torch.cat(kept)
    size = min(BLOCK, len(some))
    blocks = some[: len(some) // size * size].view(size, -1, features.size).transpose(0, 1).contiguous()
    return Target(features, len(images), mean, covariance, _root(covariance), blocks)


class Distances:
    """Frechet and kernel distance of a stream of images to the real ones.

    Frechet: |m - m'|^2 + tr(S + S' - 2 (S'^(1/2) S S'^(1/2))^(1/2)). It grows as images get fewer, and from as many
    images as features down S has not full rank (`is_scarce`). Its interval is the value and 1.96 standard deviations of
    a bootstrap over 20 groups of images: the spread alone, for resampling adds to the bias by few images.
    Kernel: the unbiased squared maximum mean discrepancy with kernel (x.y / D + 1)^3, mean over blocks of 200 images
    (every image is in one), and its bootstrap over blocks where there are five.

    Source: Heusel et al. 2017, equation 6; Binkowski et al. 2018; Zaremba et al. 2013 for blocks.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.moments = Moments(target.features.size)
        self.pending = torch.empty(0, target.features.size)
        self.block = target.blocks.shape[1]  # BLOCK, or all the real images where they are fewer
        self.discrepancies: list[tuple[float, int]] = []  # of a block, and how many images it has

    def update(self, images: Tensor) -> None:
        """Add images (B, C, H, W) float32 in [-1, 1]."""
        found = self.target.features(images)
        self.moments.update(found)
        self.pending = torch.cat([self.pending, found])
        while len(self.pending) >= self.block:
            self.discrepancies.append(self._discrepancy(self.pending[: self.block]))
            self.pending = self.pending[self.block :]

    @property
    def is_scarce(self) -> bool:
        """Tell whether a covariance lacks full rank: fewer images than features, or one more."""
        return self.moments.seen <= self.target.features.size or self.target.is_scarce

    def result(self) -> dict[str, float | None]:
        """Return both distances; None for fewer than two images."""
        frechet, kernel = labels(self.target.features)
        if min(self.moments.seen, self.target.count) < 2:
            return {frechet: None, kernel: None}
        blocks = self._blocks()
        weight = sum(size for _, size in blocks)
        mean = sum(value * size for value, size in blocks) / weight if weight else None
        return {frechet: self._frechet(), kernel: mean}

    def intervals(self) -> dict[str, Interval | None]:
        """Return the 95 % interval of each, None where there are too few images for one."""
        frechet, kernel = labels(self.target.features)
        return {frechet: self._frechet_interval(), kernel: self._kernel_interval()}

    def _frechet(self, weights: Tensor | None = None) -> float:
        mean, covariance = self.moments.gaussian(weights)
        known = self.target
        inner = known.root @ covariance @ known.root
        crossed = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
        spread = covariance.trace() + known.covariance.trace() - 2 * crossed
        return float((mean - known.mean).square().sum() + spread)

    def _frechet_interval(self) -> Interval | None:
        if self.moments.seen < 2 * GROUPS:
            return None
        numbers = seeds.generator("bootstrap", "groups")
        replicates = REPLICATES if self.target.features.size <= MANY else COSTLY_REPLICATES
        drawn = torch.randint(GROUPS, (replicates, GROUPS), generator=numbers)
        found = [self._frechet(row.bincount(minlength=GROUPS).double()) for row in drawn]
        # Resampling G groups shows (G - 1) / G of the variance.
        deviation = float(torch.tensor(found).std()) * (GROUPS / (GROUPS - 1)) ** 0.5
        value = self._frechet()
        return max(0.0, value - NORMAL * deviation), value + NORMAL * deviation

    def _kernel_interval(self) -> Interval | None:
        blocks = torch.tensor(self._blocks(), dtype=torch.float64)
        if len(blocks) < LEAST_BLOCKS:
            return None
        numbers = seeds.generator("bootstrap", "blocks")
        drawn = blocks[torch.randint(len(blocks), (1000, len(blocks)), generator=numbers)]
        means = (drawn[..., 0] * drawn[..., 1]).sum(1) / drawn[..., 1].sum(1)
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return low, high

    def _blocks(self) -> list[tuple[float, int]]:
        last = self._discrepancy(self.pending) if len(self.pending) > 1 else None
        return self.discrepancies + ([last] if last else [])

    def _discrepancy(self, block: Tensor) -> tuple[float, int]:
        from torchmetrics.image.kid import poly_mmd  # noqa: PLC0415 - seconds that only this needs

        real = self.target.blocks[len(self.discrepancies) % len(self.target.blocks)]
        return float(poly_mmd(real[: len(block)].double(), block.double())), len(block)


def _root(matrix: Tensor) -> Tensor:
    """Return the square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
