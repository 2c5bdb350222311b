"""The 1,797 handwritten 8 x 8 digits that come with scikit-learn; no download."""

from __future__ import annotations

import torch

from colddiff_core.datasets.base import DatasetRequest, ImageSet, fit, register

TEST_EVERY = 6  # every sixth image is a test image


@register("digits", package="scikit-learn")
def load(request: DatasetRequest) -> ImageSet:
    """Return 1,497 training or 300 test digits as (N, C, H, W) uint8 with labels 0 to 9.

    Source: Alpaydin and Kaynak 1998, UCI repository.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - half a second that other data sets should not pay

    bunch = load_digits()
    is_test = torch.arange(len(bunch.images)) % TEST_EVERY == 0
    chosen = is_test if request.split == "test" else ~is_test
    values = torch.from_numpy(bunch.images)[chosen].unsqueeze(1)
    pixels = (values * (255 / 16)).round().to(torch.uint8)
    return ImageSet(fit(pixels, request), torch.from_numpy(bunch.target)[chosen].long())
