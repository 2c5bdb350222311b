"""How close restored images come to the originals, by the paper's definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.experiment import Experiment
from colddiff_core.sampling import final

SSIM_WINDOW = 11
PSNR_LIMIT = 100.0  # dB: an exact copy has no finite PSNR


@dataclasses.dataclass
class Fidelity:
    """RMSE, PSNR and SSIM of a stream of image pairs; outputs are clamped to the pixel range first.

    rmse: root of the mean squared error over all pixels of all images, on [0, 1]; psnr: mean over
    images, in dB; ssim: mean over images, 11 x 11 Gaussian window of sigma 1.5, no padding, or None
    for images smaller than the window.

    Source: Bansal et al. 2022, Table 1; Wang et al. 2004 for SSIM.
    """

    count: int = 0
    pixels: int = 0
    squared: float = 0.0
    psnr_sum: float = 0.0
    ssim_sum: float = 0.0
    has_ssim: bool = True

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Add a batch: both (B, C, H, W) float32 in [-1, 1]."""
        from torchmetrics.functional.image import (  # noqa: PLC0415 - a second that only this needs
            peak_signal_noise_ratio,
            structural_similarity_index_measure,
        )

        found, wanted = ((x.float().clamp(-1, 1) + 1) / 2 for x in (images, originals))
        self.count += len(found)
        self.pixels += found.numel()
        self.squared += float((found - wanted).double().square().sum())
        psnr = peak_signal_noise_ratio(found, wanted, data_range=1.0, reduction="none", dim=(1, 2, 3))
        self.psnr_sum += float(psnr.clamp(max=PSNR_LIMIT).sum())
        if min(found.shape[-2:]) < SSIM_WINDOW:
            self.has_ssim = False
            return
        found_ssim = structural_similarity_index_measure(
            found, wanted, sigma=1.5, kernel_size=SSIM_WINDOW, data_range=1.0, reduction="none", return_full_image=True
        )
        # torchmetrics mirrors the border; the paper's figures take only windows that lie within the picture.
        inner = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))
        self.ssim_sum += float(found_ssim[1][..., inner, inner].mean((1, 2, 3)).sum())

    def result(self) -> dict[str, float | None]:
        """Return the figures so far."""
        return {
            "rmse": (self.squared / self.pixels) ** 0.5,
            "psnr": self.psnr_sum / self.count,
            "ssim": self.ssim_sum / self.count if self.has_ssim else None,
        }


COLUMNS = ("degraded", "direct", "sampled", "naive")


def evaluate(
    experiment: Experiment,
    images: ImageSet,
    *,
    t: int,
    count: int,
    seed: int = 0,
    stride: int = 1,
    batch_size: int = 100,
    columns: Sequence[str] = COLUMNS,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, dict[str, float | None]]:
    """Return {column: {metric: value}} over the first `count` images restored from severity t.

    "sampled" is the configured sampler. `progress` is told of every batch-and-column's images.
    """
    fidelity = {column: Fidelity() for column in columns}
    for first, x0 in _batches(images, count, batch_size, experiment.device):
        numbers = range(first, first + len(x0))
        x_t, frozen = experiment.degrade(x0, t, seeds.image_generators(seed, numbers))
        for column in columns:
            restored = x_t
            if column != "degraded":
                sampler = experiment.config.sample.sampler if column == "sampled" else column
                restored = final(
                    experiment.restore(x_t, t, frozen, sampler=sampler, stride=stride, seed=seed, numbers=numbers)
                )
            fidelity[column].update(restored, x0)
            progress(len(x0))
    return {column: meter.result() for column, meter in fidelity.items()}


def _batches(images: ImageSet, count: int, size: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, count, size):
        yield first, images.images(slice(first, min(first + size, count))).to(device)
