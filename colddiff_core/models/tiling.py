"""A network on pictures larger than memory has room for: overlapping tiles, blended so that none can be seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from colddiff_core.models import UNet

FEATHER = 16  # half the pixels over which one tile gives way to the next
# The same where the network's reach has no bound, and neighbors differ; and the pixels of a rim that are not used.
UNBOUNDED_FEATHER, UNBOUNDED_RIM = 48, 32


class TiledRestorer(nn.Module):
    """A U-Net for pictures of any size: whole up to side^2 pixels, else tile by tile of up to `side` x `side`.

    A side that leaves no room beside the overlap is enlarged. Sizes that the U-Net cannot halve are filled up by
    reflection. Tiles overlap, and of each only what lies deeper in
    it than the network's reach is used: where that is bounded (`UNet.reach`), tiles give what the whole would, to the
    rounding of the body's dtype.

    Shapes: as UNet's, of any height and width. `at_tile` is called after each tile with the share of the picture done.
    """

    def __init__(self, unet: UNet, side: int, at_tile: Callable[[float], None] = lambda share: None) -> None:
        super().__init__()
        self.unet, self.at_tile = unet, at_tile
        self.body_dtype = unet.body_dtype
        rim, self.feather = (UNBOUNDED_RIM, UNBOUNDED_FEATHER) if unet.reach is None else (unet.reach, FEATHER)
        self.overlap = _up(2 * (rim + self.feather), unet.divisor)
        self.side = _up(
            max(side, self.overlap + 4 * self.feather), unet.divisor
        )  # so that no pixel is of three tiles along an axis

    def is_whole(self, height: int, width: int) -> bool:
        """Tell whether a picture is taken at once."""
        return height * width <= self.side**2

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        if self.is_whole(height, width):
            return self._evaluate(x, t, labels)
        rows, columns = (self._spans(n) for n in (height, width))
        made: Tensor | None = None
        for number, (row, column) in enumerate(itertools.product(rows, columns), start=1):
            tile = self._evaluate(x[..., row.all, column.all], t, labels)
            if made is None:
                made = tile.new_zeros(*tile.shape[:2], height, width)
            tile *= row.weights.to(tile.device)[:, None] * column.weights.to(tile.device)
            made[..., row.all, column.all] += tile
            self.at_tile(number / (len(rows) * len(columns)))
        assert made is not None
        return made

    def _spans(self, n: int) -> list[_Span]:
        """Return spans of `side` pixels that cover n evenly, all beginning where the network's grid does."""
        if n <= self.side:
            return [_Span(0, n)]
        last = n - self.side
        count = -(-last // (self.side - self.overlap)) + 1
        firsts = [index * last // (count - 1) // self.unet.divisor * self.unet.divisor for index in range(count)]
        spans = [_Span(first, first + self.side) for first in firsts[:-1]] + [_Span(firsts[-1], n)]
        for before, after in itertools.pairwise(spans):
            middle = (after.all.start + before.all.stop) / 2
            pixels = torch.arange(after.all.start, before.all.stop) + 0.5
            share = ((pixels - middle) / (2 * self.feather) + 0.5).clamp_(0, 1)
            after.weights[: len(share)] *= share
            before.weights[-len(share) :] *= 1 - share
        return spans

    def _evaluate(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        divisor = self.unet.divisor
        made: Tensor = self.unet(_filled_up(x, _up(height, divisor), _up(width, divisor)), t, labels)
        return made[..., :height, :width]


class _Span:
    """One tile along one axis: its pixels, and their weights, which add up to 1 over all tiles."""

    def __init__(self, first: int, last: int) -> None:
        self.all = slice(first, last)
        self.weights = torch.ones(last - first)


def _filled_up(x: Tensor, height: int, width: int) -> Tensor:
    """Return pictures with rows and columns more, the last ones mirrored."""
    for axis, n in ((-2, height), (-1, width)):
        missing = n - x.shape[axis]
        if missing:
            # By index: F.pad cannot mirror more than there is.
            period = max(2 * x.shape[axis] - 2, 1)
            place = torch.arange(n, device=x.device) % period
            x = x.index_select(axis, torch.where(place < x.shape[axis], place, period - place))
    return x


def _up(n: int, divisor: int) -> int:
    return -(-n // divisor) * divisor
