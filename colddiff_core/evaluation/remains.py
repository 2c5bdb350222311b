"""How much of an image a degradation leaves, severity by severity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.evaluation.fidelity import Fidelity

AMPLITUDE = 0.5  # of the probes: inside the pixel range, so that nothing clips


@dataclasses.dataclass(frozen=True)
class Remains:
    """What is left of an image at severity t.

    Attributes:
        t: The severity.
        rmse: Of x_t against x0, as `Fidelity` defines it.
        ssim: Of x_t against x0, as `Fidelity` defines it.
        gain_low: Amplitude kept by a wave of one cycle per image.
        gain_mid: Amplitude kept by a wave of a quarter cycle per pixel.
        kept: Fraction of pixels that still follow the image by more than half.
        color: Fraction of the color spread that is kept; None for gray images.
    """

    t: int
    rmse: float
    ssim: float | None
    gain_low: float
    gain_mid: float
    kept: float
    color: float | None


def describe(
    op: Degradation, x0: Tensor, freeze: Callable[[Tensor], Frozen], severities: Sequence[int]
) -> list[Remains]:
    """Measure what `op` leaves of images x0 (B, C, H, W) float32 in [-1, 1] and of test waves, at each severity.

    `freeze` draws the operator's randomness for a batch; images and waves share it.
    """
    frozen = freeze(x0)
    height, width = x0.shape[-2:]
    waves = (_wave(x0, 1, 1), _wave(x0, max(height // 4, 1), max(width // 4, 1)))
    zeros, constant = torch.zeros_like(x0), torch.full_like(x0, AMPLITUDE)
    results = []
    for t in severities:
        x_t, offset = op(x0, t, frozen), op(zeros, t, frozen)
        fidelity = Fidelity()
        fidelity.update(x_t, x0)
        metrics = fidelity.result()
        gain_low, gain_mid = (_share(op(wave, t, frozen) - offset, wave) for wave in waves)
        kept = ((op(constant, t, frozen) - offset).abs() > AMPLITUDE / 2).float().mean().item()
        assert metrics["rmse"] is not None
        results.append(Remains(t, metrics["rmse"], metrics["ssim"], gain_low, gain_mid, kept, _color(x_t, x0)))
    return results


def _wave(like: Tensor, rows: int, columns: int) -> Tensor:
    """Return the sum of a vertical and a horizontal wave, with that many cycles, shaped like the images."""
    height, width = like.shape[-2:]
    y = torch.cos(2 * math.pi * rows * torch.arange(height, device=like.device) / height)
    x = torch.cos(2 * math.pi * columns * torch.arange(width, device=like.device) / width)
    return (AMPLITUDE / 2 * (y[:, None] + x[None, :])).expand_as(like).contiguous()


def _share(response: Tensor, wave: Tensor) -> float:
    energy = wave.double().square().sum()
    return float((response.double() * wave.double()).sum() / energy) if energy > 0 else 1.0


def _color(x_t: Tensor, x0: Tensor) -> float | None:
    if x0.shape[1] < 2:
        return None
    before, after = ((x - x.mean(1, keepdim=True)).square().mean().sqrt() for x in (x0, x_t))
    return float(after / before) if before > 0 else None
