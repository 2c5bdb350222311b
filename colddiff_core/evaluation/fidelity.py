"""How close images come to originals: RMSE, PSNR and SSIM by the paper's definitions, and LPIPS."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.errors import UsageError
from colddiff_core.evaluation import bootstrap
from colddiff_core.evaluation.bootstrap import Interval

SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for pixels on [0, 1]
PSNR_LIMIT = 100.0  # dB: an exact copy has no finite PSNR


class PerceptualDistance(Protocol):
    """LPIPS, or another learned distance between two images."""

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return distances (B,) for images and originals (B, C, H, W) float32 in [-1, 1]."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Return what to record beside a result: the weights and their hash."""
        ...


class Fidelity:
    """Streaming RMSE, PSNR, SSIM and LPIPS; images are clamped to the pixel range first, as saving would.

    - rmse: root of the mean squared error over all pixels of all images, on [0, 1]
    - psnr: mean over images, in dB
    - ssim: mean over images, 11 x 11 Gaussian window with sigma 1.5, no padding; None for smaller images
    - lpips: mean over images, if `perceptual` is given

    Images and originals are (B, C, H, W) float32 in [-1, 1]. It keeps three or four numbers per image.

    Source: Bansal et al. 2022, Table 1; Wang et al. 2004 for SSIM; Zhang et al. 2018 for LPIPS.
    """

    def __init__(self, perceptual: PerceptualDistance | None = None) -> None:
        """Start with no images; `perceptual` adds LPIPS."""
        self.perceptual = perceptual
        self.rows: list[Tensor] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Return the keys of the result."""
        return ("rmse", "psnr", "ssim", *(["lpips"] if self.perceptual else []))

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Add a batch of images and their originals.

        Raises:
            UsageError: Their shapes differ.
        """
        self.add(self.measure(images, originals))

    def add(self, rows: Tensor) -> None:
        """Add the rows that `measure` returned for a batch."""
        self.rows.append(rows)

    def measure(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return the measurements of each image without adding them: (B, 3 or 4) float64 on the CPU.

        Raises:
            UsageError: The shapes differ.
        """
        if images.shape != originals.shape:
            shapes = " and ".join("x".join(map(str, x.shape)) for x in (images, originals))
            raise UsageError(f"Images and originals differ in shape: {shapes}.", "Resize them to one shape.")
        restored, targets = ((x.detach().float().clamp(-1, 1) + 1) / 2 for x in (images, originals))
        squared = (restored - targets).double().square().mean((1, 2, 3))
        columns = [squared, (-10 * squared.log10()).clamp(max=PSNR_LIMIT), ssim(restored, targets)]
        rows = torch.stack([column.double() for column in columns], dim=1).cpu()
        if not self.perceptual:
            return rows
        return torch.cat([rows, self.perceptual(images, originals).double().cpu()[:, None]], dim=1)

    def result(self) -> dict[str, float | None]:
        """Return each metric over all images so far."""
        return dict(zip(self.names, map(_unless_nan, _finish(torch.cat(self.rows).mean(0)).tolist()), strict=True))

    def intervals(self) -> dict[str, Interval | None]:
        """Return the 95 % bootstrap interval of each metric so far, None if it cannot be computed."""
        bounds = bootstrap.intervals(torch.cat(self.rows), _finish)
        return {
            name: None if ends is None or _unless_nan(ends[0]) is None else ends
            for name, ends in zip(self.names, bounds, strict=True)
        }


def _finish(means: Tensor) -> Tensor:
    """Turn means of (squared error, ...) into metrics: the root is taken over all pixels of all images."""
    return torch.cat([means[..., :1].sqrt(), means[..., 1:]], dim=-1)


def _unless_nan(value: float) -> float | None:
    return None if math.isnan(value) else value  # NaN: not measured


def ssim(restored: Tensor, targets: Tensor) -> Tensor:
    """Return the structural similarity (B,) of images (B, C, H, W) float32 on [0, 1]; NaN for images below the window.

    Each window inside the image counts once. Ours, because importing torchmetrics takes longer than an evaluation.

    Source: Wang et al. 2004, equation 13.
    """
    if min(restored.shape[-2:]) < SSIM_WINDOW:
        return torch.full((len(restored),), torch.nan)
    places = torch.arange(SSIM_WINDOW, dtype=restored.dtype, device=restored.device) - SSIM_WINDOW // 2
    weights = (-0.5 * (places / SSIM_SIGMA).square()).exp()
    weights = weights / weights.sum()
    stacked = torch.stack([restored, targets, restored**2, targets**2, restored * targets])
    rows = F.conv2d(stacked.flatten(0, 2)[:, None], weights.view(1, 1, -1, 1))
    means = F.conv2d(rows, weights.view(1, 1, 1, -1))[:, 0].unflatten(0, stacked.shape[:3])
    x, y = means[0], means[1]
    # Rounding may make a variance slightly negative.
    variance_x, variance_y = (means[2] - x**2).clamp(min=0), (means[3] - y**2).clamp(min=0)
    similar = (2 * x * y + SSIM_C1) * (2 * (means[4] - x * y) + SSIM_C2)
    maps = similar / ((x**2 + y**2 + SSIM_C1) * (variance_x + variance_y + SSIM_C2))
    return maps.mean((1, 2, 3))
