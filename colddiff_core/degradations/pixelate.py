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
ITERATIONS = 50  # at most; a dozen reach ENOUGH
ENOUGH = 1e-5  # of the residual's length at first, which is below what 8 bits or the network tell


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

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        """Return an operator for every way of scaling down: by how much is told by the blocks."""
        modes: tuple[Literal["bicubic", "bilinear", "area"], ...] = ("bicubic", "bilinear", "area")
        return tuple(dataclasses.replace(self, mode=mode) for mode in modes) if jitter else (self,)

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
        if isinstance(t, int) and max(x_t.shape[-2:]) > LARGE:
            return self._least_squares(x_t, t, floor)
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

    def _least_squares(self, x_t: Tensor, t: int, floor: float) -> Tensor:
        """Return (A^T A + floor^2)^-1 A^T x_t, as the matrices' singular values give it, by conjugate gradients.

        All is in the span of the rows of A, where its singular values are of one size: a few iterations are enough. A
        channel at a time, for a photograph is large.
        """
        made = torch.empty_like(x_t)
        for before, after in zip(x_t.split(1, 1), made.split(1, 1), strict=True):
            after.copy_(self._conjugate_gradients(before, t, floor))
        return made

    def _conjugate_gradients(self, x_t: Tensor, t: int, floor: float) -> Tensor:
        def normal(x: Tensor) -> Tensor:
            return self._adjoint(self._chain(x, t), t).add_(x, alpha=floor**2)

        residual = self._adjoint(x_t, t)
        found, direction = torch.zeros_like(x_t), residual.clone()
        energy = first = _energy(residual)
        for _ in range(ITERATIONS):
            image = normal(direction)
            # An image that is done, or was empty, stays as it is.
            share = energy / (direction * image).sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(x_t.dtype).tiny)
            found.addcmul_(share, direction)
            residual.addcmul_(share, image, value=-1)
            before, energy = energy, _energy(residual)
            if bool((energy <= ENOUGH**2 * first).all()):
                break
            direction.mul_(energy / before.clamp_min(torch.finfo(x_t.dtype).tiny)).add_(residual)
        return found

    def _adjoint(self, x: Tensor, t: int) -> Tensor:
        """Return A^T x of the chain, which is linear: its derivative's product with x."""
        with torch.enable_grad():
            start = torch.zeros_like(x, requires_grad=True)
            found: Tensor = torch.autograd.grad(self._chain(start, t), start, x)[0]
        return found

    def _step(self, x: Tensor, i: int, small: tuple[int, int], size: tuple[int, int]) -> Tensor:
        low = F.interpolate(x, size=small, mode=self.mode)
        return F.interpolate(low, size=size, mode="nearest-exact")


def _energy(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3), keepdim=True)
