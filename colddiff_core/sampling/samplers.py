"""Samplers, from x_t back to x_0: one loop, several update rules.

A rule takes x_s and x0_hat = R(x_s, s) to x_r for some r < s. The loop yields its steps, for progress bars and films.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.config.schema import Config
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.degradations.draws import Generators, draw_normal
from colddiff_core.degradations.noise import FrozenMixture, Mixture, Noise
from colddiff_core.errors import UsageError
from colddiff_core.images import dequantize
from colddiff_core.text import nearest

Restore = Callable[[Tensor, int, Any], Tensor]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to take degraded images back to x_0.

    A rounded x_t is replaced by the values nearest to D(x0_hat, t) that round to it. Algorithm 2 would otherwise carry
    the rounding error through every step, and R would take it for detail where the operator leaves little
    (docs/decisions/010-rounded-inputs.md).

    Attributes:
        stride: Severities per step.
        seed: With an image's number, the key of the noise that "ddpm" draws for it.
        bits: x_t was rounded to so many bits, 0 if it was not.
    """

    sampler: str = "tacos"
    stride: int = 1
    seed: int = 0
    bits: int = 0

    @classmethod
    def of(
        cls, config: Config, *, sampler: str | None = None, stride: int | None = None, seed: int | None = None
    ) -> Sampling:
        """Return a run's own sampling, with the given options in place of its own."""
        return cls(
            sampler or config.sample.sampler,
            config.sample.stride if stride is None else stride,
            config.train.seed if seed is None else seed,
            config.degradation.quantize,
        )

    def count(self, t: int) -> int:
        """Return how many steps the sampler takes from severity t; each evaluates the network once.

        Raises:
            UsageError: For an unknown sampler.
        """
        return len(self.severities(t)) - 1

    def severities(self, t: int) -> list[int]:
        """Return the severities that the sampler visits, from t to 0; raises UsageError for an unknown sampler."""
        if self.sampler not in SAMPLERS:
            raise self._unknown(list(SAMPLERS))
        return [t, 0] if SAMPLERS[self.sampler].is_single else [*range(t, 0, -self.stride), 0]

    def check(self, op: Degradation, t: int | None = None) -> None:
        """Check that sampler, stride and severity fit the operator.

        Raises:
            UsageError: for an unknown sampler, one for other operators, or a severity or a stride outside 1..T.
        """
        if self.sampler not in SAMPLERS:
            raise self._unknown(names(op))
        if self.sampler not in names(op):
            kind = "Gaussian noise" if SAMPLERS[self.sampler].operators is Noise else "a mixture with noise or pictures"
            what = f"The sampler '{self.sampler}' is for {kind}, not for {op.name}."
            raise UsageError(what, f"Use one of {', '.join(names(op))}.")
        if t is not None and not 1 <= t <= op.steps:
            raise UsageError(f"t = {t} is out of range for {op.name}.", f"Use t from 1 to {op.steps} (its steps).")
        if self.stride < 1:
            raise UsageError(f"stride = {self.stride} is below 1.", "Use 1 for every severity, 2 for every other.")
        if self.stride > op.steps:
            what = f"stride = {self.stride} is too large for {op.name}."
            raise UsageError(what, f"Use at most T = {op.steps}: one step.")

    def _unknown(self, known: list[str]) -> UsageError:
        return UsageError(f"Unknown sampler '{self.sampler}'.", nearest(self.sampler, known))


@dataclasses.dataclass(frozen=True)
class DegradedImages:
    """Images to restore, x_t (B, C, H, W) float32 in [-1, 1] at severity t.

    Attributes:
        frozen: What is random about each image.
        numbers: One per image, the key of the noise that a sampler draws for it; 0 to B - 1 by default.
    """

    x_t: Tensor
    t: int
    frozen: Frozen
    numbers: Sequence[seeds.ImageKey] | None = None

    def generators(self, seed: int) -> list[torch.Generator]:
        """Return one random generator per image."""
        numbers = range(len(self.x_t)) if self.numbers is None else self.numbers
        return seeds.image_generators(seed, numbers, "sampler")


@dataclasses.dataclass(frozen=True)
class Step:
    """A finished step of a sampler.

    Attributes:
        severity: r.
        x: x_r, (B, C, H, W) float32.
        x0_hat: R(x_s, s), the guess that the step used.
        index: 1 to count.
    """

    severity: int
    x: Tensor
    x0_hat: Tensor
    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """The inputs of a step from x_s to x_r: x0_hat = R(x_s, s), and r < s."""

    op: Degradation
    x_s: Tensor
    x0_hat: Tensor
    s: int
    r: int
    frozen: Frozen
    generator: Generators


@dataclasses.dataclass(frozen=True)
class SamplerRule:
    """An update rule, x_s to x_r.

    Attributes:
        is_single: Goes straight to 0.
        is_estimating: Re-estimates the operator's randomness from x_s and x0_hat before every step, where x_s shows it.
        operators: The degradations that the rule is defined for.
    """

    apply: Callable[[StepInputs], Tensor]
    is_single: bool = False
    is_estimating: bool = True
    operators: type[Degradation] = Degradation


def _direct(step: StepInputs) -> Tensor:
    """x_0 = R(x_t, t). Source: Bansal et al. 2022, appendix A.10 (one step)."""
    return step.x0_hat


def _naive(step: StepInputs) -> Tensor:
    """x_r = D(x0_hat, r). Source: Bansal et al. 2022, Algorithm 1."""
    return step.op(step.x0_hat, step.r, step.frozen)


def _tacos(step: StepInputs) -> Tensor:
    """x_r = x_s - D(x0_hat, s) + D(x0_hat, r). Source: Bansal et al. 2022, Algorithm 2."""
    at_s, at_r = step.op.pair(step.x0_hat, step.s, step.r, step.frozen)
    return (step.x_s - at_s).add_(at_r)


def _ddim(step: StepInputs) -> Tensor:
    """x_r = sqrt(abar_r) x0_hat + sqrt(1 - abar_r) z_hat. Source: Song et al. 2021, equation 12 with sigma = 0."""
    return _with_fresh_noise(step, 0.0)


def _ddpm(step: StepInputs) -> Tensor:
    """The ancestral step: redraw the part of z_hat that the posterior of x_r given x_s and x0 leaves open.

    Source: Ho et al. 2020, equation 7; Song et al. 2021, equation 16; Bansal et al. 2022, appendix A.8.
    """
    assert isinstance(step.op, Mixture)
    abar_s, abar_r = (float(step.op.abar[t]) for t in (step.s, step.r))
    return _with_fresh_noise(step, ((1 - abar_r) / (1 - abar_s) * (1 - abar_s / abar_r)) ** 0.5)


def _with_fresh_noise(step: StepInputs, sigma: float) -> Tensor:
    """x_r = sqrt(abar_r) x0_hat + sqrt(1 - abar_r - sigma^2) z_hat + sigma z, z ~ N(0, 1)."""
    assert isinstance(step.op, Mixture)
    assert isinstance(step.frozen, FrozenMixture)
    abar = float(step.op.abar[step.r])
    x_r = abar**0.5 * step.x0_hat + max(1 - abar - sigma**2, 0.0) ** 0.5 * step.frozen.z
    if sigma:
        x_r += sigma * draw_normal(x_r, step.generator, tuple(x_r.shape[1:]))
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
    """Return the samplers that fit an operator, in the order of the registry."""
    return [name for name, rule in SAMPLERS.items() if isinstance(op, rule.operators)]


def sample(restore: Restore, op: Degradation, images: DegradedImages, sampling: Sampling) -> Iterator[Step]:
    """Take x_t back to x_0 and yield every step; the last one's `x` is the result.

    Severities run t, t - stride, ..., 0. All samplers but "fixed-noise" re-estimate what is random in the operator from
    each x0_hat where x_s shows it (Bansal et al. 2022, section 5.1), so `images.frozen` need not be right for them. All
    arithmetic is float32.

    Raises:
        UsageError: as `Sampling.check`, except for a stride above T, which means one step.
    """
    dataclasses.replace(sampling, stride=min(sampling.stride, op.steps)).check(op, images.t)
    return _steps(restore, op, images, sampling)


@torch.no_grad()
def _steps(restore: Restore, op: Degradation, images: DegradedImages, sampling: Sampling) -> Iterator[Step]:
    rule, generators = SAMPLERS[sampling.sampler], images.generators(sampling.seed)
    x, frozen = images.x_t, images.frozen
    severities = sampling.severities(images.t)
    for index, (s, r) in enumerate(itertools.pairwise(severities), start=1):
        x0_hat = restore(x, s, frozen)
        if index == 1 and sampling.bits:
            x = dequantize(x, op(x0_hat, s, frozen), sampling.bits)
        if rule.is_estimating:
            frozen = op.reestimate(x, x0_hat, s, frozen)
        x = rule.apply(StepInputs(op, x, x0_hat, s, r, frozen, generators))
        yield Step(r, x, x0_hat, index, len(severities) - 1)


def last(steps: Iterator[Step]) -> Step:
    """Run a sampler to its end and return its last step."""
    return collections.deque(steps, maxlen=1).pop()


def final(steps: Iterator[Step]) -> Tensor:
    """Run a sampler to its end and return x_0."""
    return last(steps).x


def sound(steps: Iterator[Step]) -> Iterator[Step]:
    """Yield the steps of a sampler, and check the last one when it is taken on.

    Raises:
        UsageError: x_0 has pixels that are not finite.
    """
    step = None
    for step in steps:
        yield step
    if step is not None:
        check_sound(step.x)


def check_sound(x: Tensor) -> None:
    """Raise UsageError if an image has pixels that are not finite: rounded to bytes they would look like a result."""
    if not x.isfinite().all():
        what = "The network gives pixels that are not finite: it has diverged, or its weights were changed."
        raise UsageError(what, "Train it again with a lower train.lr, or use another run.")
