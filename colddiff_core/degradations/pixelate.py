"""Lower and lower resolution, enlarged again by whole pixels."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Estimate, Frozen
from colddiff_core.degradations.estimation.posterior import levels, settle
from colddiff_core.degradations.registry import register
from colddiff_core.degradations.separable import MatrixStack
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

LARGE = 192  # pixels of a side beyond which the chain of a few steps costs less than a matrix of the side
ITERATIONS = 50  # at most; a dozen reach ENOUGH
ENOUGH = 1e-5  # of the residual's length at first, which is below what 8 bits or the network tell
ROWS = 512  # of a large picture that are looked at, and as many columns
# Blocks whose pixels differ this much less from each other than from the next block's are blocks: a photograph's grid
# of JPEG reaches .8, its pixelated copy .3 once it is compressed at quality 75 (scikit-image's photographs).
STEADY = 0.5
WORTH = 60.0  # of the evidence, over the blocks' logarithm: certain where they are exactly even
LARGEST_BLOCK = 64  # pixels of a side that are tried where no severity's blocks are seen


@register("pixelate")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixelate(Degradation):
    """x_t: step i scales n pixels down to n // 2^(i+1), without antialias, and back up by nearest pixels.

    Recursive: each step works on the one before. Every step acts on columns and rows apart, so t steps
    are A_t X B_t^T.

    Source: Bansal et al. 2022, section 4.3 and appendix A.3.
    """

    has_inverse = True
    has_estimate = True
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

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        for n in x0.shape[-2:]:
            self._check_size(n)
        if isinstance(t, int) and max(x0.shape[-2:]) > LARGE:
            return self._chain(x0, t)
        return self.stack.apply(x0, t)

    def _pair(self, x0: Tensor, s: int, r: int, frozen: Frozen) -> tuple[Tensor, Tensor]:
        if max(x0.shape[-2:]) > LARGE:
            return self._degrade(x0, s, frozen), self._degrade(x0, r, frozen)
        for n in x0.shape[-2:]:
            self._check_size(n)
        return self.stack.apply_both(x0, s, r)

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        for n in x_t.shape[-2:]:
            self._check_size(n)
        if isinstance(t, int) and max(x_t.shape[-2:]) > LARGE:
            return self._least_squares(x_t, t, floor)
        return self.stack.invert(x_t, t, floor)

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Tell the blocks by where pixels differ from their neighbors, and where they do not."""
        for n in x_t.shape[-2:]:
            self._check_size(n)
        profiles = [_changes(x_t, axis) for axis in (-2, -1)]
        if not any(bool(profile.any()) for profile in profiles):
            raise UsageError("The picture is too flat to show blocks.", "Give --t.")
        unsteady = [1.0]
        for t in range(1, self.steps + 1):
            blocks = [_block(len(p) + 1, (len(p) + 1) >> t) for p in profiles]
            unsteady.append(_unsteadiness(profiles, blocks))
        seen = max((t for t, share in enumerate(unsteady) if share < STEADY), default=0)
        evidence = torch.zeros(self.steps + 1)
        if seen:
            evidence[seen] = WORTH * math.log(STEADY / max(unsteady[seen], 1e-2))
            return settle(torch.arange(self.steps + 1), evidence, lambda t: self._told(t, x_t))
        other = [_other_blocks(profile) for profile in profiles]
        if min(other) < 2:
            evidence[0] = WORTH * min(math.log(min(unsteady[1:], default=1.0) / STEADY), 0.5)
            return settle(torch.arange(self.steps + 1), evidence, lambda t: self._told(t, x_t))
        # As coarse as these, if of another size or place: the nearest severity, without confidence.
        nearest = min(round(math.log2(max(other))), self.steps)
        told = f"blocks of {other[1]}x{other[0]} pixels, of a size or place that no severity has"
        evidence[nearest] = 1.0
        return dataclasses.replace(settle(torch.arange(self.steps + 1), evidence, lambda t: told), t=nearest)

    def _told(self, t: int, x_t: Tensor) -> str:
        height, width = (n / (n >> t) for n in x_t.shape[-2:])
        return f"blocks of {width:.4g}x{height:.4g} pixels" if t else "no blocks"

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
            share = energy / (direction * image).sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(x_t.dtype).tiny)
            share = torch.where(energy > ENOUGH**2 * first, share, 0.0)  # whatever its neighbors still need
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


def _changes(x: Tensor, axis: int) -> Tensor:
    """Return how much pixels differ from the next along an axis, on average: (n - 1,) float64, levels."""
    across = -1 if axis == -2 else -2
    lines = torch.linspace(0, x.shape[across] - 1, min(x.shape[across], ROWS)).round().long()
    return levels(x.index_select(across, lines)).diff(dim=axis).abs().double().mean((0, 1, across))


def _block(n: int, count: int) -> Tensor:
    """Return the block that each of n pixels is in, `count` blocks enlarged by nearest pixels: (n,) int64."""
    return ((torch.arange(n, dtype=torch.float64) + 0.5) * count / n).floor().long()


def _unsteadiness(profiles: list[Tensor], blocks: list[Tensor]) -> float:
    """Return how much pixels differ within blocks over how much across their borders, at the worst place within."""
    across, within = [], [0.0]
    for profile, block in zip(profiles, blocks, strict=True):
        is_border = block.diff() > 0
        across.append(profile[is_border])
        # How far into its block a pixel is: blocks within blocks show at one place alone.
        place = torch.arange(len(block)) - torch.searchsorted(block, block)
        places = place[1:][~is_border]
        totals = torch.bincount(places, profile[~is_border])
        counts = torch.bincount(places)
        within += (totals / counts)[counts > counts.max() // 4].tolist() if len(counts) else []
    between = float(torch.cat(across).mean()) if any(len(part) for part in across) else 0.0
    return max(within) / between if between else 1.0


def _other_blocks(profile: Tensor) -> int:
    """Return the side of the blocks that a grid of whole pixels shows along an axis; 1 where none does."""
    found = 1  # the largest is the blocks' own, for a part of their side shows as well
    for side in range(2, min(LARGEST_BLOCK, len(profile) // 3) + 1):
        place = torch.arange(len(profile)) % side
        means = (torch.bincount(place, profile) / torch.bincount(place)).sort(descending=True).values
        if means[1] < STEADY * means[0]:
            found = side
    return found
