"""Schedules over t: blur widths and noise levels, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def blur_widths(schedule: str, steps: int, std: float, growth: float) -> Tensor:
    """Return the standard deviation in pixels of each blur step i = 0..steps-1: (steps,) float64.

    constant: `std`; linear: `std + growth * i`; exponential: `std * exp(growth * i)`.

    Source: Bansal et al. 2022, appendix A.1.
    """
    i = torch.arange(steps, dtype=torch.float64)
    if schedule == "constant":
        return torch.full_like(i, std)
    if schedule == "linear":
        return std + growth * i
    return std * torch.exp(growth * i)


def cosine_alphas_cumprod(steps: int) -> Tensor:
    """Return abar_t, the share of x0's energy left after t = 0..steps steps: (steps + 1,) float64.

    Strictly decreasing from abar_0 = 1. abar follows cos^2(((u + .008) / 1.008) pi / 2) at `steps + 1` points u from
    0 to 1. The betas are clipped to .999 as in the authors' code, so the last step keeps a trace of x0.

    Source: Nichol and Dhariwal 2021, equation 17; Bansal et al. 2022, section 5.1.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    shape = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - shape[1:] / shape[:-1]).clamp(max=0.999)
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])
