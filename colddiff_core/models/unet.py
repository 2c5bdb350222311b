"""The restorer's U-Net, for any number of channels and any size divisible by 2^(levels - 1)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from colddiff_core.errors import UsageError
from colddiff_core.models import low_weights
from colddiff_core.models.blocks import (
    ChannelNorm,
    ConvNextBlock,
    LinearAttention,
    LocalBlock,
    ResnetBlock,
    TimeEmbedding,
)
from colddiff_core.models.stem import ConvNextStem, ConvStem
from colddiff_core.text import counted

BlockType = type[ConvNextBlock] | type[ResnetBlock]
BLOCKS: dict[str, BlockType] = {"convnext": ConvNextBlock, "resnet": ResnetBlock, "local": LocalBlock}
CONTIGUOUS_SIDE_PIXELS = 4  # up to this side at the coarsest level, contiguous weights are faster on a CPU
STEMS: dict[str, type[ConvNextStem] | type[ConvStem]] = {
    "convnext": ConvNextStem,
    "resnet": ConvStem,
    "local": ConvStem,
}


class UNet(nn.Module):
    """A time-conditioned U-Net: x (B, C_in, H, W) float32, t (B,) int64 -> (B, C_out, H, W) float32.

    Each level has two blocks, attention and `width * multiplier` channels, at half the side of the level before; the
    finest has one block on the way down, after the stem. All levels but the finest pass their features to the way up;
    with local blocks the finest does too, because most pixels of a photograph should stay unchanged. The defaults are
    the paper's network: 56.6 M parameters for one channel.

    The body runs in `body_dtype`. The stem and the head stay float32: after a heavy blur the picture is in deviations
    of 1e-2 to 1e-6, which bfloat16 would round away.

    Args:
        channels_in: C_in.
        channels_out: C_out.
        width: channels at the finest level, for multiplier 1.
        multipliers: one per level, finest first.
        block: "convnext", "resnet" or "local".
        attention: "all" levels, "middle" (the coarsest only) or "none".
        classes: number of classes, 0 for none. With classes, forward takes labels (B,) int64 in 0..classes, where
            `classes` means unknown; their embedding is added to that of the time, as in Dhariwal and Nichol 2021,
            section 3.1.
        body_dtype: dtype of the body.
        stem: precision of the stem's convolutions on a GPU: "float32", "tf32" or "split", see `stem.convolve`. With a
            float32 body "split" means "float32", because that body does not round the stem's result.

    Attributes:
        divisor: height and width must be multiples of it.
        reach: how far away, in pixels, an input pixel can affect an output pixel; None if that is not bounded, because
            attention and GroupNorm cover the whole picture.
        erases_single_pixels: whether a norm at the coarsest level has one channel per group, so that a single pixel
            there has nothing to be compared with.

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
        stem: str = "float32",
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
        is_rounded = body_dtype == torch.bfloat16
        self.stem = STEMS[block](channels_in, finest, width, "float32" if stem == "split" and not is_rounded else stem)
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
        coarse = [self.down[-1], self.middle, *self.up[:1], *([self.head_block] if len(widths) == 1 else [])]
        norms = [layer for part in coarse for layer in part.modules() if isinstance(layer, nn.GroupNorm)]
        self.erases_single_pixels = any(norm.num_groups == norm.num_channels for norm in norms)
        if self.is_full_width:
            # Start from zero output, so that the restorer starts from the operator's inverse.
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)
        is_bounded = attention == "none" and block != "resnet"
        self.reach = self._reach(STEMS[block].reach, make.reach) if is_bounded else None

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the output for x (B, C_in, H, W), t (B,) and labels (B,) or None: (B, C_out, H, W) float32.

        Raises:
            UsageError: if the height or width is not a multiple of `divisor`, or the coarsest level would be erased.
        """
        height, width = x.shape[-2:]
        if height % self.divisor or width % self.divisor:
            times = counted(len(self.shrink), "time")
            raise UsageError(
                f"The network cannot process {width}x{height} pixels: it halves the size {times}.",
                f"Use a size divisible by {self.divisor}.",
            )
        if self.erases_single_pixels and height == width == self.divisor:
            raise UsageError(
                f"The network cannot process {width}x{height} pixels: its coarsest level has 1 pixel and few channels, "
                "which GroupNorm would erase.",
                "Use larger images, fewer model.multipliers, a larger model.width, or model.block=convnext.",
            )
        embedding = self.time(t)
        if self.label is not None:
            embedding = embedding + self.label(torch.full_like(t, self.classes) if labels is None else labels)
        h = self.stem(x, embedding)
        low = self.body_dtype
        is_autocast = low != torch.float32 and not low_weights.suits(x.device)
        with torch.autocast(x.device.type, dtype=low, enabled=is_autocast):
            h = self._body(h.to(low), embedding.to(low))
        return self.head(h.float())

    @staticmethod
    def _block_counts(levels: nn.ModuleList) -> list[int]:
        return [len(level.blocks) for level in levels if isinstance(level, UNetLevel)]

    def _reach(self, stem: int, block: int) -> int:
        """Return the reach in pixels, given those of the stem and of a block at their own levels.

        Scaling down reaches two pixels of the finer level, scaling up one of the coarser.
        """
        deepest = len(self.shrink)
        down = sum(count * block << level for level, count in enumerate(self._block_counts(self.down)))
        up = sum(count * block << deepest - index for index, count in enumerate(self._block_counts(self.up)))
        between = sum((2 << level) + (2 << level) for level in range(deepest))
        return stem + down + between + (2 * block << deepest) + up + block

    def lay_out(self, side: int) -> UNet:
        """Choose the fastest memory layout of the weights for pictures of `side` pixels on their device; return self.

        This is channels_last, except that on a CPU 3x3 convolutions of up to 4 x 4 pixels with hundreds of channels are
        1.5 times as fast with contiguous weights (docs/performance.md).
        """
        self.to(memory_format=torch.channels_last)
        if self.head.weight.device.type == "cpu" and side // self.divisor <= CONTIGUOUS_SIDE_PIXELS:
            for layers in (self.down[-1], self.middle, *self.up[:1]):
                for module in layers.modules():
                    if isinstance(module, ConvNextBlock):
                        module.to(memory_format=torch.contiguous_format)
        return self

    def prepare_for_inference(self) -> UNet:
        """Cast the weights of the body once, freeze them and set eval mode; return self.

        Otherwise every call would cast them, with equal results. On a CPU norm weights stay float32, as under autocast.
        """
        cast: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        if low_weights.suits(self.head.weight.device):
            cast += (nn.GroupNorm, ChannelNorm)
        for layers in (self.down, self.shrink, self.middle, self.up, self.grow, self.head_block):
            for module in layers.modules():
                if isinstance(module, cast):
                    module.to(self.body_dtype)
        return self.eval().requires_grad_(False)

    def _body(self, h: Tensor, embedding: Tensor) -> Tensor:
        skips = []
        for index, level in enumerate(self.down):
            h = self._run(level, h, embedding)
            skips.append(h)
            if index < len(self.shrink):
                h = self._run(self.shrink[index], h)
        h = self._run(self.middle, h, embedding)
        for level, grow in zip(self.up, self.grow, strict=True):
            h = self._run(grow, self._run(level, torch.cat([h, skips.pop()], dim=1), embedding))
        if self.is_full_width:
            h = torch.cat([h, skips.pop()], dim=1)
        return self._run(self.head_block, h, embedding)

    def _run(self, layers: nn.Module, *inputs: Tensor) -> Tensor:
        """Call a part of the body, on a GPU with its weights in the body's dtype."""
        if low_weights.suits(inputs[0].device):
            return low_weights.call(layers, self.body_dtype, *inputs)
        return layers(*inputs)


class UNetLevel(nn.Module):
    """The blocks of one resolution, followed by attention if it has any."""

    def __init__(
        self, make: BlockType, channels_in: int, channels_out: int, width_t: int, attention: bool, blocks: int = 2
    ) -> None:
        super().__init__()
        sides = [channels_in] + [channels_out] * blocks
        self.blocks = nn.ModuleList(make(a, b, width_t) for a, b in itertools.pairwise(sides))
        self.attention = LinearAttention(channels_out) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Return the features (B, channels_out, H, W) for h (B, channels_in, H, W) and the embedding of t."""
        for block in self.blocks:
            h = block(h, embedding)
        return self.attention(h)


class Bottleneck(nn.Module):
    """A block, attention (if it has any) and a block, at the coarsest resolution."""

    def __init__(self, make: BlockType, channels: int, width_t: int, attention: bool) -> None:
        super().__init__()
        self.before = make(channels, channels, width_t)
        self.attention = LinearAttention(channels) if attention else nn.Identity()
        self.after = make(channels, channels, width_t)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Return the features, same shape as h (B, C, H, W)."""
        return self.after(self.attention(self.before(h, embedding)), embedding)
