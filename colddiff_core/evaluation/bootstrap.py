"""Bootstrap confidence intervals over images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colddiff_core import seeds

LEVEL = 0.95
RESAMPLES = 1000
DRAWN_VALUES = 2**15  # at a time: as many resamples as fit, but at least one
Interval = tuple[float, float]


def intervals(values: Tensor, finish: Callable[[Tensor], Tensor]) -> list[Interval | None]:
    """Return the 95 % bootstrap interval of each column's metric, all None for fewer than two images.

    They are percentile intervals of 1,000 resamples of the images, the same for every column and every call with N
    images.

    Args:
        values: (N, M) float64, the contribution of each image to each metric.
        finish: Turns means (..., M) into metrics (..., M).

    Source: Efron 1979.
    """
    count, columns = values.shape
    if count < 2:
        return [None] * columns
    numbers = seeds.generator("bootstrap", count)
    means, at_once = [], max(1, (DRAWN_VALUES - 1) // values.numel())
    for first in range(0, RESAMPLES, at_once):
        shape = (min(at_once, RESAMPLES - first), count)
        means.append(values[torch.randint(count, shape, generator=numbers)].mean(1))
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)
    low, high = torch.quantile(finish(torch.cat(means)), edges, dim=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
