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
from colddiff_core.degradations.base import Generators, draw_normal
from colddiff_core.degradations.noise import FrozenMixture, Mixture, Noise
from colddiff_core.errors import UsageError
from colddiff_core.images import dequantize
from colddiff_core.text import nearest

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
class StepInputs:
    """What a step of a sampler starts from: x_s, x0_hat = R(x_s, s), and where it goes, r < s."""

    op: Degradation
    x_s: Tensor
    x0_hat: Tensor
    s: int
    r: int
    frozen: Frozen
    generator: Generators


@dataclasses.dataclass(frozen=True)
class SamplerRule:
    """A step from x_s to x_r.

    is_single: jumps to 0 at once; is_estimating: what is random in the operator is solved from x_s and x0_hat
    before the step, where x_s tells it; operators: the kind of degradation that the step is defined for.
    """

    apply: Callable[[StepInputs], Tensor]
    is_single: bool = False
    is_estimating: bool = True
    operators: type[Degradation] = Degradation


def _direct(move: StepInputs) -> Tensor:
    """x_0 = R(x_t, t). Source: Bansal et al. 2022, appendix A.10 (one step)."""
    return move.x0_hat


def _naive(move: StepInputs) -> Tensor:
    """x_r = D(x0_hat, r). Source: Bansal et al. 2022, Algorithm 1."""
    return move.op(move.x0_hat, move.r, move.frozen)


def _tacos(move: StepInputs) -> Tensor:
    """x_r = x_s - D(x0_hat, s) + D(x0_hat, r). Source: Bansal et al. 2022, Algorithm 2."""
    at_s, at_r = move.op.pair(move.x0_hat, move.s, move.r, move.frozen)
    return (move.x_s - at_s).add_(at_r)


def _ddim(move: StepInputs) -> Tensor:
    """x_r = sqrt(abar_r) x0_hat + sqrt(1 - abar_r) z_hat. Source: Song et al. 2021, equation 12 with sigma = 0."""
    return _with_fresh_noise(move, 0.0)


def _ddpm(move: StepInputs) -> Tensor:
    """The ancestral step: part of z_hat is drawn anew, as much as the posterior of x_r given x_s and x0 has.

    Source: Ho et al. 2020, equation 7; Song et al. 2021, equation 16; Bansal et al. 2022, appendix A.8.
    """
    assert isinstance(move.op, Mixture)
    abar_s, abar_r = (float(move.op.abar[t]) for t in (move.s, move.r))
    return _with_fresh_noise(move, ((1 - abar_r) / (1 - abar_s) * (1 - abar_s / abar_r)) ** 0.5)


def _with_fresh_noise(move: StepInputs, sigma: float) -> Tensor:
    """x_r = sqrt(abar_r) x0_hat + sqrt(1 - abar_r - sigma^2) z_hat + sigma z, z ~ N(0, 1)."""
    assert isinstance(move.op, Mixture)
    assert isinstance(move.frozen, FrozenMixture)
    abar = float(move.op.abar[move.r])
    x_r = abar**0.5 * move.x0_hat + max(1 - abar - sigma**2, 0.0) ** 0.5 * move.frozen.z
    if sigma:
        x_r += sigma * draw_normal(x_r, move.generator, tuple(x_r.shape[1:]))
    return x_r


SAMPLERS = {
    "direct": SamplerRule(_direct, is_single=True),
    "naive": SamplerRule(_naive),
    "tacos": SamplerRule(_tacos),
    "ddim": SamplerRule(_ddim, operators=Mixture),
    "fixed-noise": SamplerRule(_tacos, is_estimating=False, operators=Mixture),
    "ddpm": SamplerRule(_ddpm, operators=Noise),
}


def names(op: Degradation) -> list[str]:
    """Return the samplers that an operator can be sampled with, in the order of the registry."""
    return [name for name, update in SAMPLERS.items() if isinstance(op, update.operators)]


def check(sampler: str, op: Degradation, stride: int = 1, t: int | None = None) -> None:
    """Raise UsageError for a sampler, a stride or a severity that does not suit the operator.

    So does `sample`, but for a stride above T, which takes it to 0 in one step as T does: asked for, it is a mistake.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"Unknown sampler '{sampler}'.", nearest(sampler, names(op)))
    if sampler not in names(op):
        wanted = "Gaussian noise" if SAMPLERS[sampler].operators is Noise else "a mixture with noise or pictures"
        raise UsageError(
            f"The sampler '{sampler}' is for {wanted}, not for {op.name}.", f"Use one of {', '.join(names(op))}."
        )
    if t is not None and not 1 <= t <= op.steps:
        raise UsageError(f"t = {t} is out of range for {op.name}.", f"Use t from 1 to {op.steps} (its steps).")
    if stride < 1:
        raise UsageError(f"stride = {stride} is below 1.", "Use 1 for every severity, 2 for every other.")
    if stride > op.steps:
        raise UsageError(f"stride = {stride} is too large for {op.name}.", f"Use at most T = {op.steps}: one step.")


def sample(
    restore: Restore,
    op: Degradation,
    x_t: Tensor,
    t: int,
    frozen: Frozen,
    *,
    sampler: str = "tacos",
    stride: int = 1,
    generator: Generators = None,
    bits: int = 0,
) -> Iterator[Step]:
    """Take x_t back to x_0 and yield every step; the last one's `x` is the result.

    Severities run t, t - stride, ..., 0. What is random in the operator is estimated anew from each
    x0_hat where x_s tells it (Bansal et al. 2022, section 5.1), so `frozen` need not know it; "fixed-noise"
    keeps to `frozen`. `generator`, one for the batch or one for each image, is what "ddpm" draws from.

    bits: what x_t was rounded to, 0 for not at all. Half a level is then all that x_t tells its values to, and they are
    taken from D(x0_hat, t) as far as that rounds to x_t: Algorithm 2 would carry the rounding through every step, and
    R read it as the picture where the operator leaves little of it (docs/decisions/010-rounded-inputs.md).

    Shapes: x_t (B, C, H, W) float32 in [-1, 1]; all arithmetic is float32.
    Raises UsageError for an unknown sampler or one that does not suit the operator, a severity outside
    1..steps or a stride below 1.
    """
    check(sampler, op, min(stride, op.steps), t)
    return _steps(restore, op, x_t, t, frozen, SAMPLERS[sampler], stride, generator, bits)


@torch.no_grad()
def _steps(
    restore: Restore,
    op: Degradation,
    x: Tensor,
    t: int,
    frozen: Frozen,
    update: SamplerRule,
    stride: int,
    generator: Generators,
    bits: int,
) -> Iterator[Step]:
    severities = [t, 0] if update.is_single else [*range(t, 0, -stride), 0]
    for index, (s, r) in enumerate(itertools.pairwise(severities), start=1):
        x0_hat = restore(x, s, frozen)
        if index == 1 and bits:
            x = dequantize(x, op(x0_hat, s, frozen), bits)
        if update.is_estimating:
            frozen = op.reestimate(x, x0_hat, s, frozen)
        x = update.apply(StepInputs(op, x, x0_hat, s, r, frozen, generator))
        yield Step(r, x, x0_hat, index, len(severities) - 1)


def last(steps: Iterator[Step]) -> Step:
    """Run a sampler to its end and return its last step."""
    return collections.deque(steps, maxlen=1).pop()


def final(steps: Iterator[Step]) -> Tensor:
    """Run a sampler to its end and return x_0."""
    return last(steps).x
