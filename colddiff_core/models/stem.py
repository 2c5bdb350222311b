"""The U-Net's first layers, which see the picture in float32, and faster ways to compute them on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colddiff_core.models.blocks import ConvNextBlock


class ConvStem(nn.Module):
    """A plain 3x3 convolution, because a block's norm would erase the brightness of the picture.

    Args:
        channels_in: of the input.
        channels_out: of the output.
        width_t: not used.
        precision: as for `convolve`.
    """

    reach = 1

    def __init__(self, channels_in: int, channels_out: int, width_t: int, precision: str = "float32") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.precision = precision

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the features (B, channels_out, H, W) float32; the embedding is not used."""
        return convolve(self.conv, x, self.precision)


class ConvNextStem(ConvNextBlock):
    """A ConvNeXt block; `precision` is that of its convolutions, as for `convolve`.

    With "split" only the last is split, which does most of the work and whose result the body rounds anyway.
    """

    def __init__(self, channels_in: int, channels_out: int, width_t: int, precision: str = "float32") -> None:
        super().__init__(channels_in, channels_out, width_t)
        self.precision = precision

    def _convolve(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.precision == "float32" or not isinstance(layer, nn.Conv2d):
            return layer(x)
        is_exact = self.precision == "split" and layer is not self.project
        return convolve(layer, x, "float32" if is_exact else self.precision)


def convolve(layer: nn.Conv2d, x: Tensor, precision: str) -> Tensor:
    """Return `layer(x)` for a convolution with zero padding, in a precision of `model.stem`.

    Shapes: x (B, C_in, H, W) float32; the result (B, C_out, H, W) float32. The layer has a bias and an odd kernel.

    "float32" is exact. "tf32" lets a GPU round inputs and weights to ten bits of mantissa, for this convolution and its
    gradients; on other hardware it equals "float32". "split" computes in bfloat16 with x and the weights as sums of a
    high and a low part, 16 bits in all. It accumulates in float32 and rounds its result to bfloat16, as the body would
    do next.

    Source: for "split", Henry et al. 2019, "Leveraging the bfloat16 artificial intelligence datatype for
    higher-precision computations".
    """
    if precision == "tf32":
        return _convolve_tf32(x, layer.weight, layer.bias, layer.padding)
    if precision == "split":
        return _split(layer, x)
    return layer(x)


def _split(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.bias is not None
    assert isinstance(layer.padding, tuple)
    x_high, x_low = _halves(x)
    weight_high, weight_low = _halves(layer.weight)
    # Adding the bias afterwards would round the result twice, so it is the weight of two channels of ones.
    ones = x_high.new_ones(1).expand(len(x), 2, *x.shape[2:])
    height, width = layer.padding
    bias = F.pad(torch.stack(_halves(layer.bias), 1)[..., None, None], (width, width, height, height))
    # One convolution over three times the channels accumulates in float32; three would each round their result.
    inputs = torch.cat([x_high, x_high, x_low, ones], dim=1)
    weights = torch.cat([weight_high, weight_low, weight_high, bias], dim=1)
    return F.conv2d(inputs, weights, padding=layer.padding).float()


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return two bfloat16 tensors whose sum is x to 16 bits; the gradient goes through the first."""
    high = x.to(torch.bfloat16)
    with torch.no_grad():
        low = (x - high).to(torch.bfloat16)
    return high, low


# Custom operators, because torch.compile would apply `allow_tf32` only while tracing.
@torch.library.custom_op(
    "colddiff::convolve_tf32",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, SymInt[] padding) -> Tensor",
)
def _convolve_tf32(x: Tensor, weight: Tensor, bias: Tensor, padding: Sequence[int]) -> Tensor:
    with _tf32():
        return F.conv2d(x, weight, bias, padding=tuple(padding))


@torch.library.custom_op(
    "colddiff::convolve_tf32_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor x, Tensor weight, SymInt[] padding, bool is_to_x) -> (Tensor, Tensor, Tensor)",
)
def _convolve_tf32_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: Sequence[int], is_to_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    with _tf32():
        return _convolution_backward(gradient, x, weight, padding, is_to_x)


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: Sequence[int], is_to_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (empty if not needed), weight and bias."""
    to_x, to_weight, to_bias = torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], [1, 1], padding, [1, 1], False, [0, 0], 1, [is_to_x, True, True]
    )
    return to_x if is_to_x else x.new_empty(0), to_weight, to_bias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    is_to_x = ctx.needs_input_grad[0]
    to_x, *others = _convolve_tf32_backward(gradient, *ctx.saved_tensors, ctx.padding, is_to_x)
    return to_x if is_to_x else None, *others, None


_convolve_tf32.register_fake(lambda x, weight, bias, padding: F.conv2d(x, weight, bias, padding=tuple(padding)))
_convolve_tf32_backward.register_fake(_convolution_backward)
_convolve_tf32.register_autograd(_gradients, setup_context=_keep)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
