"""The degradations as the paper writes them down, step by step and slowly: what the fast forms must equal."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.degradations import Degradation, Frozen


def blur(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """t convolutions in turn, each with its own two-dimensional Gaussian."""
    x, channels, half = x0.double(), x0.shape[1], op.kernel_size // 2
    for i in range(t):
        std = {
            "constant": op.std,
            "linear": op.std + op.growth * i,
            "exponential": op.std * math.exp(op.growth * i),
        }[op.schedule]
        y, z = torch.meshgrid(torch.arange(-half, half + 1), torch.arange(-half, half + 1), indexing="ij")
        kernel = torch.exp(-(y**2 + z**2).double() / (2 * std**2))
        kernel = (kernel / kernel.sum()).expand(channels, 1, -1, -1)
        x = F.conv2d(F.pad(x, [half] * 4, mode=op.padding), kernel, groups=channels)
    if op.final_mean and t == op.steps:
        x = x.mean((2, 3), keepdim=True).expand_as(x)
    return x.float()


def noise(op: Degradation, x0: Tensor, t: int, frozen: Frozen) -> Tensor:
    """The product of alphas, one factor a step, over the cosine schedule's betas."""

    def shape(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = 1.0
    for i in range(t):
        kept *= 1 - min(1 - shape((i + 1) / op.steps) / shape(i / op.steps), 0.999)
    return math.sqrt(kept) * x0 + math.sqrt(1 - kept) * frozen.z


FORMS = {"blur": blur, "noise": noise}
