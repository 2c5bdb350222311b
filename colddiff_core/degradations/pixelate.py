"""Lower and lower resolution, enlarged again by whole pixels."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.degradations.base import MOST_STEPS, Degradation, Frozen
from colddiff_core.degradations.registry import register
from colddiff_core.errors import UsageError, counted
from colddiff_core.separable import MatrixStack
from colddiff_core.settings import setting

LARGE = 192  # pixels of a side beyond which the chain of a few steps costs less than a matrix of the side


@register("pixelate")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixelate(Degradation):
    """x_t: step i scales n pixels down to n // 2^(i+1), without antialias, and back up by nearest pixels.

    Recursive: each step works on the one before. Every step acts on columns and rows apart, so t steps
    are A_t X B_t^T.

    Source: Bansal et al. 2022, section 4.3 and appendix A.3.
    """

    has_inverse = True
    is_linear = True

    steps: int = setting(3, "number of halvings T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    mode: Literal["bicubic", "bilinear", "area"] = setting("bicubic", "how a step scales down")
    stack: MatrixStack = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stack", MatrixStack(self._matrices, self.steps))

    @property
    def priors(self) -> tuple[str, ...]:
        return ("gaussian", "degraded")

    def degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        for n in x0.shape[-2:]:
            self._check_size(n)
        if isinstance(t, int) and max(x0.shape[-2:]) > LARGE:
            return self._chain(x0, t)
        return self.stack.apply(x0, t)

    def degrade_both(self, x0: Tensor, s: int, r: int, frozen: Frozen) -> tuple[Tensor, Tensor]:
        if max(x0.shape[-2:]) > LARGE:
            return self.degrade(x0, s, frozen), self.degrade(x0, r, frozen)
        for n in x0.shape[-2:]:
            self._check_size(n)
        return self.stack.apply_both(x0, s, r)

    def undo(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        for n in x_t.shape[-2:]:
            self._check_size(n)
        return self.stack.invert(x_t, t, floor)

    def _check_size(self, n: int) -> None:
        if n >> self.steps < 1:
            most = n.bit_length() - 1
            raise UsageError(
                f"pixelate: a side of {counted(n, 'pixel')} cannot be halved {counted(self.steps, 'time')}.",
                f"Use at most {counted(most, 'step')} (pixelate.steps in a composition), or a larger picture.",
            )

    def _matrices(self, n: int) -> Tensor:
        """Return A_t for a side of n pixels, t = 0..T: (T + 1, n, n) float64."""
        columns = torch.eye(n, dtype=torch.float64).view(n, 1, n, 1)  # one picture per unit vector
        made = [columns]
        for i in range(self.steps):
            made.append(self._step(made[-1], i, (n >> (i + 1), 1), (n, 1)))
        return torch.stack([pictures.view(n, n).T for pictures in made])

    def _chain(self, x: Tensor, t: int) -> Tensor:
        """Take the steps literally: on a photograph cheaper than matrices of its side."""
        height, width = x.shape[-2:]
        for i in range(t):
            x = self._step(x, i, (height >> (i + 1), width >> (i + 1)), (height, width))
        return x

    def _step(self, x: Tensor, i: int, small: tuple[int, int], size: tuple[int, int]) -> Tensor:
        low = F.interpolate(x, size=small, mode=self.mode)
        return F.interpolate(low, size=size, mode="nearest-exact")
