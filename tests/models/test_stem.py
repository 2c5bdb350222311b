"""The precision of the network's first layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from colddiff_core import seeds
from colddiff_core.config import presets
from colddiff_core.errors import UsageError
from colddiff_core.models import UNet, stem
from colddiff_core.models.blocks import ConvNextBlock
from colddiff_core.models.unet import STEMS

ROUNDING = 2.0**-8  # largest relative error of rounding to bfloat16


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Conv2d(2, 8, 3, padding=1)


def pictures():
    return torch.rand(3, 2, 8, 8, generator=seeds.generator(0)) * 2 - 1


def network(precision, block="resnet", body_dtype=torch.bfloat16):
    torch.manual_seed(0)
    settings = {"width": 8, "multipliers": (1, 2), "block": block, "attention": "none"}
    unet = UNet(2, 1, **settings, body_dtype=body_dtype, stem=precision)
    nn.init.normal_(unet.head.weight)
    return unet


def test_float32_is_the_layer_itself(layer):
    assert torch.equal(stem.convolve(layer, pictures(), "float32"), layer(pictures()))


@pytest.mark.parametrize("channels", [2, 6, 8])  # with and without a norm, and without a skip convolution
def test_a_float32_convnext_stem_is_a_convnext_block(channels):
    torch.manual_seed(0)
    block, first = ConvNextBlock(channels, 8, 4), stem.ConvNextStem(channels, 8, 4)
    first.load_state_dict(block.state_dict())
    x, embedding = torch.randn(2, channels, 8, 8), torch.randn(2, 4)
    assert torch.equal(first(x, embedding), block(x, embedding))


def test_tf32_is_allowed_for_the_stem_and_its_gradients_alone(layer, monkeypatch):
    allowed = []
    forward, backward = F.conv2d, stem._convolution_backward

    def watch(function):
        def watched(*arguments, **keywords):
            allowed.append(torch.backends.cudnn.allow_tf32)
            return function(*arguments, **keywords)

        return watched

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(F, "conv2d", watch(forward))
    monkeypatch.setattr(stem, "_convolution_backward", watch(backward))
    x = pictures().requires_grad_()
    stem.convolve(layer, x, "tf32").sum().backward()
    assert allowed == [True, True]
    assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(RuntimeError):
        stem.convolve(layer, torch.zeros(1, 5, 8, 8), "tf32")
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("needs_x", [True, False])
def test_without_a_gpu_tf32_is_float32_with_the_same_gradients(layer, needs_x):
    found = []
    for precision in ("float32", "tf32"):
        layer.zero_grad()
        x = pictures().requires_grad_(needs_x)
        out = stem.convolve(layer, x, precision)
        out.square().sum().backward()
        found.append([out, layer.weight.grad, layer.bias.grad, *([x.grad] if needs_x else [])])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_tf32_operators_have_correct_fake_kernels_and_gradients(layer):
    for x in (pictures(), pictures().to(memory_format=torch.channels_last)):
        inputs = (x.requires_grad_(), layer.weight, layer.bias, [1, 1])
        torch.library.opcheck(torch.ops.colddiff.convolve_tf32.default, inputs)
        backward = (torch.randn(3, 8, 8, 8), x.detach(), layer.weight.detach(), [1, 1], True)
        torch.library.opcheck(torch.ops.colddiff.convolve_tf32_backward.default, backward)


def test_split_differs_from_float32_by_the_rounding_of_its_result(layer):
    exact, found = layer(pictures()), stem.convolve(layer, pictures(), "split")
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())
    assert ((found - exact).abs() <= ROUNDING * exact.abs() + 1e-4).all()
    # Rounded once, not twice: nearly all values are those of rounding the exact result.
    assert (found == exact.bfloat16().float()).float().mean() > 0.95


def test_the_gradients_of_split_are_those_of_float32_rounded(layer):
    found = []
    for precision in ("float32", "split"):
        layer.zero_grad()
        x = pictures().requires_grad_()
        stem.convolve(layer, x, precision).square().sum().backward()
        found.append((x.grad, layer.weight.grad, layer.bias.grad))
    for exact, split in zip(*found, strict=True):
        assert split.dtype == torch.float32
        assert (split - exact).norm() < ROUNDING * exact.norm()


def test_split_sees_deviations_that_bfloat16_rounds_away(layer):
    flat = torch.full((1, 2, 8, 8), 0.7)
    x = flat + 1e-4 * torch.randn(1, 2, 8, 8, generator=seeds.generator(0))
    assert torch.equal(x.bfloat16(), flat.bfloat16())
    with torch.no_grad():
        layer.weight -= layer.weight.mean((2, 3), keepdim=True)  # difference filters, like those that training learns
        layer.bias.zero_()
        inner = slice(1, -1)
        exact, split = (stem.convolve(layer, x, kind)[..., inner, inner] for kind in ("float32", "split"))
    assert (split - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("precision", ["tf32", "split"])
@pytest.mark.parametrize("block", sorted(STEMS))
@pytest.mark.parametrize("body_dtype", [torch.bfloat16, torch.float32])
def test_a_network_rounds_no_more_with_another_stem(precision, block, body_dtype):
    one, other = network("float32", block, body_dtype), network(precision, block, body_dtype)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    x, t = pictures(), torch.tensor([1, 2, 3])
    exact, found = one(x, t), other(x, t)
    found.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in other.parameters())
    if body_dtype == torch.float32 or precision == "tf32":  # the stem is exact: no TF32 here, no split for this body
        assert torch.equal(found, exact)
    else:
        true = network("float32", block, torch.float32)(x, t)
        assert not torch.equal(found, exact)
        assert (found - true).norm() < 1.25 * (exact - true).norm()


def test_the_setting_is_read_and_unknown_values_are_refused():
    assert presets.load("digits-blur").model.stem == "float32"
    assert presets.load("digits-blur", ["model.stem=split"]).model.stem == "split"
    with pytest.raises(UsageError, match="float32, tf32, split"):
        presets.load("digits-blur", ["model.stem=bf16"])
