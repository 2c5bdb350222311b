"""Find gray holes: flat areas of middle gray, and single gray pixels that their surroundings do not explain.

Photographs have gray pixels too, but these look like the pixels next to them. A hole's gray has nothing to do with what
was there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.degradations.estimation.posterior import is_gray
from colddiff_core.images import to_bytes

GRAY_LEVELS = (127, 128)  # the 8-bit levels that programs round the middle to
THIN_REACH_PIXELS = 64  # gray that touches a hole belongs to it up to this far away
NEAR_PIXELS = 5  # side of the square whose mean predicts a pixel
WIDE_PIXELS = 9  # side of the square over which such predictions' mean error is taken
MIN_ERROR_LEVELS = 0.7  # mean error of a prediction, at least: rounding, and what few pixels cannot tell
MOST_PER_PIXEL = 7.0  # log evidence of one pixel, per channel: photographs have sharp edges
SURE = 3.0  # log evidence from which gray that stands out is part of a hole
STRIP_PIXELS = 2**20  # searched at a time


def find_gray(x_t: Tensor) -> tuple[Tensor, float]:
    """Return which pixels of a picture look like holes, (1, H, W) bool, and the log evidence that there are any.

    They are pixels with level 127, or 128, in all channels, in areas that contain a 3 x 3 square or a pixel that stands
    out. The evidence counts only what stands out, because an area that fades into its surroundings may be natural.

    Shapes: x_t (1, C, H, W) float32 in [-1, 1].
    """
    pixels = to_bytes(x_t)
    chance = math.log(pixels.shape[-2] * pixels.shape[-1])  # the most conspicuous of so many pixels
    has_color = not is_gray(x_t)
    hidden = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
    best = 0.0
    for gray in GRAY_LEVELS:
        flat = (pixels == gray).all(1)
        if not flat.any():
            continue
        conspicuous = _conspicuous(pixels, flat, gray, has_color)
        best = max(best, float(conspicuous.max()))
        hidden |= _grown(_squares(flat) | (conspicuous - chance > SURE), flat)
    return hidden, best - chance


def _squares(flat: Tensor) -> Tensor:
    """Return the centers of 3 x 3 squares within `flat`: (B, H, W) bool."""
    return F.max_pool2d(F.pad((~flat).float(), [1] * 4, value=1.0), 3, stride=1) == 0


def _grown(kept: Tensor, flat: Tensor) -> Tensor:
    """Return the pixels of `flat` connected to those of `kept`, up to THIN_REACH_PIXELS + 1 away: (B, H, W) bool."""
    bounds, grown = flat.float(), kept.float()
    if not kept.any():
        return kept
    for _ in range(THIN_REACH_PIXELS + 1):
        before, grown = grown, F.max_pool2d(grown, 3, stride=1, padding=1) * bounds
        if torch.equal(before, grown):
            break
    return grown > 0


def _conspicuous(pixels: Tensor, flat: Tensor, gray: int, has_color: bool) -> Tensor:
    """Return how improbable the gray around each pixel of `flat` is for a photograph: (1, H, W) float32, in nats.

    It is summed over 3 x 3 squares, and 0 outside `flat`. The errors of predicting a pixel from its neighbors have
    about a Laplace distribution, as wide as they are nearby. They are taken for the mean of the channels and the
    differences between channels, because colors change less than brightness does. A strip of the picture at a time, to
    save memory.
    """
    height, width = flat.shape[-2:]
    result = torch.zeros(flat.shape)
    margin = NEAR_PIXELS // 2 + WIDE_PIXELS // 2 + 1
    rows = max(STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - margin, 0), min(bottom + margin, height)
        inside = flat[:, first:last]
        if not inside.any():
            continue
        values = pixels[:, :, first:last].float()
        parts = (
            [values.mean(1), values[:, 0] - values[:, 1], values[:, 2] - values[:, 1]] if has_color else [values[:, 0]]
        )
        visible = (~inside).float()
        near, wide = _pooled(visible, NEAR_PIXELS), _pooled(visible, WIDE_PIXELS)
        total = torch.zeros_like(visible)
        for part, at_gray in zip(parts, (gray, 0, 0), strict=False):
            predicted = _pooled(part * visible, NEAR_PIXELS) / near.clamp(min=1e-6)
            errors = (part - predicted).abs_() * visible
            expected = (_pooled(errors, WIDE_PIXELS) / wide.clamp(min=1e-6)).clamp_(min=MIN_ERROR_LEVELS)
            total += ((predicted - at_gray).abs_() / expected).sub_(1).clamp_(max=MOST_PER_PIXEL)
            total += (expected / MIN_ERROR_LEVELS).log_()
        total *= inside & (near > 1e-6)
        result[:, top:bottom] = (9 * _pooled(total, 3) * inside)[:, top - first : bottom - first]
    return result


def _pooled(x: Tensor, side: int) -> Tensor:
    """Return the mean of (B, H, W) over squares of an odd side, with zeros beyond the border."""
    return F.avg_pool2d(x, side, stride=1, padding=side // 2)
