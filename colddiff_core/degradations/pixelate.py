"""Pixelation: the resolution falls step by step, shown enlarged by nearest pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core import devices
from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Estimate, Frozen
from colddiff_core.degradations.estimation.posterior import levels, to_estimate
from colddiff_core.degradations.registry import register
from colddiff_core.degradations.separable import MatrixStack
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

MATRIX_SIDE_PIXELS = 192  # beyond, the chain of a few steps is cheaper than a matrix of the side
MAX_ITERATIONS = 50  # a dozen usually reach TOLERANCE
JOINT_VALUES = 2**24  # up to this many values (64 MB in float32) a GPU solves all channels of a batch together
TOLERANCE = 1e-5  # of the initial residual, below what 8 bits or the network resolve
SAMPLE_LINES = 512  # rows, and columns, of a large picture that are used
# Pixels form blocks if they vary within a block less than this share of the variation across borders. A photograph's
# JPEG grid reaches .8, its pixelated copy compressed at quality 75 reaches .3 (scikit-image's photographs).
BLOCK_RATIO = 0.5
EVIDENCE_WEIGHT = 60.0  # of the log ratio: certain if the blocks are exactly flat
LARGEST_BLOCK_PIXELS = 64  # tried if no severity's blocks are found
JPEG_BLOCK_PIXELS = 8  # whose multiples a strongly compressed file shows, too


@register("pixelate")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixelate(Degradation):
    """Pixelation: step i scales n pixels down to n // 2^(i+1), without antialias, and back up by nearest pixels.

    Each step works on the result of the one before. Steps act on columns and rows separately, so x_t = A_t x0 B_t^T.

    Source: Bansal et al. 2022, section 4.3 and appendix A.3.
    """

    has_inverse = True
    has_estimate = True
    is_linear = True

    steps: int = setting(3, "number of halvings T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    mode: Literal["bicubic", "bilinear", "area"] = setting("bicubic", "interpolation for scaling down")
    stack: MatrixStack = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stack", MatrixStack(self._matrices, self.steps))

    @property
    def priors(self) -> tuple[str, ...]:
        """Return the names of the priors for x_T, the default first."""
        return ("gaussian", "degraded")

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        """Return an operator per interpolation mode; the factor is visible in the blocks, so it is not varied."""
        modes: tuple[Literal["bicubic", "bilinear", "area"], ...] = ("bicubic", "bilinear", "area")
        return tuple(dataclasses.replace(self, mode=mode) for mode in modes) if jitter else (self,)

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        for n in x0.shape[-2:]:
            self._check_size(n)
        if isinstance(t, int) and max(x0.shape[-2:]) > MATRIX_SIDE_PIXELS:
            return self._chain(x0, t)
        return self.stack.apply(x0, t)

    def _pair(self, x0: Tensor, s: int, r: int, frozen: Frozen) -> tuple[Tensor, Tensor]:
        if max(x0.shape[-2:]) > MATRIX_SIDE_PIXELS:
            return self._degrade(x0, s, frozen), self._degrade(x0, r, frozen)
        for n in x0.shape[-2:]:
            self._check_size(n)
        return self.stack.apply_both(x0, s, r)

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        for n in x_t.shape[-2:]:
            self._check_size(n)
        if isinstance(t, int) and max(x_t.shape[-2:]) > MATRIX_SIDE_PIXELS:
            return self._least_squares(x_t, t, floor)
        return self.stack.invert(x_t, t, floor)

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Find the blocks from where pixels differ from their neighbors and where they do not."""
        for n in x_t.shape[-2:]:
            self._check_size(n)
        profiles = [_mean_differences(x_t, axis) for axis in (-2, -1)]
        if not any(bool(profile.any()) for profile in profiles):
            raise UsageError("The picture is too flat to show blocks.", "Give --t.")
        ratios = [1.0]
        for t in range(1, self.steps + 1):
            blocks = [_block_of_pixels(len(p) + 1, (len(p) + 1) >> t) for p in profiles]
            ratios.append(_within_to_between(profiles, blocks))
        best = max((t for t, ratio in enumerate(ratios) if ratio < BLOCK_RATIO), default=0)
        evidence = torch.zeros(self.steps + 1)
        if best:
            evidence[best] = _block_evidence(ratios[best])
            estimate = to_estimate(torch.arange(self.steps + 1), evidence, lambda t: self._describe(t, x_t))
            chance = _chance_of_grid(profiles, [(len(p) + 1) / ((len(p) + 1) >> best) for p in profiles], self.steps)
            return dataclasses.replace(estimate, evidence=min(estimate.evidence, -chance))
        grids = [_regular_grid(profile) for profile in profiles]
        sides = [side for side, _ in grids]
        if min(sides) < 2:
            evidence[0] = EVIDENCE_WEIGHT * min(math.log(min(ratios[1:], default=1.0) / BLOCK_RATIO), 0.5)
            return to_estimate(torch.arange(self.steps + 1), evidence, lambda t: self._describe(t, x_t))
        # Blocks that no severity makes: return the nearest severity, with low confidence.
        nearest = min(round(math.log2(max(sides))), self.steps)
        trace = f"blocks of {sides[1]}x{sides[0]} pixels, of a size or place that no severity has"
        evidence[nearest] = 1.0
        estimate = to_estimate(torch.arange(self.steps + 1), evidence, lambda t: trace)
        shown = _block_evidence(max(ratio for _, ratio in grids)) if any(n % JPEG_BLOCK_PIXELS for n in sides) else 0.0
        chance = _chance_of_grid(profiles, sides, LARGEST_BLOCK_PIXELS**2)  # of any side, and at any place
        return dataclasses.replace(estimate, t=nearest, evidence=min(shown, -chance))

    def _describe(self, t: int, x_t: Tensor) -> str:
        height, width = (n / (n >> t) for n in x_t.shape[-2:])
        return f"blocks of {width:.4g}x{height:.4g} pixels" if t else "no blocks"

    def _check_size(self, n: int) -> None:
        if n >> self.steps < 1:
            most = n.bit_length() - 1
            raise UsageError(
                f"pixelate: a side of {counted(n, 'pixel')} cannot be halved {counted(self.steps, 'time')}.",
                f"Use at most {counted(most, 'step')} (pixelate.steps in a composition) or a larger picture.",
            )

    def _matrices(self, n: int) -> Tensor:
        """Return A_t for a side of n pixels, t = 0..T: (T + 1, n, n) float64."""
        columns = torch.eye(n, dtype=torch.float64).view(n, 1, n, 1)  # one picture per unit vector
        steps = [columns]
        for i in range(self.steps):
            steps.append(self._step(steps[-1], i, (n >> (i + 1), 1), (n, 1)))
        return torch.stack([pictures.view(n, n).T for pictures in steps])

    def _chain(self, x: Tensor, t: int) -> Tensor:
        """Apply the steps one by one, which is cheaper than matrices for a photograph."""
        height, width = x.shape[-2:]
        for i in range(t):
            x = self._step(x, i, (height >> (i + 1), width >> (i + 1)), (height, width))
        return x

    def _least_squares(self, x_t: Tensor, t: int, floor: float) -> Tensor:
        """Return (A^T A + floor^2)^-1 A^T x_t by conjugate gradients, equal to the inverse by matrices.

        On the row space of A its singular values are alike, so a few iterations suffice. Channels are solved one at a
        time to save memory, but on a GPU together if the batch is small: a third of the kernel launches for RGB.
        """
        inverse = torch.empty_like(x_t)
        is_small = not devices.can_read(x_t) and x_t.numel() <= JOINT_VALUES
        channels = x_t.shape[1] if is_small else 1
        for before, after in zip(x_t.split(channels, 1), inverse.split(channels, 1), strict=True):
            planes = before.reshape(-1, 1, *before.shape[-2:])  # solved independently
            after.copy_(self._conjugate_gradients(planes, t, floor).view(before.shape))
        return inverse

    def _conjugate_gradients(self, x_t: Tensor, t: int, floor: float) -> Tensor:
        def normal(x: Tensor) -> Tensor:
            return self._adjoint(self._chain(x, t), t).add_(x, alpha=floor**2)

        residual = self._adjoint(x_t, t)
        solution, direction = torch.zeros_like(x_t), residual.clone()
        energy = first = _squared_norm(residual)
        for _ in range(MAX_ITERATIONS):
            image = normal(direction)
            length = energy / (direction * image).sum((1, 2, 3), keepdim=True).clamp_min(torch.finfo(x_t.dtype).tiny)
            length = torch.where(energy > TOLERANCE**2 * first, length, 0.0)  # a solved image must not depend on others
            solution.addcmul_(length, direction)
            residual.addcmul_(length, image, value=-1)
            before, energy = energy, _squared_norm(residual)
            # Solved planes no longer change, so a GPU does all iterations instead of making the CPU wait for a check.
            if devices.can_read(energy) and bool((energy <= TOLERANCE**2 * first).all()):
                break
            direction.mul_(energy / before.clamp_min(torch.finfo(x_t.dtype).tiny)).add_(residual)
        return solution

    def _adjoint(self, x: Tensor, t: int) -> Tensor:
        """Return A^T x for the chain by automatic differentiation."""
        with torch.enable_grad():
            start = torch.zeros_like(x, requires_grad=True)
            adjoint: Tensor = torch.autograd.grad(self._chain(start, t), start, x)[0]
        return adjoint

    def _step(self, x: Tensor, i: int, small: tuple[int, int], size: tuple[int, int]) -> Tensor:
        low = F.interpolate(x, size=small, mode=self.mode)
        return F.interpolate(low, size=size, mode="nearest-exact")


def _squared_norm(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3), keepdim=True)


def _mean_differences(x: Tensor, axis: int) -> Tensor:
    """Return the mean absolute difference of adjacent pixels along an axis: (n - 1,) float64, in levels."""
    across = -1 if axis == -2 else -2
    lines = torch.linspace(0, x.shape[across] - 1, min(x.shape[across], SAMPLE_LINES)).round().long()
    return levels(x.index_select(across, lines)).diff(dim=axis).abs().double().mean((0, 1, across))


def _block_of_pixels(n: int, count: int) -> Tensor:
    """Return the block that each of n pixels belongs to, for `count` blocks: (n,) int64."""
    return ((torch.arange(n, dtype=torch.float64) + 0.5) * count / n).floor().long()


def _within_to_between(profiles: list[Tensor], blocks: list[Tensor]) -> float:
    """Return the variation within blocks, at the worst place in the block, over the variation across borders.

    Every other border is enough to be compared with: those of JPEG's blocks, of 8 pixels, have none between them.
    """
    across: tuple[list[Tensor], list[Tensor]] = [], []
    within = [0.0]
    for profile, block in zip(profiles, blocks, strict=True):
        is_border = block.diff() > 0
        for parity, part in enumerate(across):
            part.append(profile[is_border & (block[1:] % 2 == parity)])
        # By place in the block: smaller blocks inside show at one place only.
        place = torch.arange(len(block)) - torch.searchsorted(block, block)
        places = place[1:][~is_border]
        totals = torch.bincount(places, profile[~is_border])
        counts = torch.bincount(places)
        within += (totals / counts)[counts > counts.max() // 4].tolist() if len(counts) else []
    between = min((float(torch.cat(part).mean()) for part in across if any(map(len, part))), default=0.0)
    return max(within) / between if between else 1.0


def _block_evidence(ratio: float) -> float:
    """Return the log evidence for blocks with this ratio of the variation within to that between."""
    return EVIDENCE_WEIGHT * math.log(BLOCK_RATIO / max(ratio, 1e-2))


def _chance_of_grid(profiles: list[Tensor], sides: Sequence[float], tries: int) -> float:
    """Return the log probability that a picture's own edges all lie on one of `tries` grids with blocks of these sides.

    It is far from 0 in photographs, which vary everywhere, but not in a drawing of a few straight lines.
    """
    edges = [float(profile.sum().square() / profile.square().sum().clamp(min=1e-12)) for profile in profiles]
    return math.log(tries) - sum(count * math.log(side) for count, side in zip(edges, sides, strict=True))


def _regular_grid(profile: Tensor) -> tuple[int, float]:
    """Return the side in pixels of the blocks of a regular grid along an axis, and their ratio; 1, 1 if none."""
    found = 1, 1.0  # the largest match wins, because divisors of the side match as well
    for side in range(2, min(LARGEST_BLOCK_PIXELS, len(profile) // 3) + 1):
        place = torch.arange(len(profile)) % side
        means = (torch.bincount(place, profile) / torch.bincount(place)).sort(descending=True).values
        if means[1] < BLOCK_RATIO * means[0]:
            found = side, float(means[1] / means[0])
    return found
