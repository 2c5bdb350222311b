"""Run a part of a network with its weights in a lower precision, all cast in one operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def suits(device: torch.device) -> bool:
    """Return whether the body of a network uses `call` on a device instead of autocast.

    Only a GPU gains: there autocast runs norms in float32. A CPU's norms accept bfloat16 inputs with float32 weights.
    """
    return device.type == "cuda"


def call(layers: nn.Module, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
    """Call `layers` on inputs of any shape in `dtype` with all weights cast to `dtype`; return the output in `dtype`.

    The weights keep their dtype and get gradients in it. Autocast casts each weight and each gradient separately: on a
    GPU, two small kernel launches per weight, as many as all convolutions and matrix products together.
    """
    weights = {name: weight for name, weight in layers.named_parameters() if weight.dtype != dtype}
    if not weights:
        return layers(*inputs)
    low = _Cast.apply(dtype, *weights.values())
    # There are no tied weights, and searching for them would be a third of this function's overhead.
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
