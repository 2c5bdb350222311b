"""The U-Net of the plain baseline: float32, channels first, every operation written out.

Nothing of colddiff_core is imported. `PlainUNet` has the parameter names of `colddiff_core.models.UNet` and accepts its
state_dict.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainTime(nn.Module):
    """Embed t by sinusoids and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.half = width // 2
        self.mlp = nn.Sequential(nn.Linear(2 * self.half, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        decay = math.log(10_000) / max(self.half - 1, 1)
        frequencies = torch.exp(torch.arange(self.half, device=t.device) * -decay)
        angles = t[:, None].float() * frequencies[None, :]
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))


class PlainNorm(nn.Module):
    """Normalize (B, C, H, W) over the channels, with mean and variance written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1, keepdim=True)
        variance = x.var(dim=1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class PlainConvNext(nn.Module):
    """A ConvNeXt block: 7x7 depthwise convolution, norm, 3x3 convolution, GELU, 3x3 convolution, skip."""

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        self.time = nn.Linear(width_t, channels_in)
        self.spatial = nn.Conv2d(channels_in, channels_in, 7, padding=3, groups=channels_in)
        self.norm = PlainNorm(channels_in) if channels_in > 3 else nn.Identity()
        self.expand = nn.Conv2d(channels_in, 2 * channels_out, 3, padding=1)
        self.project = nn.Conv2d(2 * channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.spatial(x)
        h = h + self.time(F.gelu(embedding))[:, :, None, None]
        h = self.expand(self.norm(h))
        h = self.project(F.gelu(h))
        return h + self.skip(x)


class PlainResnet(nn.Module):
    """A residual block: GroupNorm, SiLU and 3x3 convolution, twice, and a skip."""

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        self.time = nn.Linear(width_t, channels_out)
        self.norm1 = nn.GroupNorm(math.gcd(channels_in, 8), channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(math.gcd(channels_out, 8), channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.skip(x)


class PlainStem(nn.Module):
    """The 3x3 convolution before resnet blocks."""

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class PlainAttention(nn.Module):
    """Add linear attention, with four heads of 32 channels, to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = PlainNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * 128, 1, bias=False)
        self.to_out = nn.Conv2d(128, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        parts = self.to_qkv(self.norm(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(batch, 4, 32, height * width) for part in parts)
        q = q.softmax(dim=-2) * 32**-0.5
        k = k.softmax(dim=-1)
        v = v / (height * width)
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        out = torch.einsum("bhde,bhdn->bhen", context, q)
        return x + self.to_out(out.reshape(batch, 128, height, width))


BLOCKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "convnext": (PlainConvNext, PlainConvNext),
    "resnet": (PlainResnet, PlainStem),
}


class PlainLevel(nn.Module):
    """The blocks of one resolution, followed by attention if it has any."""

    def __init__(self, make: type[nn.Module], sides: Sequence[int], width_t: int, attention: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make(a, b, width_t) for a, b in itertools.pairwise(sides))
        self.attention = PlainAttention(sides[-1]) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, embedding)
        return self.attention(h)


class PlainMiddle(nn.Module):
    """A block, attention (if it has any) and a block, at the coarsest resolution."""

    def __init__(self, make: type[nn.Module], channels: int, width_t: int, attention: bool) -> None:
        super().__init__()
        self.before = make(channels, channels, width_t)
        self.attention = PlainAttention(channels) if attention else nn.Identity()
        self.after = make(channels, channels, width_t)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.after(self.attention(self.before(h, embedding)), embedding)


class PlainUNet(nn.Module):
    """The restorer's U-Net: (B, C_in, H, W) float32, t (B,) int64 -> (B, C_out, H, W) float32.

    `model` holds the keys width, multipliers, block and attention of a preset.
    """

    def __init__(self, channels_in: int, channels_out: int, model: Mapping[str, Any]) -> None:
        super().__init__()
        width = model["width"]
        widths = [width * multiplier for multiplier in model["multipliers"]]
        make, stem = BLOCKS[model["block"]]
        everywhere, middle = model["attention"] == "all", model["attention"] != "none"
        pairs = list(itertools.pairwise(widths))[::-1]
        self.time = PlainTime(width)
        self.stem = stem(channels_in, widths[0], width)
        self.down = nn.ModuleList([PlainLevel(make, [widths[0]] * 2, width, everywhere)])
        self.down.extend(PlainLevel(make, [a, b, b], width, everywhere) for a, b in itertools.pairwise(widths))
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 4, stride=2, padding=1) for w in widths[:-1])
        self.middle = PlainMiddle(make, widths[-1], width, middle)
        self.up = nn.ModuleList(PlainLevel(make, [2 * b, a, a], width, everywhere) for a, b in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, a, 4, stride=2, padding=1) for a, _ in pairs)
        self.head_block = make(widths[0], widths[0], width)
        self.head = nn.Conv2d(widths[0], channels_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time(t)
        h = self.stem(x, embedding)
        skips = []
        for index, level in enumerate(self.down):
            h = level(h, embedding)
            skips.append(h)
            if index < len(self.shrink):
                h = self.shrink[index](h)
        h = self.middle(h, embedding)
        for level, grow in zip(self.up, self.grow, strict=True):
            h = torch.cat([h, skips.pop()], dim=1)
            h = grow(level(h, embedding))
        return self.head(self.head_block(h, embedding))
