"""Falling snow, a field of flakes for each image, thicker and windier with t."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.degradations.base import Degradation, Frozen, Generators, at, draw_normal, draw_uniform
from colddiff_core.degradations.registry import register
from colddiff_core.settings import setting


class Level(NamedTuple):
    """A level's numbers; pairs run linearly from t = 1 to t = T."""

    mean: float
    zoom: float
    threshold: tuple[float, float]
    taps: int
    sigma: tuple[float, float]
    lightening: tuple[float, float]


SPREAD = 0.3  # of the seed matrix
LUMA = (0.299, 0.587, 0.114)
LEVELS = {
    # ImageNet-C's (Hendrycks and Dietterich 2019), made gradual; 3 is the paper's CIFAR-10, 4 its CelebA (A.5).
    1: Level(0.1, 3.0, (0.7, 0.3), 5, (0.5, 5.0), (0.95, 0.7)),
    2: Level(0.55, 2.5, (1.15, 0.7), 11, (0.05, 12.0), (0.95, 0.55)),
    3: Level(0.55, 2.5, (1.15, 0.7), 11, (0.05, 16.0), (0.95, 0.4)),
    4: Level(0.55, 2.5, (1.15, 0.55), 11, (0.05, 20.0), (0.95, 0.3)),
}


@dataclasses.dataclass(frozen=True)
class FrozenSnow(Frozen):
    """Each image's flakes and wind.

    seed_matrix: (B, H, W) float32, before the zoom; vertical: (B,) bool, the direction of the wind.
    """

    seed_matrix: Tensor
    vertical: Tensor


@register("snow")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Snow(Degradation):
    """x_t = clip(x0 + S_t + S_t turned by half, 0, 1) on [0, 1].

    S_t: the zoomed seed matrix, 0 at or below a threshold, clipped to [0, 1], blurred along a row or a
    column by a one-dimensional Gaussian; threshold and width run with t. With `brighten`, x0 is first
    lightened as ImageNet-C does: b x + (1 - b) max(x, 1.5 gray + .5).

    Source: Bansal et al. 2022, appendix A.5; Hendrycks and Dietterich 2019.
    """

    frozen_type = FrozenSnow

    steps: int = setting(200, "number of severities T; t = T is the most severe", minimum=1)
    level: Literal[1, 2, 3, 4] = setting(3, "how heavy: 3 is the paper's CIFAR-10, 4 its CelebA")
    brighten: bool = setting(False, "lighten the picture as ImageNet-C does")
    threshold: Tensor = dataclasses.field(init=False, repr=False, compare=False)
    kernels: Tensor = dataclasses.field(init=False, repr=False, compare=False)
    lightening: Tensor = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        level = LEVELS[self.level]
        offsets = torch.arange(level.taps, dtype=torch.float64) - level.taps // 2
        weights = torch.exp(-0.5 * (offsets / self._course(level.sigma)[:, None]).square())
        object.__setattr__(self, "threshold", self._course(level.threshold).float())
        object.__setattr__(self, "kernels", (weights / weights.sum(1, keepdim=True)).float())
        object.__setattr__(self, "lightening", self._course(level.lightening).float())

    def _course(self, ends: tuple[float, float]) -> Tensor:
        """Return a parameter for t = 0..T: linear from t = 1 to T; t = 0, never used, is as t = 1."""
        values = torch.linspace(*ends, self.steps, dtype=torch.float64)
        return torch.cat([values[:1], values])

    def draw(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenSnow:
        drawn = {
            "seed_matrix": LEVELS[self.level].mean + SPREAD * draw_normal(x0, generator, tuple(x0.shape[-2:])),
            "vertical": draw_uniform(x0, generator, ()) < 0.5,
        }
        return FrozenSnow(**drawn | fields)

    def degrade(self, x0: Tensor, t: int | Tensor, frozen: FrozenSnow) -> Tensor:
        layer = self.layer(x0, t, frozen).unsqueeze(1)
        x = (x0 + 1) / 2
        if self.brighten:
            kept = at(self.lightening, t, x)
            lightened = torch.maximum(x, 1.5 * _gray(x) + 0.5)
            x = kept * x + (1 - kept) * lightened
        return (x + layer + layer.flip(-2, -1)).clamp_(0, 1) * 2 - 1

    def layer(self, x0: Tensor, t: int | Tensor, frozen: FrozenSnow) -> Tensor:
        """Return S_t, the snow before it is turned and added: (B, H, W) float32 in [0, 1]."""
        flakes = zoomed(frozen.seed_matrix.to(x0.device), LEVELS[self.level].zoom)
        threshold = at(self.threshold, t, flakes)
        if not isinstance(t, int):
            threshold = threshold.view(-1, 1, 1)
        flakes = torch.where(flakes > threshold, flakes, 0.0).clamp_(0, 1).to(x0.dtype)
        return _blown(flakes, self.kernels.to(x0.device)[t], frozen.vertical.to(x0.device))


def zoomed(seeds: Tensor, zoom: float) -> Tensor:
    """Return the centre of (B, H, W) magnified by linear interpolation, corners on corners, at the same size."""
    for axis in (-2, -1):
        n = seeds.shape[axis]
        crop = math.ceil(n / zoom)
        size = round(crop * zoom)
        position = torch.arange(n, dtype=torch.float64) + (size - n) // 2
        position = (position * (crop - 1) / max(size - 1, 1)).clamp(0, crop - 1)
        below = position.floor().long().clamp(max=max(crop - 2, 0))
        share = (position - below).to(seeds.dtype).to(seeds.device)
        below = below.to(seeds.device) + (n - crop) // 2
        above = (below + 1).clamp(max=n - 1)
        shape = (-1, 1) if axis == -2 else (-1,)
        seeds = torch.lerp(seeds.index_select(axis, below), seeds.index_select(axis, above), share.view(shape))
    return seeds


def _blown(flakes: Tensor, kernel: Tensor, vertical: Tensor) -> Tensor:
    """Blur each (H, W) of a batch along its own direction: kernel (k,) or (B, k), vertical (B,) bool."""
    count, taps = len(flakes), kernel.shape[-1]
    still = torch.zeros(taps, device=kernel.device)
    still[taps // 2] = 1
    kernel = kernel.expand(count, taps)
    along_columns = torch.where(vertical[:, None], kernel, still).view(count, 1, taps, 1)
    along_rows = torch.where(vertical[:, None], still, kernel).view(count, 1, 1, taps)
    blown = F.conv2d(flakes.unsqueeze(0), along_columns, padding=(taps // 2, 0), groups=count)
    return F.conv2d(blown, along_rows, padding=(0, taps // 2), groups=count).squeeze(0)


def _gray(x: Tensor) -> Tensor:
    """Return the luminance of (B, C, H, W), C = 3, or the picture itself."""
    if x.shape[1] != len(LUMA):
        return x.mean(1, keepdim=True)
    return (x * torch.tensor(LUMA, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
