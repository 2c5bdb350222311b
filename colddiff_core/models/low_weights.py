"""Run a part of a network with its weights in a lower precision, cast in one go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def suits(device: torch.device) -> bool:
    """Return whether the body of a network runs this way on a device, instead of under autocast.

    Only a GPU gains: its norms would be float32 under autocast. On a CPU they take bfloat16 with float32 weights.
    """
    return device.type == "cuda"


def call(layers: nn.Module, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
    """Call `layers` on inputs of any shape in `dtype`, with all weights in `dtype`; gradients reach the weights.

    Autocast casts weight by weight, and every gradient back: on a GPU two small launches per weight, as many as all
    convolutions and products together.
    """
    weights = {name: weight for name, weight in layers.named_parameters() if weight.dtype != dtype}
    if not weights:
        return layers(*inputs)
    low = _Cast.apply(dtype, *weights.values())
    # No weights are tied here, and on every call the search for some would take a third of the overhead.
    return torch.func.functional_call(layers, dict(zip(weights, low, strict=True)), inputs, tie_weights=False)


class _Cast(torch.autograd.Function):
    """Cast tensors of the same dtype together, and their gradients back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = weights[0].dtype
        return _cast(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_cast(gradients, ctx.dtype)


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(cast, tensors)
    return tuple(cast)
