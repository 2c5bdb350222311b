"""How varied generated images are, and how far from the training images.

Cold generation has high fidelity and low diversity (Bansal et al. 2022, section 5.2); a distance between distributions
mixes the two.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from colddiff_core.datasets import ImageSet

CHUNK_IMAGES = 2000  # training images held as floats at a time


@dataclasses.dataclass(frozen=True)
class NearestNeighbors:
    """The nearest training image of each image: distance (N,), RMSE on [0, 1], and number (N,) int64, its index."""

    distance: Tensor
    number: Tensor


def nearest_neighbors(images: Tensor, train: ImageSet) -> NearestNeighbors:
    """Return the nearest training image, by RMSE over pixels, for each of `images` (N, C, H, W) in [-1, 1]."""
    flat = _flat(images)
    best = torch.full((len(flat),), torch.inf)
    number = torch.zeros(len(flat), dtype=torch.int64)
    for first in range(0, len(train), CHUNK_IMAGES):
        chunk = _flat(train.images(slice(first, first + CHUNK_IMAGES)))
        distance, index = torch.cdist(flat, chunk).min(dim=1)
        is_nearer = distance < best
        best = torch.where(is_nearer, distance, best)
        number = torch.where(is_nearer, index + first, number)
    return NearestNeighbors(best / flat.shape[1] ** 0.5, number)


def pairwise_distance(images: Tensor) -> float:
    """Return the mean RMSE on [0, 1] over all pairs of images (N, C, H, W) in [-1, 1]; 0 for fewer than two."""
    flat = _flat(images)
    if len(flat) < 2:
        return 0.0
    # cdist is off by rounding on the diagonal.
    distances = torch.cdist(flat, flat).fill_diagonal_(0)
    return float(distances.sum()) / (len(flat) * (len(flat) - 1)) / flat.shape[1] ** 0.5


def _flat(images: Tensor) -> Tensor:
    return (images.detach().cpu().clamp(-1, 1).flatten(1) + 1) / 2
