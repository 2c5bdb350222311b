"""The building blocks of the U-Net: time embedding, normalization, residual blocks and attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colddiff_core.models.depthwise import depthwise


class TimeEmbedding(nn.Module):
    """Embed t by sinusoids and a two-layer perceptron: (B,) int64 -> (B, width) float32.

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
        """Return the embedding of t."""
        angles = t.to(torch.float32)[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class ChannelNorm(nn.Module):
    """Normalize (B, C, H, W) over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalized, same shape."""
        pixels = x.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, self.weight.shape, self.weight, self.bias).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """A ConvNeXt block: 7x7 depthwise convolution plus time, LayerNorm, 3x3 convolution, GELU, 3x3 convolution, skip.

    Source: the network of Bansal et al. 2022 after Liu et al. 2022, with 3x3 for their 1x1.
    """

    expansion = 2
    reach = 5  # pixels in each direction that a pixel's output depends on

    def __init__(self, channels_in: int, channels_out: int, width_t: int) -> None:
        super().__init__()
        hidden = channels_out * self.expansion
        self.time = nn.Linear(width_t, channels_in)
        self.spatial = nn.Conv2d(channels_in, channels_in, 7, padding=3, groups=channels_in)
        # A LayerNorm over a single channel would erase the picture.
        self.norm = ChannelNorm(channels_in) if channels_in > 3 else nn.Identity()
        self.expand = nn.Conv2d(channels_in, hidden, 3, padding=1)
        self.project = nn.Conv2d(hidden, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the block's output (B, channels_out, H, W) for x (B, channels_in, H, W) and the embedding of t."""
        assert self.spatial.bias is not None
        h = depthwise(x, self.spatial.weight, self.spatial.bias).add_(self.time(F.gelu(embedding))[:, :, None, None])
        h = self.norm(h)
        if self.expand.weight.is_contiguous():  # set by UNet.lay_out for the smallest pictures; the norm permuted h
            h = h.contiguous()
        h = F.gelu(self._convolve(self.expand, h))
        return self._convolve(self.project, h).add_(self._convolve(self.skip, x))

    def _convolve(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return layer(x); `ConvNextStem` overrides it to compute in another precision."""
        return layer(x)


class ResnetBlock(nn.Module):
    """A residual block: GroupNorm, SiLU and 3x3 convolution, twice, with the time added in between, and a skip.

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
        """Return the block's output (B, channels_out, H, W) for x (B, channels_in, H, W) and the embedding of t."""
        h = self.conv1(F.silu(self.norm1(x))).add_(self.time(F.silu(embedding))[:, :, None, None])
        return self.conv2(F.silu(self.norm2(h))).add_(self.skip(x))

    @staticmethod
    def norm(channels: int) -> nn.Module:
        """Return the normalization layer for (B, C, H, W)."""
        return nn.GroupNorm(math.gcd(channels, 8), channels)


class LocalBlock(ResnetBlock):
    """A ResnetBlock that normalizes each pixel separately, so that its output depends on nearby pixels only.

    The mean over a whole picture, as in GroupNorm, would differ between the tiles of a photograph.

    Source: the LayerNorm of restoration networks since Chen et al. 2022 (NAFNet).
    """

    @staticmethod
    def norm(channels: int) -> nn.Module:
        """Return the normalization layer for (B, C, H, W)."""
        return ChannelNorm(channels)


class LinearAttention(nn.Module):
    """Add attention over all pixels to the input, at a cost linear in their number.

    Keys are normalized over pixels and queries over channels, so that k v^T (d x d) is computed first.

    Source: Shen et al. 2021, Efficient Attention.
    """

    same_head: Tensor

    heads = 4
    head_width = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = self.heads * self.head_width
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, channels, 1)
        head = torch.arange(inner) // self.head_width
        self.register_buffer("same_head", (head[:, None] == head).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) plus the attention."""
        batch, channels, height, width = x.shape
        # Pixels stay outermost, as in channels_last, so that nothing the size of a picture is transposed.
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        # Three products: the gradient of a joint one would have to be concatenated, which costs a copy.
        q, k, v = (F.linear(pixels, weight) for weight in self.to_qkv.weight.flatten(1).chunk(3))
        with torch.autocast(x.device.type, enabled=False):  # softmax accumulates in float32 anyway
            q = q.unflatten(-1, (self.heads, self.head_width)).softmax(-1).flatten(-2)
            k = k.softmax(1)
            # One product for all heads, masked to the diagonal blocks: cheaper than splitting the heads.
            context = (k.mT @ v) * (self.same_head / (height * width * self.head_width**0.5))
        # q (context W) instead of (q context) W, because there are fewer channels than pixels.
        out = q @ (context.to(q.dtype) @ self.to_out.weight.flatten(1).mT)
        assert self.to_out.bias is not None
        out.add_(self.to_out.bias.to(out.dtype))
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2).add_(x)
