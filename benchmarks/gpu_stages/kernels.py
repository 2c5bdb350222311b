"""Stage `micro`: single kernels in the dtypes and memory layouts that the network could use."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.models.depthwise import weight_gradient
from gpu_stages.bench import GpuBench, Result

LAYOUTS = {"last": torch.channels_last, "first": torch.contiguous_format}
DEPTHWISE = ((64, 32), (128, 16), (256, 8), (512, 4), (1024, 4), (64, 128), (128, 64))  # channels, side
BATCH = 32
KERNEL = 7
QUICK_SIDE = 8


def run(bench: GpuBench) -> None:
    torch.backends.cudnn.allow_tf32 = False
    for side in (QUICK_SIDE,) if bench.is_quick else (32, 128):
        bench.attempt("micro", f"layer norm, 64 channels, {side} px", lambda s=side: layer_norm(bench, s))
        bench.attempt("micro", f"group norm, 64 channels, {side} px", lambda s=side: group_norm(bench, s))
        bench.attempt("micro", f"the stem's 3x3, 128 to 64 channels, {side} px", lambda s=side: stem(bench, s))
    for channels, side in ((8, QUICK_SIDE),) if bench.is_quick else DEPTHWISE:
        label = f"depthwise 7x7, {channels} channels, {side} px"
        bench.attempt("micro", label, lambda c=channels, s=side: depthwise(bench, c, s))


def pixels(bench: GpuBench, channels: int, side: int, dtype: torch.dtype) -> Tensor:
    count = 2 if bench.is_quick else BATCH
    return torch.randn(count, channels, side, side, device=bench.device).to(dtype, memory_format=torch.channels_last)


def timed_norm(bench: GpuBench, x: Tensor, norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Result:
    """Time a norm forward and backward, as under autocast (cast to float32 and back) and in bfloat16.

    `off` is the largest relative difference between the two.
    """
    x.requires_grad_()
    weight, bias = torch.ones(x.shape[1], device=x.device), torch.zeros(x.shape[1], device=x.device)
    low = weight.bfloat16(), bias.bfloat16()
    ways = {
        "float32": lambda: norm(x.float(), weight, bias).to(torch.bfloat16),
        "bf16": lambda: norm(x, *low),
    }
    found: Result = {}
    for name, way in ways.items():
        y = way()
        g = torch.randn_like(y)
        found[f"{name} forward"] = bench.kernel_ms(way)
        found[f"{name} backward"] = bench.kernel_ms(lambda y=y, g=g: torch.autograd.grad(y, x, g, retain_graph=True))
    wide, narrow = (way().detach().float() for way in ways.values())
    return found | {"off": float((wide - narrow).abs().max() / wide.abs().max())}


def layer_norm(bench: GpuBench, side: int) -> Result:
    x = pixels(bench, 64, side, torch.bfloat16)
    return timed_norm(bench, x, lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), w.shape, w, b))


def group_norm(bench: GpuBench, side: int) -> Result:
    return timed_norm(bench, pixels(bench, 64, side, torch.bfloat16), lambda x, w, b: F.group_norm(x, 8, w, b))


def stem(bench: GpuBench, side: int) -> Result:
    """Time the stem's convolution in float32 and in TF32; `off` is their largest relative difference."""
    found: Result = {}
    for layout, form in LAYOUTS.items():
        outputs = []
        for name, allowed in (("float32", False), ("tf32", True)):
            torch.backends.cudnn.allow_tf32 = allowed
            torch.manual_seed(0)
            x = pixels(bench, 128, side, torch.float32).to(memory_format=form).requires_grad_()
            w = torch.randn(64, 128, 3, 3, device=bench.device).to(memory_format=form).requires_grad_()
            y = F.conv2d(x, w, padding=1)
            g = torch.randn_like(y)
            found[f"{layout} {name} forward"] = bench.kernel_ms(lambda x=x, w=w: F.conv2d(x, w, padding=1))
            found[f"{layout} {name} backward"] = bench.kernel_ms(
                lambda x=x, w=w, y=y, g=g: torch.autograd.grad(y, (x, w), g, retain_graph=True)
            )
            outputs.append(y.detach())
        torch.backends.cudnn.allow_tf32 = False
        found[f"{layout} off"] = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max())
    return found


def depthwise(bench: GpuBench, channels: int, side: int) -> Result:
    """Time a 7x7 depthwise convolution in bfloat16, its gradients, and the weight gradient as the CPU computes it."""
    found: Result = {}
    for layout, form in LAYOUTS.items():
        for is_deterministic in (True, False):
            torch.backends.cudnn.deterministic = is_deterministic
            x = pixels(bench, channels, side, torch.bfloat16).contiguous(memory_format=form).requires_grad_()
            w = torch.randn(channels, 1, KERNEL, KERNEL, device=bench.device, dtype=torch.bfloat16)
            w = w.to(memory_format=form).requires_grad_()
            found |= convolution_ms(bench, layout if is_deterministic else f"{layout}, any", x, w)
        torch.backends.cudnn.deterministic = True
        x = x.detach()
        found[f"{layout} to the weights, products"] = bench.kernel_ms(lambda x=x: weight_gradient(x, x, KERNEL))
    return found


def convolution_ms(bench: GpuBench, key: str, x: Tensor, w: Tensor) -> Result:
    """Return the milliseconds of a depthwise convolution and of each of its gradients."""

    def forward() -> Tensor:
        return F.conv2d(x, w, padding=KERNEL // 2, groups=len(w))

    y = forward()
    g = torch.randn_like(y)
    return {
        f"{key} forward": bench.kernel_ms(forward),
        f"{key} to x": bench.kernel_ms(lambda: torch.autograd.grad(y, x, g, retain_graph=True)),
        f"{key} to the weights": bench.kernel_ms(lambda: torch.autograd.grad(y, w, g, retain_graph=True)),
    }
