"""Colour drained away, towards the mean of the channels."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from colddiff_core.degradations.base import MOST_STEPS, Degradation, Frozen, at
from colddiff_core.degradations.registry import register
from colddiff_core.errors import UsageError
from colddiff_core.settings import setting


@register("desaturate")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Desaturate(Degradation):
    """x_t = a_t mean(x0) + (1 - a_t) x0, the mean over the channels of each pixel.

    linear: a_t = t / T; constant: every step keeps the share `rate` of the colour, a_t = 1 - rate^t.

    Source: Bansal et al. 2022, appendix A.4.
    """

    has_inverse = True
    is_linear = True
    is_colouring = True

    steps: int = setting(50, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    schedule: Literal["linear", "constant"] = setting("linear", "gray at T by equal parts, or a share a step")
    rate: float = setting(0.9, "share of the colour that a step keeps, for the constant schedule", minimum=0)
    kept: Tensor = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate > 1:
            raise UsageError(f"desaturate: rate = {self.rate} adds colour.", "Use a rate from 0 to 1.")
        t = torch.arange(self.steps + 1, dtype=torch.float64)
        kept = 1 - t / self.steps if self.schedule == "linear" else torch.tensor(self.rate, dtype=torch.float64) ** t
        object.__setattr__(self, "kept", kept.float())

    def degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        gray = self._gray(x0)
        return gray + at(self.kept, t, x0) * (x0 - gray)

    def undo(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        gray, kept = self._gray(x_t), at(self.kept, t, x_t)
        return gray + kept / (kept.square() + floor**2) * (x_t - gray)

    def _gray(self, x: Tensor) -> Tensor:
        if x.shape[1] < 2:
            raise UsageError("desaturate needs a colour picture and was given a gray one.", "Use colour images.")
        return x.mean(1, keepdim=True)
