"""Gaussian blur, composed over t steps in closed form."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, VARIANTS, Degradation, Estimate, Frozen
from colddiff_core.degradations.estimation.blur_spectrum import blur_evidence, tile_sides
from colddiff_core.degradations.estimation.posterior import is_flat, to_estimate
from colddiff_core.degradations.registry import register
from colddiff_core.degradations.schedules import blur_widths
from colddiff_core.degradations.separable import ConvolutionStack, gaussian
from colddiff_core.errors import UsageError

MAX_CANDIDATES = 128  # severities compared by an estimate
SMALLEST_SIDE_PIXELS = 16  # the spectrum of a smaller picture says nothing about its blur


@register("blur")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Blur(Degradation):
    """Gaussian blur: x_t = G_t * ... * G_1 * x0, with one kernel per step, growing by the schedule.

    Step i = 0..t-1 has width `std` (constant), `std + growth * i` (linear) or `std * exp(growth * i)` (exponential).

    Source: Bansal et al. 2022, section 4.1 and appendix A.1; generation, section 5.2.
    """

    has_inverse = True
    has_estimate = True
    is_linear = True

    steps: int = setting(300, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    schedule: Literal["constant", "linear", "exponential"] = setting(
        "exponential", "width of step i: std, std + growth * i, or std * exp(growth * i)"
    )
    std: float = setting(1.0, "width of the first kernel, in pixels", above=0)
    growth: float = setting(0.01, "growth of the width per step", minimum=0)
    kernel_size: int = setting(27, "side of the kernel in pixels, odd", minimum=1, maximum=1023)
    padding: Literal["circular", "reflect"] = setting("circular", "how pictures continue past their border")
    spectrum: Literal["flat", "natural"] = setting(
        "flat", "spectrum of pictures that the inverse assumes: flat, or falling with frequency as in photographs"
    )
    final_mean: bool = setting(False, "replace x_T by the mean of each channel")
    stack: ConvolutionStack = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            remedy = f"Use an odd number, such as {self.kernel_size + 1}."
            raise UsageError(f"blur: kernel_size = {self.kernel_size} has no center.", remedy)
        widths = blur_widths(self.schedule, self.steps, self.std, self.growth)
        kernels = torch.stack([gaussian(float(width), self.kernel_size) for width in widths])
        object.__setattr__(
            self, "stack", ConvolutionStack(kernels, self.padding, is_natural=self.spectrum == "natural")
        )

    @property
    def priors(self) -> tuple[str, ...]:
        """Return the names of the priors for x_T, the default first."""
        return ("gmm", "degraded")

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        """Return blurs up to `jitter` (a fraction) wider or narrower, this one included."""
        growth = self.growth if self.schedule == "linear" else 0.0  # only there is it a width
        return tuple(
            dataclasses.replace(self, std=self.std * (1 + jitter * part), growth=self.growth + growth * jitter * part)
            for part in VARIANTS
        )

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        x_t = self.stack.apply(x0, t)
        if not self.final_mean:
            return x_t
        if isinstance(t, int):
            return x_t.mean((-2, -1), keepdim=True).expand_as(x_t).clone() if t == self.steps else x_t
        return torch.where((t == self.steps).view(-1, 1, 1, 1), x_t.mean((-2, -1), keepdim=True), x_t)

    def _pair(self, x0: Tensor, s: int, r: int, frozen: Frozen) -> tuple[Tensor, Tensor]:
        if self.final_mean and self.steps in (s, r):
            return self._degrade(x0, s, frozen), self._degrade(x0, r, frozen)
        return self.stack.apply_both(x0, s, r)

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        # A mean has no detail to recover; only its rounding errors would be amplified.
        if self.final_mean and isinstance(t, int) and t == self.steps:
            return x_t.clone()
        inverse = self.stack.invert(x_t, t, floor)
        if not self.final_mean or isinstance(t, int):
            return inverse
        return torch.where((t == self.steps).view(-1, 1, 1, 1), x_t, inverse)

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Find the width from the frequency where the picture's spectrum sinks into that of rounding."""
        if self.final_mean and is_flat(x_t):
            severities = torch.tensor([self.steps])
            return to_estimate(severities, torch.zeros(1), lambda t: "one color everywhere")
        if min(x_t.shape[-2:]) < SMALLEST_SIDE_PIXELS or is_flat(x_t):
            raise UsageError("The picture is too small or too flat to estimate its blur.", "Give --t.")
        widths = self._total_widths()
        # Candidates are evenly spaced in width: over hundreds of steps many severities have nearly the same one.
        targets = torch.linspace(0, float(widths[-1]), MAX_CANDIDATES + 1, dtype=torch.float64)
        severities = torch.searchsorted(widths, targets).clamp(max=self.steps).unique()
        if self.steps <= MAX_CANDIDATES:
            severities = torch.arange(self.steps + 1)
        height, width = tile_sides(x_t)
        down, along = self.stack.gains(height, severities), self.stack.gains(width, severities)
        down = torch.cat([down, down[:, 1 : (height + 1) // 2].flip(1)], 1)
        evidence = blur_evidence(x_t, (down.square(), along.square()))
        if not evidence.any():
            raise UsageError("The picture is too small or too flat to estimate its blur.", "Give --t.")
        return to_estimate(
            severities, evidence, lambda t: f"a blur of {float(widths[t]):.1f} pixels" if t else "no blur"
        )

    def _total_widths(self) -> Tensor:
        """Return the total width in pixels after t = 0..T steps of the truncated kernels: (T + 1,) float64."""
        offsets = torch.arange(self.kernel_size, dtype=torch.float64) - self.kernel_size // 2
        variances = (self.stack.kernels * offsets.square()).sum(1)
        return torch.cat([torch.zeros(1, dtype=torch.float64), variances.cumsum(0)]).sqrt()
