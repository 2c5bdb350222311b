"""Tiled restoration of photographs: equal to the whole picture for any size, without seams."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import devices, seeds
from colddiff_core.config.schema import ModelConfig
from colddiff_core.models import UNet, memory
from colddiff_core.models.tiling import TiledRestorer

LOCAL = {"width": 4, "multipliers": (1, 2), "attention": "none"}


def network(block: str = "local", **settings) -> UNet:
    torch.manual_seed(0)
    unet = UNet(3, 3, block=block, **LOCAL | settings).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.head.weight)  # a local network starts with a zero head
    return unet


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=seeds.generator(0)) * 2 - 1


@pytest.mark.parametrize("block", ["local", "convnext"])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2), (1, 1, 1, 1)])
def test_reach_bounds_the_receptive_field_tightly(block, multipliers):
    unet = network(block, multipliers=multipliers)
    assert unet.reach is not None
    side = -(-(2 * unet.reach + 9) // 8) * 8
    x = (torch.rand(1, 3, 1, side, generator=seeds.generator(1)) - 0.5).expand(1, 3, 8, side).clone().requires_grad_()
    for middle in range(side // 2, side // 2 + unet.divisor):  # every position relative to the coarser grids
        gradient = torch.autograd.grad(unet(x, torch.tensor([3]))[..., middle].sum(), x)[0]
        used = gradient.abs().amax((0, 1, 2)).nonzero()[:, 0]
        farthest = max(middle - int(used.min()), int(used.max()) - middle)
        assert farthest <= unet.reach
    assert farthest > 0.8 * unet.reach


def test_reach_is_none_with_attention_or_groupnorm():
    assert network("resnet").reach is None
    assert network("local", attention="middle").reach is None
    assert network("convnext", attention="all").reach is None


@pytest.mark.parametrize("size", [(150, 340), (201, 203), (97, 500), (300, 160)])
def test_tiles_equal_the_whole_picture(size):
    unet = network()
    tiled = TiledRestorer(unet, 160)
    assert not tiled.is_whole(*size)
    x, t = picture(*size), torch.tensor([1, 4])
    shares = []
    tiled.at_tile = shares.append
    by_tiles = tiled(x, t)
    whole = TiledRestorer(unet, 1000)(x, t)
    assert by_tiles.shape == x.shape
    torch.testing.assert_close(by_tiles, whole, rtol=0, atol=2e-5)
    assert len(shares) > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_tiles_of_a_bfloat16_body_are_equal_to_8_bits():
    unet = network(body_dtype=torch.bfloat16)
    x, t = picture(200, 320), torch.tensor([1, 4])
    difference = (TiledRestorer(unet, 160)(x, t) - TiledRestorer(unet, 1000)(x, t)).abs().max()
    assert difference <= 2 / 255  # of a range of 2


class ConstantNetwork(torch.nn.Module):
    """A network that returns the mean of each channel of its input."""

    divisor, body_dtype, reach = 4, torch.float32, None

    def forward(self, x, t, labels):
        return x.mean((-2, -1), keepdim=True).expand_as(x).clone()


def test_tiles_that_differ_blend_without_a_seam():
    x = torch.zeros(1, 1, 200, 1000)
    x[..., 500:] = 1
    tiled = TiledRestorer(ConstantNetwork(), 100)
    assert not tiled.is_whole(200, 1000)
    blended = tiled(x, torch.tensor([1]))[0, 0]
    steps = blended[:, 1:] - blended[:, :-1]
    assert blended.min() == 0
    assert blended.max() == pytest.approx(1)
    assert 0.003 < steps.max() < 1.01 / (2 * tiled.feather)
    assert steps.min() > -1e-6


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 64), (33, 7)])
def test_sizes_that_are_not_divisible_are_padded_by_reflection(size):
    unet = network(multipliers=(1, 2, 2, 2))
    output = TiledRestorer(unet, 512)(picture(*size), torch.tensor([1, 2]))
    assert output.shape[-2:] == size
    assert output.isfinite().all()
    if size == (5, 64):
        x = picture(*size)
        padded = torch.cat([x, x[..., [3, 2, 1], :]], -2)
        expected = unet(padded, torch.tensor([1, 2]))[..., :5, :]
        torch.testing.assert_close(TiledRestorer(unet, 512)(x, torch.tensor([1, 2])), expected, rtol=0, atol=1e-6)


def test_a_tile_fits_into_memory():
    model = ModelConfig(width=32, multipliers=(1, 2, 4), block="local", attention="none")
    cpu = devices.choose("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        side = memory.tile_side(model, dtype, cpu)
        assert side % 64 == 0
        assert side >= 64
        assert memory.image_bytes(model, side, dtype) <= memory.MAX_TILE_BYTES
    assert memory.tile_side(model, torch.bfloat16, cpu) > memory.tile_side(model, torch.float32, cpu)
