"""From x_t back to x_0: one loop, several updates.

Every sampler is an update that takes x_s and x0_hat = R(x_s, s) to x_r for some r < s. The loop
yields its steps, and progress bars, filmstrips and animations all watch it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.errors import UsageError, nearest

Restore = Callable[[Tensor, int, Any], Tensor]


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a sampler, after it was taken.

    severity: r, what is left of the degradation; x: x_r (B, C, H, W) float32; x0_hat: what R made of
    the step before; index and count: this is step `index` of `count`, from 1.
    """

    severity: int
    x: Tensor
    x0_hat: Tensor
    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class Update:
    """x_s, x0_hat -> x_r, and whether it visits the severities between or jumps to 0."""

    apply: Callable[[Degradation, Tensor, Tensor, int, int, Frozen], Tensor]
    is_single: bool = False


def _direct(op: Degradation, x_s: Tensor, x0_hat: Tensor, s: int, r: int, frozen: Frozen) -> Tensor:
    """x_0 = R(x_t, t). Source: Bansal et al. 2022, appendix A.10 (one step)."""
    return x0_hat


def _naive(op: Degradation, x_s: Tensor, x0_hat: Tensor, s: int, r: int, frozen: Frozen) -> Tensor:
    """x_r = D(x0_hat, r). Source: Bansal et al. 2022, Algorithm 1."""
    return op(x0_hat, r, frozen)


def _tacos(op: Degradation, x_s: Tensor, x0_hat: Tensor, s: int, r: int, frozen: Frozen) -> Tensor:
    """x_r = x_s - D(x0_hat, s) + D(x0_hat, r). Source: Bansal et al. 2022, Algorithm 2."""
    return x_s - op(x0_hat, s, frozen) + op(x0_hat, r, frozen)


SAMPLERS = {"direct": Update(_direct, is_single=True), "naive": Update(_naive), "tacos": Update(_tacos)}


def find(sampler: str) -> Update:
    """Return a sampler's update; raises UsageError with the nearest known name."""
    if sampler not in SAMPLERS:
        raise UsageError(f"Unknown sampler '{sampler}'.", nearest(sampler, SAMPLERS))
    return SAMPLERS[sampler]


def sample(
    restore: Restore,
    op: Degradation,
    x_t: Tensor,
    t: int,
    frozen: Frozen,
    *,
    sampler: str = "tacos",
    stride: int = 1,
) -> Iterator[Step]:
    """Take x_t back to x_0 and yield every step; the last one's `x` is the result.

    Severities run t, t - stride, ..., 0. What is random in the operator is estimated anew from each
    x0_hat where x_s tells it (Bansal et al. 2022, section 5.1), so `frozen` need not know it.

    Shapes: x_t (B, C, H, W) float32 in [-1, 1]; all arithmetic is float32.
    Raises UsageError for an unknown sampler, a severity outside 1..steps or a stride below 1.
    """
    update = find(sampler)
    if not 1 <= t <= op.steps:
        raise UsageError(f"t = {t} is out of range for {op.name}.", f"Use t from 1 to {op.steps} (its steps).")
    if stride < 1:
        raise UsageError(f"stride = {stride} is below 1.", "Use 1 for every severity, 2 for every other.")
    return _steps(restore, op, x_t, t, frozen, update, stride)


@torch.no_grad()
def _steps(
    restore: Restore, op: Degradation, x: Tensor, t: int, frozen: Frozen, update: Update, stride: int
) -> Iterator[Step]:
    severities = [t, 0] if update.is_single else [*range(t, 0, -stride), 0]
    for index, (s, r) in enumerate(itertools.pairwise(severities), start=1):
        x0_hat = restore(x, s, frozen)
        frozen = op.reestimate(x, x0_hat, s, frozen)
        x = update.apply(op, x, x0_hat, s, r, frozen)
        yield Step(r, x, x0_hat, index, len(severities) - 1)


def final(steps: Iterator[Step]) -> Tensor:
    """Run a sampler to its end and return x_0."""
    return collections.deque(steps, maxlen=1).pop().x
