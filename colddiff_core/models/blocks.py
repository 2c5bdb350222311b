"""The pieces of the U-Net: time embedding, the two kinds of block, attention, resampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colddiff_core.models.depthwise import depthwise


class TimeEmbedding(nn.Module):
    """The sinusoidal embedding of t, then a two-layer perceptron: (B,) int64 -> (B, width).

    Source: Ho et al. 2020, section 4; frequencies as in Vaswani et al. 2017.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        decay = math.log(10_000) / max(half - 1, 1)
        self.register_buffer("frequencies", torch.exp(-decay * torch.arange(half)), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = t.to(torch.float32)[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of each pixel of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, self.weight.shape, self.weight, self.bias).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """7x7 depthwise convolution plus the time, LayerNorm, two 3x3 convolutions about a GELU, a skip.

    Source: the network of Bansal et al. 2022 after Liu et al. 2022, with 3x3 for their 1x1.
    """

    expansion = 2
    reach = 5  # pixels that what a pixel becomes depends on, in each direction

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        hidden = channels_out * self.expansion
        self.time = nn.Linear(width_t, channels_in)
        self.spatial = nn.Conv2d(channels_in, channels_in, 7, padding=3, groups=channels_in)
        # Over a single channel a LayerNorm would erase the picture.
        self.norm = ChannelNorm(channels_in) if channels_in > 3 else nn.Identity()
        self.expand = nn.Conv2d(channels_in, hidden, 3, padding=1)
        self.project = nn.Conv2d(hidden, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        assert self.spatial.bias is not None
        h = depthwise(x, self.spatial.weight, self.spatial.bias).add_(self.time(F.gelu(embedding))[:, :, None, None])
        h = self.norm(h)
        if self.expand.weight.is_contiguous():  # as UNet.lay_out has it for the smallest pictures; the norm turned h
            h = h.contiguous()
        return self.project(F.gelu(self.expand(h))).add_(self.skip(x))


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, the time added between, and a skip.

    Source: Ho et al. 2020, appendix B.
    """

    reach = 2

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        self.time = nn.Linear(width_t, channels_out)
        self.norm1 = self.norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = self.norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))).add_(self.time(F.silu(embedding))[:, :, None, None])
        return self.conv2(F.silu(self.norm2(h))).add_(self.skip(x))

    @staticmethod
    def norm(channels: int) -> nn.Module:
        """Return the normalization of (B, C, H, W) before a convolution."""
        return nn.GroupNorm(math.gcd(channels, 8), channels)


class LocalBlock(ResnetBlock):
    """A ResnetBlock that normalizes each pixel by itself, so that none depends on what lies beyond the convolutions.

    A group's mean over the whole picture would be another in each tile of a photograph. Source: the LayerNorm of
    restoration networks since Chen et al. 2022 (NAFNet).
    """

    @staticmethod
    def norm(channels: int) -> nn.Module:
        return ChannelNorm(channels)


class ConvStem(nn.Module):
    """A plain 3x3 convolution where a block's norm would erase the level of the picture."""

    reach = 1

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class LinearAttention(nn.Module):
    """Attention over all pixels at a cost linear in their number, added to its input.

    Keys are normalized over pixels and queries over channels, so that k v^T (d x d) is formed first.

    Source: Shen et al. 2021, Efficient Attention.
    """

    own_head: Tensor

    heads = 4
    head_width = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = self.heads * self.head_width
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, channels, 1)
        head = torch.arange(inner) // self.head_width
        self.register_buffer("own_head", (head[:, None] == head).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # Pixels outermost all the way: the layout of channels_last, so that nothing the size of a picture is turned.
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        # One product each: the gradient of a joint one is put together from three, at the cost of a copy.
        q, k, v = (F.linear(pixels, weight) for weight in self.to_qkv.weight.flatten(1).chunk(3))
        with torch.autocast(x.device.type, enabled=False):  # softmax sums in float32 as it is
            q = q.unflatten(-1, (self.heads, self.head_width)).softmax(-1).flatten(-2)
            k = k.softmax(1)
            # All heads in one product, of which the blocks on the diagonal are theirs: cheaper than to part the heads.
            context = (k.mT @ v) * (self.own_head / (height * width * self.head_width**0.5))
        # to_out comes before the queries, for there are fewer channels than pixels: q (context W) = (q context) W.
        out = q @ (context @ self.to_out.weight.flatten(1).mT)
        assert self.to_out.bias is not None
        out.add_(self.to_out.bias.to(out.dtype))
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2).add_(x)
