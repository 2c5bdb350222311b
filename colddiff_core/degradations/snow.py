"""Falling snow: each image has its own flakes, which get denser and more wind-blown with t."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core import devices
from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Estimate, Frozen, entry_at
from colddiff_core.degradations.draws import Generators, draw_normal, draw_uniform
from colddiff_core.degradations.estimation.posterior import is_flat, to_estimate
from colddiff_core.degradations.estimation.snow_symmetry import shows_no_shades, snow_evidence
from colddiff_core.degradations.registry import register
from colddiff_core.degradations.separable import MatrixStack
from colddiff_core.errors import UsageError
from colddiff_core.images import LUMA


class SnowLevel(NamedTuple):
    """The parameters of a snow level; pairs are values at t = 1 and t = T, linear in between."""

    mean: float
    zoom: float
    threshold: tuple[float, float]
    taps: int
    sigma: tuple[float, float]
    lightening: tuple[float, float]


SMALLEST_SIDE_PIXELS = 16  # the halves of a smaller picture are too small to compare
SEED_STD = 0.3
GAP_PIXELS = 15  # wider than most flakes, even wind-blown: in this square a picture's darkest pixel is free of snow
SMOOTHED_PIXELS = 9  # side of the square over which that background is averaged, twice
LEVELS = {
    # ImageNet-C's levels (Hendrycks and Dietterich 2019), made gradual; 3 is the paper's CIFAR-10, 4 its CelebA (A.5).
    1: SnowLevel(0.1, 3.0, (0.7, 0.3), 5, (0.5, 5.0), (0.95, 0.7)),
    2: SnowLevel(0.55, 2.5, (1.15, 0.7), 11, (0.05, 12.0), (0.95, 0.55)),
    3: SnowLevel(0.55, 2.5, (1.15, 0.7), 11, (0.05, 16.0), (0.95, 0.4)),
    4: SnowLevel(0.55, 2.5, (1.15, 0.55), 11, (0.05, 20.0), (0.95, 0.3)),
}


@dataclasses.dataclass(frozen=True)
class FrozenSnow(Frozen):
    """The flakes and the wind of each image.

    Attributes:
        seed_matrix: (B, H, W) float32, before the zoom.
        vertical: (B,) bool, whether the wind blows along columns.
    """

    seed_matrix: Tensor
    vertical: Tensor


@register("snow")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Snow(Degradation):
    """Snow: x_t = clip(x0 + S_t + rot180(S_t), 0, 1), on pixels in [0, 1].

    S_t is the zoomed seed matrix, set to 0 at or below a threshold, clipped to [0, 1] and blurred along rows or columns
    by a one-dimensional Gaussian; threshold and width depend on t. With `brighten`, x0 is first lightened as in
    ImageNet-C: b x + (1 - b) max(x, 1.5 gray + .5).

    Source: Bansal et al. 2022, appendix A.5; Hendrycks and Dietterich 2019.
    """

    frozen_type = FrozenSnow
    has_inverse = True
    inverts_unseen = True
    has_estimate = True

    steps: int = setting(200, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    level: Literal[1, 2, 3, 4] = setting(3, "density of the snow: 3 is the paper's CIFAR-10, 4 its CelebA")
    brighten: bool = setting(False, "lighten the picture first, as in ImageNet-C")
    threshold: Tensor = dataclasses.field(init=False, repr=False, compare=False)
    kernels: Tensor = dataclasses.field(init=False, repr=False, compare=False)
    lightening: Tensor = dataclasses.field(init=False, repr=False, compare=False)
    wind: MatrixStack = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        level = LEVELS[self.level]
        offsets = torch.arange(level.taps, dtype=torch.float64) - level.taps // 2
        weights = torch.exp(-0.5 * (offsets / self._over_severities(level.sigma)[:, None]).square())
        object.__setattr__(self, "threshold", self._over_severities(level.threshold).float())
        object.__setattr__(self, "kernels", (weights / weights.sum(1, keepdim=True)).float())
        object.__setattr__(self, "lightening", self._over_severities(level.lightening).float())
        object.__setattr__(self, "wind", MatrixStack(self._blur_matrices, self.steps))

    def _over_severities(self, ends: tuple[float, float]) -> Tensor:
        """Return a parameter for t = 0..T, linear from t = 1 to T: (T + 1,) float64; the entry for t = 0 is unused."""
        first = ends[0] if self.steps > 1 else ends[1]  # a single step is the most severe
        values = torch.linspace(first, ends[1], self.steps, dtype=torch.float64)
        return torch.cat([values[:1], values])

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenSnow:
        drawn = {
            "seed_matrix": LEVELS[self.level].mean + SEED_STD * draw_normal(x0, generator, tuple(x0.shape[-2:])),
            "vertical": draw_uniform(x0, generator, ()) < 0.5,
        }
        return FrozenSnow(**drawn | fields)

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: FrozenSnow) -> Tensor:
        layer = self.layer(x0, t, frozen).unsqueeze(1)
        if self.brighten:
            kept = entry_at(self.lightening, t, x0)
            # 1.5 gray + .5 of [0, 1], on [-1, 1]
            x0 = kept * x0 + (1 - kept) * torch.maximum(x0, 1.5 * _gray(x0) + 1.5)
        # Doubled, because the layer is in [0, 1] and the picture in [-1, 1].
        return (layer + layer.flip(-2, -1)).mul_(2).add(x0).clamp_(-1, 1)

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        """Take away what looks like snow: small bright spots in all channels, here and in the half turn.

        S + rot180(S) is its own half turn, so no more snow lies on a pixel than shows at both places. Of that, the
        spots above their background are taken for snow; only the share t / T, because photographs have bright spots
        too. A channel that snow has clipped tells only what it is at least: it is not made darker than its background.
        """
        both = torch.minimum(x_t, x_t.flip(-2, -1)).amin(1, keepdim=True)
        spots = (both - _background(both)).clamp_(min=0)
        guess = x_t - spots * ((t if isinstance(t, int) else t.view(-1, 1, 1, 1).to(x_t.dtype)) / self.steps)
        return torch.where(x_t < 1, guess, torch.maximum(guess, _background(x_t)))

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Find the snow from what the picture shares with its half turn."""
        if min(x_t.shape[-2:]) < SMALLEST_SIDE_PIXELS or is_flat(x_t):
            raise UsageError("The picture is too small or too flat to estimate its snow.", "Give --t.")
        estimate = to_estimate(
            *snow_evidence(x_t, self), lambda t: f"snow of {t / self.steps:.0%} strength" if t else "no snow"
        )
        return dataclasses.replace(estimate, evidence=0.0) if shows_no_shades(x_t) else estimate

    def layer(self, x0: Tensor, t: int | Tensor, frozen: FrozenSnow) -> Tensor:
        """Return S_t, one layer of snow: (B, H, W) float32 in [0, 1]."""
        flakes = zoom_center(frozen.seed_matrix, LEVELS[self.level].zoom)
        threshold = entry_at(self.threshold, t, flakes)
        if not isinstance(t, int):
            threshold = threshold.view(-1, 1, 1)
        flakes = torch.where(flakes > threshold, flakes, 0.0).clamp_(0, 1).to(x0.dtype)
        return self._blow(flakes.unsqueeze(1), t, frozen.vertical).squeeze(1)

    def _blow(self, flakes: Tensor, t: int | Tensor, vertical: Tensor) -> Tensor:
        """Blur each picture of (B, 1, H, W) along its own wind direction, vertical (B,) bool."""
        vertical = vertical.view(-1, 1, 1, 1)
        if self.wind.is_dense(flakes):
            return torch.where(vertical, self.wind.along_columns(flakes, t), self.wind.along_rows(flakes, t))
        # For a photograph adding up the taps is cheaper than a matrix of its side.
        kernel = devices.on_device(self.kernels, flakes.device)[t].expand(len(flakes), -1)
        blown = torch.zeros_like(flakes)
        for is_down, axis in ((True, -2), (False, -1)):
            weights = torch.where(vertical.view(-1, 1) == is_down, kernel, 0.0)
            if not devices.can_read(weights) or weights.any():  # zero weights have no effect
                _add_shifted(blown, flakes, weights, axis)
        return blown

    def _blur_matrices(self, n: int) -> Tensor:
        """Return the blur of n samples at every t as matrices: (T + 1, n, n) float64."""
        half = self.kernels.shape[1] // 2
        tap = torch.arange(n)[None, :] - torch.arange(n)[:, None] + half
        reached = (tap >= 0) & (tap <= 2 * half)
        return torch.where(reached, self.kernels.double()[:, tap.clamp(0, 2 * half)], 0.0)


def zoom_center(seeds: Tensor, zoom: float) -> Tensor:
    """Return the center of (B, H, W) magnified by bilinear interpolation with aligned corners, at the same size."""
    sides = seeds.shape[-2:]
    crop = [math.ceil(n / zoom) for n in sides]
    top, left = ((n - c) // 2 for n, c in zip(sides, crop, strict=True))
    center = seeds[:, None, top : top + crop[0], left : left + crop[1]]
    size = [round(c * zoom) for c in crop]
    magnified = F.interpolate(center, size=size, mode="bilinear", align_corners=True).squeeze(1)
    top, left = ((s - n) // 2 for s, n in zip(size, sides, strict=True))
    return magnified[:, top : top + sides[0], left : left + sides[1]]


def _background(x: Tensor) -> Tensor:
    """Return (B, C, H, W) without its small bright spots: the morphological opening, smoothed so no squares show."""
    for sign in (-1, 1):
        x = sign * _pooled(F.max_pool2d, sign * x, GAP_PIXELS)
    for _ in range(2):
        x = _pooled(functools.partial(F.avg_pool2d, count_include_pad=False), x, SMOOTHED_PIXELS)
    return x


def _pooled(pool: Callable[..., Tensor], x: Tensor, side: int) -> Tensor:
    """Pool (B, C, H, W) over the square around each pixel, rows first: same shape."""
    x = pool(x, (1, side), stride=1, padding=(0, side // 2))
    return pool(x, (side, 1), stride=1, padding=(side // 2, 0))


def _add_shifted(total: Tensor, x: Tensor, weights: Tensor, axis: int) -> None:
    """Add x, convolved along an axis by weights (B, k) with zero padding, to `total` in place."""
    n, half = x.shape[axis], weights.shape[1] // 2
    for tap in range(weights.shape[1]):
        offset = tap - half
        length = n - abs(offset)
        if length > 0:
            source = x.narrow(axis, max(offset, 0), length)
            total.narrow(axis, max(-offset, 0), length).addcmul_(source, weights[:, tap].view(-1, 1, 1, 1))


def _gray(x: Tensor) -> Tensor:
    """Return the luminance of (B, C, H, W) if C = 3, else the mean of the channels: (B, 1, H, W)."""
    if x.shape[1] != len(LUMA):
        return x.mean(1, keepdim=True)
    return (x * devices.on_device(LUMA, x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
