"""The restorer's U-Net: any channel count, any size divisible by its depth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from colddiff_core.errors import UsageError
from colddiff_core.models.blocks import (
    ConvNextBlock,
    ConvStem,
    LinearAttention,
    LocalBlock,
    ResnetBlock,
    TimeEmbedding,
)
from colddiff_core.text import counted

BlockType = type[ConvNextBlock] | type[ResnetBlock]
BLOCKS: dict[str, BlockType] = {"convnext": ConvNextBlock, "resnet": ResnetBlock, "local": LocalBlock}
SMALLEST = 4  # pixels of a side
STEMS: dict[str, type[ConvNextBlock] | type[ConvStem]] = {
    "convnext": ConvNextBlock,
    "resnet": ConvStem,
    "local": ConvStem,
}


class UNet(nn.Module):
    """(B, C_in, H, W) float32, t (B,) int64 -> (B, C_out, H, W) float32.

    Each level has two blocks, attention and `width * multiplier` channels at half the side of the one
    before; all but the finest hand their features over to the way back up, and with local blocks the finest
    too: of a photograph nearly every pixel is to stay as it is. `attention` is "all",
    "middle" for the coarsest level alone, or "none". Width 64 with multipliers 1, 2, 4, 8 and convnext
    blocks is the paper's: 56.6 M parameters at one channel.

    The body runs in `body_dtype`. The stem and the head stay float32: a heavy blur leaves deviations
    of 1e-2 to 1e-6 that carry the picture, and bfloat16 would round them away at the door.

    With `classes`, forward takes labels (B,) int64 in 0..classes, `classes` for an image of no known class; they are
    embedded and added to the time, as is usual since Dhariwal and Nichol 2021, section 3.1.

    reach: how many pixels away, in each direction, x may lie to have a say in a pixel of what is returned; None where
    there is no such bound, for attention and the groups' norms are of whole pictures.

    Raises UsageError for an image whose side is not a multiple of `divisor`.
    Source: Bansal et al. 2022, appendix A; Ronneberger et al. 2015.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        block: str = "convnext",
        attention: str = "all",
        classes: int = 0,
        body_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.body_dtype = body_dtype
        self.divisor = 2 ** (len(multipliers) - 1)
        widths = [width * multiplier for multiplier in multipliers]
        finest, coarsest = widths[0], widths[-1]
        make = BLOCKS[block]

        self.time = TimeEmbedding(width)
        self.classes = classes
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.stem = STEMS[block](channels_in, finest, width)
        self.down = nn.ModuleList(
            UNetLevel(make, before, after, width, attention == "all", blocks=1 if index == 0 else 2)
            for index, (before, after) in enumerate(zip([finest, *widths], widths, strict=False))
        )
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 4, stride=2, padding=1) for w in widths[:-1])
        self.middle = Bottleneck(make, coarsest, width, attention != "none")
        climb = [(b, a) for a, b in itertools.pairwise(widths)][::-1]
        self.up = nn.ModuleList(
            UNetLevel(make, 2 * before, after, width, attention == "all") for before, after in climb
        )
        self.grow = nn.ModuleList(nn.ConvTranspose2d(after, after, 4, stride=2, padding=1) for _, after in climb)
        self.is_full_width = block == "local"
        self.head_block = make(2 * finest if self.is_full_width else finest, finest, width)
        self.head = nn.Conv2d(finest, channels_out, 1)
        if self.is_full_width:
            # At first it says nothing, and the picture stays as the operator's inverse has it.
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)
        is_bounded = attention == "none" and block != "resnet"
        self.reach = self._reach(STEMS[block].reach, make.reach) if is_bounded else None

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.divisor or width % self.divisor:
            times = counted(len(self.shrink), "time")
            raise UsageError(
                f"The network cannot take {width}x{height} pixels: it halves the side {times}.",
                f"Use a size divisible by {self.divisor}.",
            )
        embedding = self.time(t)
        if self.label is not None:
            embedding = embedding + self.label(torch.full_like(t, self.classes) if labels is None else labels)
        h = self.stem(x, embedding)
        low = self.body_dtype
        with torch.autocast(x.device.type, dtype=low, enabled=low != torch.float32):
            h = self._body(h.to(low), embedding.to(low))
        return self.head(h.float())

    @staticmethod
    def _count(levels: nn.ModuleList) -> list[int]:
        return [len(level.blocks) for level in levels if isinstance(level, UNetLevel)]

    def _reach(self, stem: int, block: int) -> int:
        """Return the reach of stem and blocks, each counted in the pixels of its level, and of the way between levels.

        Scaling down reads two of its own level's pixels, scaling up one of the coarser.
        """
        deepest = len(self.shrink)
        down = sum(count * block << level for level, count in enumerate(self._count(self.down)))
        up = sum(count * block << deepest - index for index, count in enumerate(self._count(self.up)))
        between = sum((2 << level) + (2 << level) for level in range(deepest))
        return stem + down + between + (2 * block << deepest) + up + block

    def lay_out(self, side: int) -> UNet:
        """Lay the weights out in memory as is fastest for pictures of `side` pixels, where they are; returns self.

        Channels innermost, on CPU and CUDA alike. But on a CPU a picture of up to 4 x 4 pixels by hundreds of channels
        goes through a 3x3 convolution half as fast again the other way about (docs/performance.md).
        """
        self.to(memory_format=torch.channels_last)
        if self.head.weight.device.type == "cpu" and side // self.divisor <= SMALLEST:
            for part in (self.down[-1], self.middle, *self.up[:1]):
                for module in part.modules():
                    if isinstance(module, ConvNextBlock):
                        module.to(memory_format=torch.contiguous_format)
        return self

    def settle(self) -> UNet:
        """Make the network ready for use without training: what autocast casts at every evaluation, once and for all.

        Those are the weights of convolutions and linear maps in the body; the numbers are the same. Returns self.
        """
        for part in (self.down, self.shrink, self.middle, self.up, self.grow, self.head_block):
            for module in part.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    module.to(self.body_dtype)
        return self.eval().requires_grad_(False)

    def _body(self, h: Tensor, embedding: Tensor) -> Tensor:
        passed = []
        for index, level in enumerate(self.down):
            h = level(h, embedding)
            passed.append(h)
            if index < len(self.shrink):
                h = self.shrink[index](h)
        h = self.middle(h, embedding)
        for level, grow in zip(self.up, self.grow, strict=True):
            h = grow(level(torch.cat([h, passed.pop()], dim=1), embedding))
        if self.is_full_width:
            h = torch.cat([h, passed.pop()], dim=1)
        return self.head_block(h, embedding)


class UNetLevel(nn.Module):
    """The blocks and the attention of one resolution."""

    def __init__(
        self, make: BlockType, channels_in: int, channels_out: int, width_t: int, attention: bool, blocks: int = 2
    ) -> None:
        super().__init__()
        sides = [channels_in] + [channels_out] * blocks
        self.blocks = nn.ModuleList(make(a, b, width_t) for a, b in itertools.pairwise(sides))
        self.attention = LinearAttention(channels_out) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, embedding)
        return self.attention(h)


class Bottleneck(nn.Module):
    """A block, attention and a block at the coarsest resolution."""

    def __init__(self, make: BlockType, channels: int, width_t: int, attention: bool) -> None:
        super().__init__()
        self.before = make(channels, channels, width_t)
        self.attention = LinearAttention(channels) if attention else nn.Identity()
        self.after = make(channels, channels, width_t)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.after(self.attention(self.before(h, embedding)), embedding)
