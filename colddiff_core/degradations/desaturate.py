"""Desaturation: the color fades toward the mean of the channels."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Estimate, Frozen, entry_at
from colddiff_core.degradations.estimation.posterior import is_flat, is_gray, levels, to_estimate
from colddiff_core.degradations.estimation.rounding_pattern import (
    color_differences,
    drained_differences,
    log_likelihood,
)
from colddiff_core.degradations.registry import register
from colddiff_core.errors import UsageError

SAMPLE_PIXELS = 2**19  # of a large picture
MAX_CANDIDATES = 100  # severities compared by an estimate
MARGIN_LEVELS = 16  # from black or white; nearer, rounding is too large next to the room for color
# How close the most colorful thousandth of a photograph's pixels comes to the surface of the color cube: nine in ten
# photographs reach it, the tenth falls short by SHORTFALL on average (scikit-image's and scikit-learn's photographs,
# 40 faces of CelebA's training images, 30 cats of AFHQ's).
COLORFUL_QUANTILE = 0.999
SHORTFALL = 0.12
DULL_PROBABILITY = 0.001  # floor, for pictures with hardly any color
READING_STD = 0.008  # of the measured share of color, due to rounding
# Below these shares of the color, by is_jpeg, too many colors coincide to see the rounding pattern.
MIN_KEPT = {False: 0.42, True: 0.18}
MAX_FULL_EVIDENCE = 8.0  # more counts only logarithmically: with few colors a pattern can be there by chance
EXCESS_WEIGHT = 2.0
PIXEL_WEIGHT = 0.02  # of a pixel's evidence, because neighbors are alike
GRAY_PROBABILITY = 1e-4  # that a picture without any color never had one


@register("desaturate")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Desaturate(Degradation):
    """Desaturation: x_t = a_t mean(x0) + (1 - a_t) x0, with the mean over the channels of each pixel.

    linear: a_t = t / T; constant: each step keeps the share `rate` of the color, a_t = 1 - rate^t.

    Source: Bansal et al. 2022, appendix A.4.
    """

    has_inverse = True
    has_estimate = True
    is_linear = True
    is_coloring = True

    steps: int = setting(50, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    schedule: Literal["linear", "constant"] = setting(
        "linear", "equal steps that end in gray at T, or a constant share per step"
    )
    rate: float = setting(0.9, "share of the color that a step keeps, with the constant schedule", minimum=0)
    kept: Tensor = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate > 1:
            raise UsageError(f"desaturate: rate = {self.rate} adds color.", "Use a rate from 0 to 1.")
        t = torch.arange(self.steps + 1, dtype=torch.float64)
        kept = 1 - t / self.steps if self.schedule == "linear" else torch.tensor(self.rate, dtype=torch.float64) ** t
        object.__setattr__(self, "kept", kept.float())

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        gray = self._gray(x0)
        return gray + entry_at(self.kept, t, x0) * (x0 - gray)

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        gray, kept = self._gray(x_t), entry_at(self.kept, t, x_t)
        return gray + kept / (kept.square() + floor**2) * (x_t - gray)

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Find how much color is left from the rounding pattern and from the distance to the color cube's surface."""
        self._gray(x_t)
        if is_flat(x_t):
            raise UsageError("The picture has only one color, so nothing shows what it has lost.", "Give --t.")
        kept = self.kept.double()
        if is_gray(x_t):
            evidence = torch.where(kept <= kept[-1] + READING_STD, 0.0, -math.inf)
            evidence[0] = evidence[0].clamp(min=math.log(GRAY_PROBABILITY))
            return to_estimate(torch.arange(self.steps + 1), evidence, self._describe)
        severities = torch.linspace(0, self.steps, min(self.steps + 1, MAX_CANDIDATES + 1)).round().long()
        stride = max(1, math.ceil(math.sqrt(x_t.shape[-2] * x_t.shape[-1] / SAMPLE_PIXELS)))
        colors = levels(x_t[0, :, ::stride, ::stride]).round().flatten(1)
        evidence = self._gamut_evidence(colors, kept[severities]) + self._rounding_evidence(colors, kept[severities])
        return to_estimate(severities, evidence, self._describe)

    def _gamut_evidence(self, colors: Tensor, kept: Tensor) -> Tensor:
        """Return the log evidence for shares of color: restored colors stay within the cube and nearly reach it.

        Shapes: colors (3, N) whole levels; kept (S,) float64; returns (S,).
        """
        gray = colors.mean(0)
        dark = torch.where(gray >= MARGIN_LEVELS, (gray - colors.min(0).values - 0.5) / gray, 0.0)
        bright = torch.where(gray <= 255 - MARGIN_LEVELS, (colors.max(0).values - gray - 0.5) / (255 - gray), 0.0)
        reached = torch.maximum(dark, bright)
        farthest = reached.kthvalue(max(1, math.ceil(COLORFUL_QUANTILE * len(reached)))).values.clamp(min=0)
        full = torch.linspace(0, 1, 201, dtype=torch.float64)
        prior = torch.exp((full - 1) / SHORTFALL) + DULL_PROBABILITY
        z = (farthest - kept[:, None] * full) / READING_STD
        return (prior * torch.exp(-0.5 * z.square()) + 1e-12).sum(1).log()

    def _rounding_evidence(self, colors: Tensor, kept: Tensor) -> Tensor:
        """Return the log evidence for shares of color from the rounding pattern; shapes as in `_gamut_evidence`."""
        reach = min(max(2 * round(float((colors[1:] - colors[:1]).abs().mean())), 16), 1280 // len(kept) + 12, 64)
        histogram = color_differences(colors, reach)
        plain = log_likelihood(histogram, torch.ones_like(histogram))
        evidence = torch.zeros_like(kept)
        for row, share in enumerate(kept.tolist()):
            gains = [
                log_likelihood(histogram, drained_differences(share, reach, is_jpeg)) - plain
                for is_jpeg, least in MIN_KEPT.items()
                if share >= least
            ]
            gain = PIXEL_WEIGHT * max([0.0, *gains])
            evidence[row] = (
                gain
                if gain < MAX_FULL_EVIDENCE
                else MAX_FULL_EVIDENCE + EXCESS_WEIGHT * math.log(gain / MAX_FULL_EVIDENCE)
            )
        return evidence

    def _describe(self, t: int) -> str:
        return f"{float(self.kept[t]):.2f} of the color left" if self.kept[t] else "no color left"

    def _gray(self, x: Tensor) -> Tensor:
        if x.shape[1] < 2:
            raise UsageError("desaturate needs a color picture, but this one is gray.", "Use color images.")
        return x.mean(1, keepdim=True)
