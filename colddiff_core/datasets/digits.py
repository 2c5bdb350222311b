"""The 1,797 handwritten 8 x 8 digits that come with scikit-learn; no download."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from colddiff_core.datasets.base import DatasetRequest, ImageSet, fit, register

TEST_EVERY = 6  # every sixth image is a test image


@register("digits", package="scikit-learn")
def load(request: DatasetRequest) -> ImageSet:
    """Return 1,497 training or 300 test digits as (N, C, H, W) uint8 with labels 0 to 9.

    Source: Alpaydin and Kaynak 1998, UCI repository.
    """
    pixels, labels = _every_digit()
    is_test = torch.arange(len(pixels)) % TEST_EVERY == 0
    chosen = is_test if request.split == "test" else ~is_test
    return ImageSet(fit(pixels[chosen], request), labels[chosen])


@functools.cache  # scikit-learn parses a text file
def _every_digit() -> tuple[Tensor, Tensor]:
    """Return all digits, (1797, 1, 8, 8) uint8, and their labels, (1797,) int64."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - half a second that other data sets should not pay

    bunch = load_digits()
    pixels = (torch.from_numpy(bunch.images).unsqueeze(1) * (255 / 16)).round().to(torch.uint8)
    return pixels, torch.from_numpy(bunch.target).long()
