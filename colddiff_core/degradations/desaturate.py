"""Color drained away, toward the mean of the channels."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Estimate, Frozen, at
from colddiff_core.degradations.estimation.posterior import is_gray, levels, settle
from colddiff_core.degradations.estimation.rounding_pattern import agreement, color_differences, drained_differences
from colddiff_core.degradations.registry import register
from colddiff_core.errors import UsageError

PIXELS = 2**19  # of a large picture that are looked at
CANDIDATES = 100  # severities that are compared at most
DARKEST = 16  # levels from black or white: nearer, a rounding is too large a part of a pixel's room
# How far the most colorful thousandth of a photograph's pixels goes toward the color cube's border: all the way
# in nine of ten, on average FULL short of it in the tenth (scikit-image's and scikit-learn's photographs, 40 faces of
# CelebA's training images, 30 cats of AFHQ's).
COLORFUL = 0.999
FULL = 0.12
DULL = 0.001
READING = 0.008  # of the share of the color, what rounding leaves unsure
# Below these shares of the color so many colors fall together that the pattern is lost in the picture's own.
LEAST_KEPT = {False: 0.42, True: 0.18}
PLENTY = 8.0  # of a whole picture's; more counts for less, for where colors are few a pattern may be there by chance
BEYOND = 2.0
WORTH = 0.02  # of a pixel's evidence: neighbors are alike


@register("desaturate")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Desaturate(Degradation):
    """x_t = a_t mean(x0) + (1 - a_t) x0, the mean over the channels of each pixel.

    linear: a_t = t / T; constant: every step keeps the share `rate` of the color, a_t = 1 - rate^t.

    Source: Bansal et al. 2022, appendix A.4.
    """

    has_inverse = True
    has_estimate = True
    is_linear = True
    is_coloring = True

    steps: int = setting(50, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    schedule: Literal["linear", "constant"] = setting("linear", "gray at T by equal parts, or a share a step")
    rate: float = setting(0.9, "share of the color that a step keeps, for the constant schedule", minimum=0)
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
        return gray + at(self.kept, t, x0) * (x0 - gray)

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        gray, kept = self._gray(x_t), at(self.kept, t, x_t)
        return gray + kept / (kept.square() + floor**2) * (x_t - gray)

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Tell what is left of the color by what rounding did to it and how near it comes to the cube."""
        self._gray(x_t)
        kept = self.kept.double()
        if is_gray(x_t):
            severities = torch.arange(self.steps + 1)
            return settle(severities, torch.where(kept <= kept[-1] + READING, 0.0, -math.inf), self._told)
        severities = torch.linspace(0, self.steps, min(self.steps + 1, CANDIDATES + 1)).round().long()
        stride = max(1, math.ceil(math.sqrt(x_t.shape[-2] * x_t.shape[-1] / PIXELS)))
        colors = levels(x_t[0, :, ::stride, ::stride]).round().flatten(1)
        evidence = self._by_border(colors, kept[severities]) + self._by_rounding(colors, kept[severities])
        return settle(severities, evidence, self._told)

    def _by_border(self, colors: Tensor, kept: Tensor) -> Tensor:
        """Return the log evidence of some shares of the color: putting it back may not leave the cube, and comes near.

        colors: (3, N) whole levels; kept: (S,) float64; returns (S,).
        """
        gray = colors.mean(0)
        dark = torch.where(gray >= DARKEST, (gray - colors.min(0).values - 0.5) / gray, 0.0)
        bright = torch.where(gray <= 255 - DARKEST, (colors.max(0).values - gray - 0.5) / (255 - gray), 0.0)
        reached = torch.maximum(dark, bright)
        farthest = reached.kthvalue(max(1, math.ceil(COLORFUL * len(reached)))).values.clamp(min=0)
        full = torch.linspace(0, 1, 201, dtype=torch.float64)
        chance = torch.exp((full - 1) / FULL) + DULL
        off = (farthest - kept[:, None] * full) / READING
        return (chance * torch.exp(-0.5 * off.square()) + 1e-12).sum(1).log()

    def _by_rounding(self, colors: Tensor, kept: Tensor) -> Tensor:
        """Return the log evidence of some shares of the color by the pattern of whole levels; shapes as above."""
        reach = min(max(2 * round(float((colors[1:] - colors[:1]).abs().mean())), 16), 1280 // len(kept) + 12, 64)
        seen = color_differences(colors, reach)
        plain = agreement(seen, torch.ones_like(seen))
        evidence = torch.zeros_like(kept)
        for row, share in enumerate(kept.tolist()):
            found = [
                agreement(seen, drained_differences(share, reach, is_jpeg)) - plain
                for is_jpeg, least in LEAST_KEPT.items()
                if share >= least
            ]
            worth = WORTH * max([0.0, *found])
            evidence[row] = worth if worth < PLENTY else PLENTY + BEYOND * math.log(worth / PLENTY)
        return evidence

    def _told(self, t: int) -> str:
        return f"{float(self.kept[t]):.2f} of the color left" if self.kept[t] else "no color left"

    def _gray(self, x: Tensor) -> Tensor:
        if x.shape[1] < 2:
            raise UsageError("desaturate needs a color picture and was given a gray one.", "Use color images.")
        return x.mean(1, keepdim=True)
