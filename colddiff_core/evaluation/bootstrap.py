"""Bootstrap confidence intervals over images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colddiff_core import seeds

LEVEL = 0.95
RESAMPLES = 1000
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
    means = [values[torch.randint(count, (count,), generator=numbers)].mean(0) for _ in range(RESAMPLES)]
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)
    low, high = torch.quantile(finish(torch.stack(means)), edges, dim=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
