"""What rounding to 8 bits leaves of a contraction: how many whole numbers fall on each whole number.

A picture of whole levels x0 that is drawn together by k < 1 and rounded again comes out with some levels
that two of x0's fall on beside levels that one falls on, in a pattern that belongs to k alone. Where levels
are spread widely enough to show it, the pattern tells k far better than the picture's looks do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NUDGE = 1e-4  # levels: which way a tie falls is left to float32, so both ways count half
PEAK = 5  # differences this near to gray are left out: there the pictures' own peak is as narrow as the pattern
SMOOTHING = 2.0  # differences, the width over which pictures' own histograms are taken to be smooth
STRAY = 0.02  # of the pixels fall elsewhere: edited, or not rounded as they should be


def color_differences(x: Tensor, reach: int) -> Tensor:
    """Return how often the second and third channel differ from the first by each pair of whole levels.

    x: (3, N) whole levels; returns (2 reach + 1, 2 reach + 1) float64, what lies beyond left out.
    """
    apart = (x[1:] - x[:1]).round()
    apart = apart[:, (apart.abs() <= reach).all(0)].long() + reach
    side = 2 * reach + 1
    return torch.bincount(apart[0] * side + apart[1], minlength=side**2).double().view(side, side)


def drained_differences(kept: float, reach: int, is_jpeg: bool) -> Tensor:
    """Return how many colors of x0 fall on each pair of differences once `kept` of the color is left.

    Of x0 every whole color is counted, or with `is_jpeg` those that a JPEG file decodes to (ITU-T T.871,
    section 7, whole luminance and chrominance). Shapes and ranges as `color_differences` gives them.
    """
    if is_jpeg:
        blue, red = _grid(128)
        colors = torch.stack([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue]).round_()
    else:
        green, blue = _grid(min(int((reach + 2) / kept), 255))
        colors = torch.stack([torch.zeros_like(green), green, blue])
    gray = colors.mean(0, keepdim=True)
    drained = gray + kept * (colors - gray)
    ways = torch.tensor([[1.0, -1, 1], [-1, 1, -1]], dtype=torch.float64)[:, :, None] * NUDGE
    return sum((color_differences((drained + way).round(), reach) for way in ways), torch.zeros(())) / 2


def agreement(seen: Tensor, pattern: Tensor) -> float:
    """Return the log likelihood of a histogram whose fine structure is `pattern`, its coarse one its own.

    seen, pattern: (n, n) as `color_differences` gives them; what lies next to gray is left out.
    """
    pattern = pattern + STRAY * _smoothed(pattern) + 1e-9
    expected = pattern * _smoothed(seen) / _smoothed(pattern)
    middle = slice(len(seen) // 2 - PEAK, len(seen) // 2 + PEAK + 1)
    expected, seen = expected.clone(), seen.clone()
    expected[middle, middle] = seen[middle, middle] = 0
    expected /= expected.sum().clamp(min=1e-9)
    return float((seen * (expected + 1e-9).log()).sum())


def _grid(reach: int) -> tuple[Tensor, Tensor]:
    whole = torch.arange(-reach, reach + 1, dtype=torch.float64)
    rows, columns = torch.meshgrid(whole, whole, indexing="ij")
    return rows.reshape(-1), columns.reshape(-1)


def _smoothed(table: Tensor) -> Tensor:
    half = round(3 * SMOOTHING)
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / SMOOTHING).square())
    weights = weights / weights.sum()
    along = F.conv2d(table[None, None], weights.view(1, 1, -1, 1), padding=(half, 0))
    return F.conv2d(along, weights.view(1, 1, 1, -1), padding=(0, half))[0, 0]
