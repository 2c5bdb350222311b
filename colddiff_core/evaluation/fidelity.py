"""How close images come to originals: RMSE, PSNR and SSIM by the paper's definitions, and LPIPS."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from colddiff_core.errors import UsageError
from colddiff_core.evaluation import bootstrap
from colddiff_core.evaluation.bootstrap import Interval

SSIM_WINDOW = 11
PSNR_LIMIT = 100.0  # dB: an exact copy has no finite PSNR


class PerceptualDistance(Protocol):
    """LPIPS: takes images and originals (B, C, H, W) float32 in [-1, 1] to (B,)."""

    def __call__(self, images: Tensor, originals: Tensor) -> Tensor: ...

    def metadata(self) -> dict[str, Any]:
        """Return what a record must say of it."""
        ...


class Fidelity:
    """The figures of a stream of image pairs; outputs are clamped to the pixel range first, as they would be saved.

    rmse: root of the mean squared error over all pixels of all images, on [0, 1]; psnr: mean over images, in dB;
    ssim: mean over images, 11 x 11 Gaussian window of sigma 1.5, no padding, None for images smaller than the window;
    lpips: mean over images, where `perceptual` measures it. What is kept is four numbers an image.

    Source: Bansal et al. 2022, Table 1; Wang et al. 2004 for SSIM; Zhang et al. 2018 for LPIPS.
    """

    def __init__(self, perceptual: PerceptualDistance | None = None) -> None:
        self.perceptual = perceptual
        self.rows: list[Tensor] = []

    @property
    def names(self) -> tuple[str, ...]:
        return ("rmse", "psnr", "ssim", *(["lpips"] if self.perceptual else []))

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Add a batch: both (B, C, H, W) float32 in [-1, 1]. Raises UsageError where their shapes differ."""
        self.add(self.look(images, originals))

    def add(self, rows: Tensor) -> None:
        """Add what `look` told of a batch."""
        self.rows.append(rows)

    def look(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return what there is to know of each image, (B, 3 or 4) float64 on the CPU; takes and raises as `update`."""
        from torchmetrics.functional.image import peak_signal_noise_ratio  # noqa: PLC0415 - a second that only this needs

        if images.shape != originals.shape:
            shapes = " and ".join("x".join(map(str, x.shape)) for x in (images, originals))
            raise UsageError(f"Images and originals differ in shape: {shapes}.", "Bring them to one size and number.")
        found, wanted = ((x.detach().float().clamp(-1, 1) + 1) / 2 for x in (images, originals))
        squared = (found - wanted).double().square().mean((1, 2, 3))
        psnr = peak_signal_noise_ratio(found, wanted, data_range=1.0, reduction="none", dim=(1, 2, 3))
        columns = [squared, psnr.clamp(max=PSNR_LIMIT), _ssim(found, wanted)]
        if self.perceptual:
            columns.append(self.perceptual(images, originals))
        return torch.stack([column.double().cpu() for column in columns], dim=1)

    def result(self) -> dict[str, float | None]:
        """Return the figures so far."""
        return dict(zip(self.names, map(_known, _finish(torch.cat(self.rows).mean(0)).tolist()), strict=True))

    def intervals(self) -> dict[str, Interval | None]:
        """Return the 95 % bootstrap interval of each figure so far, None where there is none."""
        found = bootstrap.intervals(torch.cat(self.rows), _finish)
        return {
            name: None if ends is None or _known(ends[0]) is None else ends
            for name, ends in zip(self.names, found, strict=True)
        }


def _finish(means: Tensor) -> Tensor:
    """Turn means of (squared error, ...) into figures: the root is taken over all pixels of all images."""
    return torch.cat([means[..., :1].sqrt(), means[..., 1:]], dim=-1)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value  # not measured


def _ssim(found: Tensor, wanted: Tensor) -> Tensor:
    """Return (B,) the SSIM of images on [0, 1]; not a number for images smaller than the window."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: PLC0415

    if min(found.shape[-2:]) < SSIM_WINDOW:
        return torch.full((len(found),), torch.nan)
    _, maps = structural_similarity_index_measure(
        found, wanted, sigma=1.5, kernel_size=SSIM_WINDOW, data_range=1.0, reduction="none", return_full_image=True
    )
    # torchmetrics mirrors the border; the paper's figures take only windows that lie within the picture.
    inner = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))
    return maps[..., inner, inner].mean((1, 2, 3))
