"""Pixels as bytes and as floats, and rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LUMA = torch.tensor((0.299, 0.587, 0.114))  # weights of red, green and blue (ITU-R BT.601)


def resize_and_crop(x: Tensor, height: int, width: int) -> Tensor:
    """Return an image scaled to cover height x width and cropped to its center.

    Shapes: x (C, H, W) float32 in [-1, 1]; the result (C, height, width), the same range.
    """
    scale = max(height / x.shape[-2], width / x.shape[-1])
    size = [max(side, round(n * scale)) for side, n in zip((height, width), x.shape[-2:], strict=True)]
    scaled = F.interpolate(x.unsqueeze(0), size=size, mode="bicubic", antialias=True)[0].clamp_(-1, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, top : top + height, left : left + width]


def to_floats(pixels: Tensor) -> Tensor:
    """Return uint8 pixels of any shape as float32 in [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1)  # in place: a photograph is large


def to_bytes(x: Tensor) -> Tensor:
    """Return pixels in [-1, 1], any shape, rounded to uint8; values outside the range are clamped."""
    return (x.detach() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def quantize(x: Tensor, bits: int) -> Tensor:
    """Round pixels in [-1, 1], any shape, to 2^bits levels; `bits` = 0 returns x.

    Source: Bansal et al. 2022, appendix A.2 (leakage through floating point).
    """
    if bits == 0:
        return x
    levels = 2**bits - 1
    return ((x + 1) * (levels / 2)).round().clamp(0, levels) / (levels / 2) - 1


def dequantize(x: Tensor, guess: Tensor, bits: int) -> Tensor:
    """Return the values nearest to `guess` that `quantize` would round to x; `bits` = 0 returns x.

    Shapes: x and guess alike, in [-1, 1]; x has 2^bits levels.
    """
    if bits == 0:
        return x
    half = 1 / (2**bits - 1)
    return torch.minimum(torch.maximum(guess, x - half), x + half)


def to_pillow(x: Tensor) -> Image.Image:
    """Return an image (C, H, W) in [-1, 1], C = 1 or 3, as an 8-bit Pillow image."""
    pixels = to_bytes(x).cpu().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
