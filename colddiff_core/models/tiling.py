"""Run a network on pictures that do not fit into memory: overlapping tiles, blended without a seam."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from colddiff_core import devices
from colddiff_core.models import UNet

FEATHER_PIXELS = 16  # half the width over which one tile blends into the next
# For a network of unbounded reach, whose neighboring tiles differ: the same, and the width of the unused rim.
UNBOUNDED_FEATHER_PIXELS, UNBOUNDED_RIM_PIXELS = 48, 32


class TiledRestorer(nn.Module):
    """Run a U-Net on pictures of any size: whole up to side^2 pixels, else in tiles of side x side pixels.

    Tiles overlap, and a rim as wide as the network's reach is not used. If the reach is bounded (`UNet.reach`), tiles
    give the same result as the whole picture, up to the rounding of the body's dtype. Sizes that the U-Net cannot halve
    are padded by reflection.

    Shapes: as in UNet, with any height and width.

    Args:
        unet: the network.
        side: of a tile, in pixels; enlarged if the overlap leaves too little room.
        at_tile: called after each tile with the finished share of the picture.
    """

    def __init__(self, unet: UNet, side: int, at_tile: Callable[[float], None] = lambda share: None) -> None:
        super().__init__()
        self.unet, self.at_tile = unet, at_tile
        self.body_dtype = unet.body_dtype
        unbounded = UNBOUNDED_RIM_PIXELS, UNBOUNDED_FEATHER_PIXELS
        rim, self.feather = unbounded if unet.reach is None else (unet.reach, FEATHER_PIXELS)
        self.overlap = _round_up(2 * (rim + self.feather), unet.divisor)
        # Large enough that at most two tiles overlap along an axis.
        self.side = _round_up(max(side, self.overlap + 4 * self.feather), unet.divisor)

    def is_whole(self, height: int, width: int) -> bool:
        """Return whether a picture of this size is processed in one piece."""
        return height * width <= self.side**2

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the network's output for x (B, C_in, H, W): (B, C_out, H, W) float32."""
        height, width = x.shape[-2:]
        if self.is_whole(height, width):
            return self._evaluate(x, t, labels)
        rows, columns = (self._spans(n) for n in (height, width))
        blended: Tensor | None = None
        for number, (row, column) in enumerate(itertools.product(rows, columns), start=1):
            tile = self._evaluate(x[..., row.pixels, column.pixels], t, labels)
            if blended is None:
                blended = tile.new_zeros(*tile.shape[:2], height, width)
            down, across = (devices.upload(span.weights, tile.device) for span in (row, column))
            tile *= down[:, None] * across
            blended[..., row.pixels, column.pixels] += tile
            self.at_tile(number / (len(rows) * len(columns)))
        assert blended is not None
        return blended

    def _spans(self, n: int) -> list[_Span]:
        """Return evenly spread spans of `side` pixels that cover n pixels and start on the network's grid."""
        if n <= self.side:
            return [_Span(0, n)]
        last = n - self.side
        count = -(-last // (self.side - self.overlap)) + 1
        firsts = [index * last // (count - 1) // self.unet.divisor * self.unet.divisor for index in range(count)]
        spans = [_Span(first, first + self.side) for first in firsts[:-1]] + [_Span(firsts[-1], n)]
        for before, after in itertools.pairwise(spans):
            middle = (after.pixels.start + before.pixels.stop) / 2
            pixels = torch.arange(after.pixels.start, before.pixels.stop) + 0.5
            share = ((pixels - middle) / (2 * self.feather) + 0.5).clamp_(0, 1)
            after.weights[: len(share)] *= share
            before.weights[-len(share) :] *= 1 - share
        return spans

    def _evaluate(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        divisor = self.unet.divisor
        padded = _pad_to(x, _round_up(height, divisor), _round_up(width, divisor))
        output: Tensor = self.unet(padded, t, labels)
        return output[..., :height, :width]


class _Span:
    """A tile along one axis: its pixels and their blending weights, which sum to 1 over all tiles."""

    def __init__(self, first: int, last: int) -> None:
        self.pixels = slice(first, last)
        self.weights = torch.ones(last - first)


def _pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """Return pictures padded by reflection at the bottom and the right."""
    for axis, n in ((-2, height), (-1, width)):
        missing = n - x.shape[axis]
        if missing:
            # By index, because F.pad cannot reflect more than the size.
            period = max(2 * x.shape[axis] - 2, 1)
            place = torch.arange(n, device=x.device) % period
            x = x.index_select(axis, torch.where(place < x.shape[axis], place, period - place))
    return x


def _round_up(n: int, divisor: int) -> int:
    return -(-n // divisor) * divisor
