"""What a picture tells of its own severity: the chances of every t, and a choice among them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colddiff_core.degradations.base import Estimate

WITHIN = 0.1  # of the truth, what an estimate is to reach
OUTSIDE = 0.05  # of the chances, on either side of low..high


def levels(x: Tensor) -> Tensor:
    """Return pictures of [-1, 1] as 8-bit levels 0..255, whole numbers where the picture was rounded."""
    return (x.clamp(-1, 1) + 1) * 127.5


def is_gray(x: Tensor) -> bool:
    """Tell whether a picture (1, C, H, W) has no color at all."""
    return x.shape[1] == 1 or bool((x == x[:, :1]).all())


def tiles(x: Tensor, side: int, most: int) -> list[Tensor]:
    """Return views of a picture (1, C, H, W) no larger than `side`, at most `most` along each axis, evenly spread."""
    spans = []
    for n in x.shape[-2:]:
        length = min(n, side)
        count = min(-(-n // side), most)
        spans.append([((n - length) * i // max(count - 1, 1), length) for i in range(count)])
    return [x[..., top : top + h, left : left + w] for top, h in spans[0] for left, w in spans[1]]


def settle(
    severities: Tensor, evidence: Tensor, trace: Callable[[int], str], fields: dict[str, Tensor] | None = None
) -> Estimate:
    """Return the Estimate that the log evidence of some severities gives, all held equally likely before.

    severities: (S,) int64 rising; evidence: (S,) any float. Each stands for those around it that were left out.
    """
    share = _share(severities) * torch.softmax(evidence.double() - evidence.max(), 0)
    share = share / share.sum()
    below = share.cumsum(0)
    low, middle, high = (
        int(severities[min(int((below < part).sum()), len(severities) - 1)]) for part in (OUTSIDE, 0.5, 1 - OUTSIDE)
    )
    near = (severities - middle).abs() <= torch.clamp(WITHIN * severities, min=1)
    return Estimate(middle, low, high, float(share[near].sum().clamp(0, 1)), trace(middle), fields or {})


def _share(severities: Tensor) -> Tensor:
    """Return how many severities each of some stands for: those nearer to it than to its neighbors."""
    if len(severities) == 1:
        return torch.ones(1, dtype=torch.float64)
    steps = severities.double()
    between = (steps[1:] + steps[:-1]) / 2
    edges = torch.cat([steps[:1] - 0.5, between, steps[-1:] + 0.5])
    return edges.diff()
