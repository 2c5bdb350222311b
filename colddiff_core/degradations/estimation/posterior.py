"""The posterior over severities: from log evidence to an Estimate, and small helpers for pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from colddiff_core.degradations.base import Estimate

TOLERANCE = 0.1  # relative error within which an estimate counts as right
TAIL = 0.05  # probability on either side of low..high


def levels(x: Tensor) -> Tensor:
    """Return a float picture in [-1, 1] as levels in [0, 255]: same shape and dtype, not rounded."""
    return (x.clamp(-1, 1) + 1) * 127.5


def is_gray(x: Tensor) -> bool:
    """Return whether a picture (1, C, H, W) has no color at all."""
    return x.shape[1] == 1 or bool((x == x[:, :1]).all())


def is_flat(x: Tensor) -> bool:
    """Return whether all pixels of a picture (1, C, H, W) have the same color."""
    return bool((x == x[..., :1, :1]).all())


def tiles(x: Tensor, side: int, most: int) -> list[Tensor]:
    """Return evenly spread views of a picture (1, C, H, W), up to `side` pixels square, at most `most` per axis."""
    spans = []
    for n in x.shape[-2:]:
        length = min(n, side)
        count = min(-(-n // side), most)
        spans.append([((n - length) * i // max(count - 1, 1), length) for i in range(count)])
    return [x[..., top : top + h, left : left + w] for top, h in spans[0] for left, w in spans[1]]


def to_estimate(
    severities: Tensor, evidence: Tensor, trace: Callable[[int], str], fields: dict[str, Tensor] | None = None
) -> Estimate:
    """Return the Estimate for the log evidence of some severities, with a uniform prior over all of them.

    Args:
        severities: the candidates, (S,) int64, rising; each stands for its neighbors that are not candidates.
        evidence: their log evidence, (S,) float.
        trace: describes what was found for a severity.
        fields: the recovered fields of Frozen.
    """
    prior = _weights(severities)
    share = prior * torch.softmax(evidence.double() - evidence.max(), 0)
    share = share / share.sum()
    below = share.cumsum(0)
    low, middle, high = (
        int(severities[min(int((below < part).sum()), len(severities) - 1)]) for part in (TAIL, 0.5, 1 - TAIL)
    )
    near = (severities - middle).abs() <= torch.clamp(TOLERANCE * severities, min=1)
    confidence = float(share[near].sum().clamp(0, 1))
    return Estimate(middle, low, high, confidence, trace(middle), fields or {}, _trace_evidence(evidence, prior))


def _trace_evidence(evidence: Tensor, prior: Tensor) -> float:
    """Return the log evidence for the candidates after the first against the first, t = 0; 0 if there is only one."""
    if len(evidence) == 1:
        return 0.0
    others = prior[1:] / prior[1:].sum()
    return float(torch.logsumexp(evidence[1:].double() + others.log(), 0) - evidence[0])


def _weights(severities: Tensor) -> Tensor:
    """Return how many severities each candidate stands for: those nearer to it than to another one."""
    if len(severities) == 1:
        return torch.ones(1, dtype=torch.float64)
    steps = severities.double()
    between = (steps[1:] + steps[:-1]) / 2
    edges = torch.cat([steps[:1] - 0.5, between, steps[-1:] + 0.5])
    return edges.diff()
