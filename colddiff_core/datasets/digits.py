"""The 1,797 handwritten 8 x 8 digits that come with scikit-learn; no download."""

from __future__ import annotations

import contextlib
import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colddiff_core.datasets.base import DatasetRequest, ImageSet, fit, register

TEST_EVERY = 6  # every sixth image is a test image
CLASSES = tuple("0123456789")


@register("digits", package="scikit-learn")
def load(request: DatasetRequest) -> ImageSet:
    """Return 1,497 training or 300 test digits as (N, C, H, W) uint8 with labels 0 to 9.

    Source: Alpaydin and Kaynak 1998, UCI repository.
    """
    pixels, labels = _every_digit()
    is_test = torch.arange(len(pixels)) % TEST_EVERY == 0
    chosen = is_test if request.split == "test" else ~is_test
    return ImageSet(fit(pixels[chosen], request), labels[chosen], CLASSES)


@functools.cache
def _every_digit() -> tuple[Tensor, Tensor]:
    """Return all digits, (1797, 1, 8, 8) uint8, and their labels, (1797,) int64."""
    values = torch.from_numpy(_rows())
    pixels = (values[:, :-1].view(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    return pixels, values[:, -1].long()


def _rows() -> np.ndarray:
    """Return a row of 64 pixels, 0 to 16, and a label for each digit, (1797, 65) float64.

    They are read from scikit-learn's file, because importing scikit-learn takes two seconds.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
        with contextlib.suppress(OSError), gzip.open(path, "rt", encoding="ascii") as file:
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # noqa: PLC0415 - only if the file is elsewhere

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
