"""Evidence from rounding: the pattern that contracting whole levels and rounding them again leaves.

If whole levels are scaled by k < 1 and rounded, some output levels collect two input levels and their neighbors one,
in a pattern specific to k. If a picture has enough different levels, this identifies k far better than its contents.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

NUDGE_LEVELS = 1e-4  # float32 decides how a tie rounds, so each way counts half
PEAK_LEVELS = 5  # differences this close to gray are ignored: the picture's own peak is as narrow as the pattern
SMOOTHING_LEVELS = 2.0  # width over which pictures' own histograms are smooth
OUTLIER_SHARE = 0.02  # pixels that do not follow the pattern: edited, or rounded differently


def color_differences(x: Tensor, reach: int) -> Tensor:
    """Return the joint histogram of the second and third channel minus the first.

    Shapes: x (3, N) whole levels; returns (2 reach + 1, 2 reach + 1) float64. Differences beyond `reach` are ignored.
    """
    differences = (x[1:] - x[:1]).round()
    differences = differences[:, (differences.abs() <= reach).all(0)].long() + reach
    side = 2 * reach + 1
    return torch.bincount(differences[0] * side + differences[1], minlength=side**2).double().view(side, side)


@functools.lru_cache(maxsize=160)  # all that one estimate compares, for the next picture; up to 130 KB each
def drained_differences(kept: float, reach: int, is_jpeg: bool) -> Tensor:
    """Return the histogram of `color_differences` over all colors, once the share `kept` of the color is left.

    Counts every whole color, or with `is_jpeg` only those that JPEG files decode to (whole luminance and chrominance).

    Source: ITU-T T.871, section 7.
    """
    if is_jpeg:
        blue, red = _whole_pairs(128)
        colors = torch.stack([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue]).round_()
    else:
        green, blue = _whole_pairs(min(int((reach + 2) / kept), 255))
        colors = torch.stack([torch.zeros_like(green), green, blue])
    gray = colors.mean(0, keepdim=True)
    drained = gray + kept * (colors - gray)
    nudges = torch.tensor([[1.0, -1, 1], [-1, 1, -1]], dtype=torch.float64)[:, :, None] * NUDGE_LEVELS
    return sum((color_differences((drained + nudge).round(), reach) for nudge in nudges), torch.zeros(())) / 2


def log_likelihood(histogram: Tensor, pattern: Tensor) -> float:
    """Return the log likelihood of a histogram, given its coarse structure and the fine structure of `pattern`.

    Shapes: both (n, n) float64 as from `color_differences`; entries next to gray are ignored.
    """
    pattern = pattern + OUTLIER_SHARE * _smoothed(pattern) + 1e-9
    expected = pattern * _smoothed(histogram) / _smoothed(pattern)
    middle = slice(len(histogram) // 2 - PEAK_LEVELS, len(histogram) // 2 + PEAK_LEVELS + 1)
    expected, histogram = expected.clone(), histogram.clone()
    expected[middle, middle] = histogram[middle, middle] = 0
    expected /= expected.sum().clamp(min=1e-9)
    return float((histogram * (expected + 1e-9).log()).sum())


def _whole_pairs(reach: int) -> tuple[Tensor, Tensor]:
    whole = torch.arange(-reach, reach + 1, dtype=torch.float64)
    rows, columns = torch.meshgrid(whole, whole, indexing="ij")
    return rows.reshape(-1), columns.reshape(-1)


def _smoothed(table: Tensor) -> Tensor:
    half = round(3 * SMOOTHING_LEVELS)
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / SMOOTHING_LEVELS).square())
    weights = weights / weights.sum()
    along = F.conv2d(table[None, None], weights.view(1, 1, -1, 1), padding=(half, 0))
    return F.conv2d(along, weights.view(1, 1, 1, -1), padding=(0, half))[0, 0]
