"""How much an operator leaves of a picture, severity by severity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.evaluation.fidelity import Fidelity

AMPLITUDE = 0.5  # of the probes: well inside the pixel range, so that nothing clips


@dataclasses.dataclass(frozen=True)
class Remains:
    """What is left at severity t.

    rmse, ssim: of x_t against x0, as `Fidelity` defines them; gain_low, gain_mid: what a wave of one
    cycle across the picture, and of a quarter of a cycle a pixel, keeps of its amplitude; kept: the
    share of pixels that follow the picture by more than half; color: the share of the color's spread,
    None for gray pictures.
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
    """Return what `op` leaves of pictures x0 (B, C, H, W) and of waves of their size, for each severity.

    `freeze` draws the operator's randomness for a batch; the same is used for pictures and probes.
    """
    frozen = freeze(x0)
    height, width = x0.shape[-2:]
    waves = (_wave(x0, 1, 1), _wave(x0, max(height // 4, 1), max(width // 4, 1)))
    nothing, constant = torch.zeros_like(x0), torch.full_like(x0, AMPLITUDE)
    made = []
    for t in severities:
        x_t, dark = op(x0, t, frozen), op(nothing, t, frozen)
        fidelity = Fidelity()
        fidelity.update(x_t, x0)
        found = fidelity.result()
        gain_low, gain_mid = (_share(op(wave, t, frozen) - dark, wave) for wave in waves)
        follows = (op(constant, t, frozen) - dark).abs() > AMPLITUDE / 2
        assert found["rmse"] is not None
        made.append(
            Remains(t, found["rmse"], found["ssim"], gain_low, gain_mid, follows.float().mean().item(), _color(x_t, x0))
        )
    return made


def _wave(like: Tensor, rows: int, columns: int) -> Tensor:
    """Return waves of so many cycles down and across, half the amplitude each, shaped like the pictures."""
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
