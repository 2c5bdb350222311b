"""Pixels: bytes and floats, rounding, JPEG in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LUMA = torch.tensor((0.299, 0.587, 0.114))  # of red, green and blue (ITU-R BT.601)


def covering(x: Tensor, height: int, width: int) -> Tensor:
    """Return a picture (C, H, W) scaled until it covers height x width, and the center of that size."""
    scale = max(height / x.shape[-2], width / x.shape[-1])
    size = [max(least, round(n * scale)) for least, n in zip((height, width), x.shape[-2:], strict=True)]
    made = F.interpolate(x.unsqueeze(0), size=size, mode="bicubic", antialias=True)[0].clamp_(-1, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return made[:, top : top + height, left : left + width]


def to_floats(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1)  # in place: a photograph is large


def to_bytes(x: Tensor) -> Tensor:
    """Return pictures in [-1, 1] as uint8, rounded; what lies outside is clamped."""
    return (x.detach() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def quantize(x: Tensor, bits: int) -> Tensor:
    """Round pictures in [-1, 1] to 2^bits levels; bits = 0 leaves them as they are.

    Source: Bansal et al. 2022, appendix A.2 (leakage through floating point).
    """
    if bits == 0:
        return x
    levels = 2**bits - 1
    return ((x + 1) * (levels / 2)).round().clamp(0, levels) / (levels / 2) - 1


def compressed(x: Tensor, qualities: Sequence[int]) -> Tensor:
    """Return pictures (B, C, H, W) in [-1, 1], C = 1 or 3, as JPEG files of a quality of 1..100 each give them back."""
    made = []
    for picture, quality in zip(x, qualities, strict=True):
        file = io.BytesIO()
        to_pillow(picture).save(file, "JPEG", quality=quality)
        pixels = np.array(Image.open(file, formats=("JPEG",)))
        made.append(torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)))
    return to_floats(torch.stack(made)).to(x.device)


def dequantize(x: Tensor, guess: Tensor, bits: int) -> Tensor:
    """Return the values nearest to `guess` that round to x, pictures of 2^bits levels in [-1, 1]; bits = 0 gives x."""
    if bits == 0:
        return x
    half = 1 / (2**bits - 1)
    return torch.minimum(torch.maximum(guess, x - half), x + half)


def to_pillow(x: Tensor) -> Image.Image:
    """Return one picture (C, H, W), C = 1 or 3, in [-1, 1] as a Pillow image."""
    pixels = to_bytes(x).cpu().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
