"""How varied images are, and how far from the ones they were learned from.

Cold generation is known for high fidelity and low diversity (Bansal et al. 2022, section 5.2), which a distance
between distributions does not tell apart.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from colddiff_core.datasets import ImageSet

CHUNK = 2000  # training images held as floats at a time


@dataclasses.dataclass(frozen=True)
class NearestNeighbors:
    """For each image the nearest training image: distance (N,) RMSE on [0, 1], and its number (N,) int64."""

    distance: Tensor
    number: Tensor


def nearest_neighbors(images: Tensor, train: ImageSet) -> NearestNeighbors:
    """Return the training image nearest to each of `images` (N, C, H, W) in [-1, 1], by RMSE over pixels."""
    flat = _flat(images)
    best = torch.full((len(flat),), torch.inf)
    number = torch.zeros(len(flat), dtype=torch.int64)
    for first in range(0, len(train), CHUNK):
        part = _flat(train.images(slice(first, first + CHUNK)))
        distance, place = torch.cdist(flat, part).min(dim=1)
        is_nearer = distance < best
        best = torch.where(is_nearer, distance, best)
        number = torch.where(is_nearer, place + first, number)
    return NearestNeighbors(best / flat.shape[1] ** 0.5, number)


def pairwise_distance(images: Tensor) -> float:
    """Return the mean RMSE on [0, 1] between two different images of (N, C, H, W); 0 for fewer than two."""
    flat = _flat(images)
    if len(flat) < 2:
        return 0.0
    # The pair's own distance counts as none: cdist is off by rounding on the diagonal.
    distances = torch.cdist(flat, flat).fill_diagonal_(0)
    return float(distances.sum()) / (len(flat) * (len(flat) - 1)) / flat.shape[1] ** 0.5


def _flat(images: Tensor) -> Tensor:
    return (images.detach().cpu().clamp(-1, 1).flatten(1) + 1) / 2
