"""The network's body on a GPU: everything runs in its dtype, and weights are cast together."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from colddiff_core.models import UNet, low_weights
from colddiff_core.models.blocks import ChannelNorm
from colddiff_core.models.unet import BLOCKS

T = torch.tensor([1, 7])


class OperationCounts(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))


def network(block="convnext", body_dtype=torch.bfloat16):
    torch.manual_seed(0)
    unet = UNet(1, 1, width=16, multipliers=(1, 2), block=block, body_dtype=body_dtype)
    for parameter in unet.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)  # norms start at one and zero, a local head at zero
    return unet


def outputs(unet, x):
    """Return the output and all gradients, flat."""
    unet.zero_grad()
    out = unet(x, T)
    out.square().mean().backward()
    return out.detach(), torch.cat([parameter.grad.flatten() for parameter in unet.parameters()])


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.fixture
def x():
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_norms_in_the_bodys_dtype_round_no_more_than_autocast(block, x, monkeypatch):
    """Statistics are float32 either way; now norms' outputs and weights are rounded like all others."""
    exact = outputs(network(block, torch.float32), x)
    before = outputs(network(block), x)
    monkeypatch.setattr(low_weights, "suits", lambda device: True)
    now = outputs(network(block), x)
    assert not torch.equal(now[0], before[0])  # it did not run under autocast
    for here, there, true in zip(now, before, exact, strict=True):
        assert distance(here, true) < 1.25 * distance(there, true) < 0.1


def test_the_cpu_stays_under_autocast(x, monkeypatch):
    monkeypatch.setattr(low_weights, "call", lambda *arguments: pytest.fail("cast"))
    assert outputs(network(), x)[0].dtype == torch.float32


def test_weights_are_cast_in_one_operation_and_their_gradients_back_in_another():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 2, 1))
    x = torch.randn(2, 3, 8, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layers(x)
    expected.float().square().sum().backward()
    gradients = [parameter.grad for parameter in layers.parameters()]
    layers.zero_grad()
    with OperationCounts() as operations:
        out = low_weights.call(layers, torch.bfloat16, x)
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    assert all(torch.equal(p.grad, g) for p, g in zip(layers.parameters(), gradients, strict=True))
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in layers.parameters())
    assert operations.counts["aten._foreach_copy_"] == 2
    assert operations.counts["aten._to_copy"] <= 2  # of `out`, which this test casts, and its gradient


@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_inference_casts_all_weights_once(is_on_gpu, x, monkeypatch):
    monkeypatch.setattr(low_weights, "suits", lambda device: is_on_gpu)
    unet = network()
    expected = unet(x, T).detach()
    unet.prepare_for_inference()
    norms = [module for module in unet.modules() if isinstance(module, ChannelNorm)]
    assert {norm.weight.dtype for norm in norms} == {torch.bfloat16 if is_on_gpu else torch.float32}
    with OperationCounts() as operations:
        assert torch.equal(unet(x, T), expected)
    assert not operations.counts["aten._foreach_copy_"]
