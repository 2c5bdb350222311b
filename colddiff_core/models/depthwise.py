"""Depthwise convolution whose weights' gradient is a few matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST = 64  # pixels of a row beyond which the products do more than they save


def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return each channel of x (B, C, H, W) convolved by its own kernel, zeros beyond the border.

    weight: (C, 1, k, k), k odd; bias: (C,). Equal to `conv2d` with as many groups as channels, gradients included, up
    to rounding. The library's kernel for the weights' gradient in bfloat16 on a CPU takes 1.6 times as long at 32
    pixels a side, and ten times at 4, where a U-Net has most of its channels (docs/performance.md).
    """
    if x.device.type == "cpu" and x.shape[-1] <= WIDEST:
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if low == torch.bfloat16:
            made: Tensor = _Depthwise.apply(x.to(low), weight.to(low), bias.to(low))
            return made
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g,) = gradients
        x, weight = ctx.saved_tensors
        half = weight.shape[-1] // 2
        to_x = F.conv2d(g, weight.flip(-2, -1), padding=half, groups=len(weight))
        return to_x, weight_gradient(x, g, weight.shape[-1]).to(weight.dtype), g.sum((0, 2, 3))


def weight_gradient(x: Tensor, g: Tensor, size: int) -> Tensor:
    """Return sum over images and places p of g[p] x[p + (i, j)], for the offsets of a kernel: (C, 1, size, size).

    For each vertical offset i, rows of g against rows of x give every pair of columns in one product (W x BH times
    BH x W); the pairs that are j apart are a diagonal of it. x, g: (B, C, H, W); returns float32.
    """
    batch, channels, height, width = x.shape
    half = size // 2
    # Rows outermost after the channels, so that a vertical offset is a slice that needs no copy.
    rows = F.pad(x.permute(1, 2, 0, 3), (0, 0, 0, 0, half, half)).contiguous()
    across = g.permute(1, 2, 0, 3).reshape(channels, height * batch, width).mT
    wide = width + 2 * half
    found = []
    for offset in range(size):
        pairs = torch.bmm(across, rows[:, offset : offset + height].reshape(channels, height * batch, width))
        pairs = F.pad(pairs, (half, half)).contiguous()
        diagonals = pairs.as_strided((channels, width, size), (width * wide, wide + 1, 1))
        found.append(diagonals.sum(1, dtype=torch.float32))
    return torch.stack(found, 1).unsqueeze(1)
