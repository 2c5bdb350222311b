"""The degradations as the paper defines them, step by step: the slow reference for the fast forms.

They work in the dtype of x0: tests use float64, benchmarks float32.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:  # a benchmark's baseline must not import colddiff_core
    from colddiff_core.degradations import Degradation, Frozen


@functools.cache
def gaussian(std: float, size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return a two-dimensional Gaussian at integer offsets, normalized over its window."""
    half = size // 2
    y, z = torch.meshgrid(torch.arange(-half, half + 1), torch.arange(-half, half + 1), indexing="ij")
    kernel = torch.exp(-(y**2 + z**2).double() / (2 * std**2))
    return (kernel / kernel.sum()).to(device, dtype)


def blur(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """Convolve t times, each time with its own two-dimensional Gaussian."""
    x, channels, half = x0, x0.shape[1], op.kernel_size // 2
    for i in range(t):
        std = {
            "constant": op.std,
            "linear": op.std + op.growth * i,
            "exponential": op.std * math.exp(op.growth * i),
        }[op.schedule]
        kernel = gaussian(std, op.kernel_size, x.dtype, x.device).expand(channels, 1, -1, -1)
        x = F.conv2d(F.pad(x, [half] * 4, mode=op.padding), kernel, groups=channels)
    if op.final_mean and t == op.steps:
        x = x.mean((2, 3), keepdim=True).expand_as(x)
    return x


def mixture(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """Multiply the alphas of the cosine schedule step by step, then mix with z."""

    def shape(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = 1.0
    for i in range(t):
        kept *= 1 - min(1 - shape((i + 1) / op.steps) / shape(i / op.steps), 0.999)
    return math.sqrt(kept) * x0 + math.sqrt(1 - kept) * frozen.z


def mask(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """Multiply t full-size masks, image by image."""
    height, width = x0.shape[-2:]
    rows, cols = (torch.arange(side, device=x0.device) for side in (height, width))
    masked = []
    for image, row, col, color in zip(x0, frozen.center_row, frozen.center_col, frozen.color, strict=True):
        y, x = torch.meshgrid(rows - row, cols - col, indexing="ij")
        kept = torch.ones(height, width, dtype=x0.dtype, device=x0.device)
        for i in range(t):
            kept = kept * (1 - torch.exp(-(y**2 + x**2).to(x0.dtype) / (2 * (op.std + op.growth * i) ** 2)))
        hole = color[:, None, None] if op.fill == "color" else 0.0
        masked.append(kept * image + (1 - kept) * hole)
    return torch.stack(masked)


def pixelate(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """Scale down and back up, t times."""
    x, (height, width) = x0, x0.shape[-2:]
    for i in range(t):
        low = F.interpolate(x, size=(height // 2 ** (i + 1), width // 2 ** (i + 1)), mode=op.mode)
        x = F.interpolate(low, size=(height, width), mode="nearest-exact")
    return x


def desaturate(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """Apply a 1 x 1 convolution z(alpha) per step (appendix A.4); t of them compose to z(t / T)."""
    x, channels = x0, x0.shape[1]
    for i in range(t):
        alpha = 1 / (op.steps - i) if op.schedule == "linear" else 1 - op.rate
        mean = torch.full((channels, channels), 1 / channels, device=x.device)
        z = alpha * mean + (1 - alpha) * torch.eye(channels, device=x.device)
        x = torch.einsum("dc,bchw->bdhw", z.to(x.dtype), x)
    return x


def holes(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """Gray out one pixel at a time, from its turn on, if t > 0."""
    x = x0.clone()
    for b, row, col in torch.nonzero(frozen.turn <= 1).tolist():
        if t and float(frozen.turn[b, row, col]) * op.steps <= t:
            x[b, :, row, col] = 0
    return x


def snow(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """Snow on one picture at a time, with loops over taps and rows (appendix A.5)."""
    if t == 0:
        return x0
    zoom, threshold, taps, sigma, lightening = {
        1: (3.0, (0.7, 0.3), 5, (0.5, 5.0), (0.95, 0.7)),
        2: (2.5, (1.15, 0.7), 11, (0.05, 12.0), (0.95, 0.55)),
        3: (2.5, (1.15, 0.7), 11, (0.05, 16.0), (0.95, 0.4)),
        4: (2.5, (1.15, 0.55), 11, (0.05, 20.0), (0.95, 0.3)),
    }[op.level]
    share = (t - 1) / (op.steps - 1) if op.steps > 1 else 1.0
    threshold_t, sigma_t, lightening_t = (
        ends[0] + share * (ends[1] - ends[0]) for ends in (threshold, sigma, lightening)
    )
    weights = [math.exp(-((k - taps // 2) ** 2) / (2 * sigma_t**2)) for k in range(taps)]
    snowed = []
    for image, seeds, vertical in zip((x0 + 1) / 2, frozen.seed_matrix.to(x0.dtype), frozen.vertical, strict=True):
        flakes = seeds
        for axis in (0, 1):
            n = flakes.shape[axis]
            crop = math.ceil(n / zoom)
            rows = flakes.movedim(axis, 0)[(n - crop) // 2 : (n - crop) // 2 + crop]
            size = round(crop * zoom)
            magnified = []
            for j in range(size):
                place = j * (crop - 1) / max(size - 1, 1)
                low = min(int(place), max(crop - 2, 0))
                high = min(low + 1, crop - 1)
                magnified.append(rows[low] + (place - low) * (rows[high] - rows[low]))
            trim = (size - n) // 2
            flakes = torch.stack(magnified[trim : trim + n]).movedim(0, axis)
        flakes = torch.where(flakes > threshold_t, flakes, 0.0).clamp(0, 1)
        if vertical:
            flakes = flakes.T
        padded = F.pad(flakes, (taps // 2, taps // 2))
        layer = sum(w * padded[:, k : k + flakes.shape[1]] for k, w in enumerate(weights)) / sum(weights)
        if vertical:
            layer = layer.T
        x = image
        if op.brighten:
            luma = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device).view(3, 1, 1)
            gray = (x * luma).sum(0) if len(x) == 3 else x.mean(0)
            x = lightening_t * x + (1 - lightening_t) * torch.maximum(x, (1.5 * gray + 0.5).expand_as(x))
        snowed.append((x + layer + layer.rot90(2)).clamp(0, 1) * 2 - 1)
    return torch.stack(snowed)


FORMS = {
    "animorph": mixture,
    "blur": blur,
    "desaturate": desaturate,
    "holes": holes,
    "mask": mask,
    "noise": mixture,
    "pixelate": pixelate,
    "snow": snow,
}
