"""Where a hole is in a picture and how far it has grown: what lies around it is drawn toward its color.

A pixel at distance r from the center keeps M_t(r) of its difference from the hole's color c. So no pixel lies
outside c + M (cube - c), the spread of the pixels grows with r as M does, and rounding makes the pattern of whole
levels that a contraction by M leaves (roundings.py), which is sharp enough to tell one severity from the next.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.degradations.estimation.posterior import levels

NODES = 8192  # of the radial table
LIVELY = 30.0  # levels off the hole's color, or off the neighbors, that count as no hole at all
LARGEST = 2**20  # pixels that the search runs over; a larger picture is looked at in every so many-th row and column
SCALES = 9  # hole sizes that are searched for
AROUND = 3  # pixels about a place found in which its true center is looked for
WIDEST = 2048  # pixels of a side among which a place's surroundings are drawn
SAMPLE = 2000  # pixels around a place that are compared with each severity
ALIKE = 100.0  # pixels of a photograph that tell no more than one, their neighbors being like them
STRAY = 0.02 / 256  # of a pixel's chance: edited, or changed by compression
BY_SPREAD = 0.1  # of the evidence among severities, where the spread of the pixels alone tells them apart
PATTERN_WORTH = 0.3
PATTERN_CLEAR = 7.0  # standard deviations by which the best place's pattern must stand out to be believed
CHANCE_HOLE = 6.0  # a photograph's own dark or flat spot passes for a hole of a pixel or two with about this evidence


@dataclasses.dataclass(frozen=True)
class Hole:
    """A place: its center in pixels, the color (C,) in levels, and the log evidence of every severity (S,)."""

    row: int
    col: int
    color: Tensor
    evidence: Tensor


@dataclasses.dataclass(frozen=True)
class HoleMasks:
    """M by distance for severities t: table (S, NODES) float32 at even distances up to `reach` pixels, t = 0 first."""

    table: Tensor
    reach: float

    def at(self, distance: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return M at distances (N,) for some severities: (S, N)."""
        place = (distance * ((NODES - 1) / self.reach)).clamp(max=NODES - 1.001)
        low = place.long()
        table = self.table[rows]
        return torch.lerp(table[:, low], table[:, low + 1], (place - low).to(table.dtype))

    def radius(self, row: int, kept: float) -> float:
        """Return the distance within which less than `kept` of a pixel is left."""
        return float((self.table[row] < kept).sum()) / (NODES - 1) * self.reach


def find_hole(x: Tensor, masks: HoleMasks, color: Tensor | None, center: tuple[int, int] | None) -> Hole:
    """Return the likeliest hole in a picture.

    x: (C, H, W) float32 in [-1, 1], rounded to 8 bits; color: (C,) levels, None where it is unknown; center: where it
    is known.
    """
    own = _histogram(x)
    places = [center] if center else _places(x, masks, color)
    seen = [
        _closely(x, masks, color if color is not None else levels(x[:, row, col]).round(), row, col, own)
        for row, col in places
    ]
    hole = max(seen, key=lambda found: float(found.evidence.max()))
    if center or not int(hole.evidence.argmax()):
        return hole
    hole = _climbed(x, masks, hole)
    found = None if color is None else _by_pattern(x, masks, hole)
    if found:
        return found
    # Holes of many sizes fit nearly as well, each with its center a little off.
    evidence = hole.evidence.clone()
    evidence[1:] = evidence.max() + BY_SPREAD * (evidence[1:] - evidence.max())
    return dataclasses.replace(hole, evidence=evidence)


def _places(x: Tensor, masks: HoleMasks, color: Tensor | None) -> list[tuple[int, int]]:
    """Return where the picture is nearest to the color, or flattest, over discs of several sizes."""
    stride = max(1, math.ceil(math.sqrt(x.shape[-2] * x.shape[-1] / LARGEST)))
    y = levels(x[:, ::stride, ::stride]).round()
    if color is not None:
        lively = (y - color[:, None, None]).abs().amax(0)
    else:
        padded = F.pad(y[None], (1, 1, 1, 1), mode="replicate")
        lively = (F.max_pool2d(padded, 3, 1) + F.max_pool2d(-padded, 3, 1)).amax(1)[0]
    lively = lively.clamp(max=LIVELY) / LIVELY
    height, width = lively.shape
    found = []
    for row in torch.logspace(0, math.log10(len(masks.table) - 1), SCALES).round().long().unique().tolist():
        radius = min(int(masks.radius(row, 0.9) / stride) + 2, max(height, width))
        offsets = torch.arange(-radius, radius + 1)
        distance = (offsets[:, None].square() + offsets.square()).float().sqrt().view(-1) * stride
        disc = (1 - masks.at(distance, slice(row, row + 1))).pow(4).view(2 * radius + 1, -1)
        # Linear correlation by FFT, the border made of nothing: a disc counts what of it lies in the picture.
        size = (height + 2 * radius, width + 2 * radius)
        kernel = torch.fft.rfft2(disc, s=size).conj()

        def within(
            values: Tensor, kernel: Tensor = kernel, radius: int = radius, size: tuple[int, int] = size
        ) -> Tensor:
            spread = torch.fft.rfft2(F.pad(values, (radius,) * 4)) * kernel
            return torch.fft.irfft2(spread, s=size)[:height, :width]

        place = int((within(lively) / within(torch.ones_like(lively))).argmin())
        found.append((place // width * stride, place % width * stride))
    return list(dict.fromkeys(found))


def _sample(x: Tensor, masks: HoleMasks, row: int, col: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return some pixels around a place: values (C, N), rows and columns (N,)."""
    radius = int(masks.radius(len(masks.table) - 1, 0.995)) + 1
    top, left = max(row - radius, 0), max(col - radius, 0)
    # Of a wide surrounding every few pixels, for more than 2^24 cannot be drawn from.
    stride = max(1, -(-2 * radius // WIDEST))
    part = x[:, top : row + radius + 1 : stride, left : col + radius + 1 : stride]
    height, width = part.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    # As many at every distance: a small hole would get none of a wide square's pixels.
    count = min(SAMPLE, height * width)
    rows = torch.arange(height)[:, None].expand(height, width).reshape(-1) * stride + top
    cols = torch.arange(width).expand(height, width).reshape(-1) * stride + left
    apart = ((rows - row).square() + (cols - col).square()).float().sqrt() + 1
    chosen = (
        torch.multinomial(1 / apart, count, generator=generator) if count < len(apart) else torch.arange(len(apart))
    )
    return levels(part.reshape(len(part), -1)[:, chosen]).round(), rows[chosen], cols[chosen]


def _closely(x: Tensor, masks: HoleMasks, color: Tensor, row: int, col: int, own: Tensor) -> Hole:
    """Return the evidence of every severity at one place, by the spread of the pixels around it."""
    values, rows, cols = _sample(x, masks, row, col)
    distance = ((rows - row).square() + (cols - col).square()).float().sqrt()
    kept = masks.at(distance)[:, None]
    before = (values - color[:, None]) / kept.clamp(min=1e-4) + color[:, None]
    # Each pixel is worth its share of the ring that it was drawn from, a patch of alike ones a pixel.
    worth = (2 * math.pi * distance + 1) / _crowd(distance) / ALIKE
    chance = _chance(own, before, 0.5 / kept.clamp(min=1e-4)) / kept.clamp(min=1e-4) + STRAY
    plain = _chance(own, values[None], torch.full((1, 1, 1), 0.5)) + STRAY
    gain = ((chance.log() - plain.log()).mean(1) * worth).sum(-1) * math.sqrt(len(values))
    gain[1:] -= CHANCE_HOLE
    return Hole(row, col, color, gain)


def _crowd(distance: Tensor) -> Tensor:
    """Return how many of the distances lie in each one's ring, a pixel wide."""
    ring = distance.round().long()
    return torch.bincount(ring)[ring].float()


def _histogram(x: Tensor) -> Tensor:
    """Return the running share of a picture's levels below 0, 1, .. 256, a part of it spread evenly: (257,) float32."""
    stride = max(1, math.ceil(math.sqrt(x.shape[-2] * x.shape[-1] / LARGEST)))
    counts = torch.bincount(
        levels(x[:, ::stride, ::stride]).round().long().flatten().clamp(0, 255), minlength=256
    ).float()
    share = 0.7 * counts / counts.sum() + 0.3 / 256
    return torch.cat([torch.zeros(1), share.cumsum(0)])


def _chance(own: Tensor, value: Tensor, half: Tensor) -> Tensor:
    """Return the density of levels about `value`, averaged over what rounds to it, none outside 0..255."""

    def below(v: Tensor) -> Tensor:
        place = (v + 0.5).clamp(0, 256)
        low = place.long().clamp(max=255)
        return torch.lerp(own[low], own[low + 1], place - low)

    return (below(value + half) - below(value - half)) / (2 * half)


def _by_pattern(x: Tensor, masks: HoleMasks, hole: Hole) -> Hole | None:
    """Return the hole with its center and severity found to the pixel, by the pattern of rounding if that is clear."""
    best = int(hole.evidence.argmax())
    last = len(masks.table) - 1
    rows_of = torch.arange(max(1, int(best * 0.6) - 2), min(last, int(best * 1.7) + 3) + 1)
    places = [
        (hole.row + down, hole.col + along)
        for down in range(-AROUND, AROUND + 1)
        for along in range(-AROUND, AROUND + 1)
        if 0 <= hole.row + down < x.shape[-2] and 0 <= hole.col + along < x.shape[-1]
    ]
    own = _histogram(x)
    values, rows, cols = _sample(x, masks, hole.row, hole.col)
    scores = []
    for row, col in places:
        distance = ((rows - row).square() + (cols - col).square()).float().sqrt()
        scores.append(_pattern(values, masks.at(distance, rows_of)[:, None], hole.color))
    every = torch.stack(scores)
    apart = every - every.median()
    if apart.max() > PATTERN_CLEAR * 1.48 * apart.abs().median():
        row, col = places[int(every.amax(1).argmax())]
        found = _closely(x, masks, hole.color, row, col, own)
        evidence = found.evidence.clone()
        evidence[rows_of] += PATTERN_WORTH * apart.amax(0)
        return dataclasses.replace(found, evidence=evidence)
    return None


def _climbed(x: Tensor, masks: HoleMasks, hole: Hole) -> Hole:
    """Return the likeliest hole that is reached from one by moving its center, by fewer and fewer pixels."""
    own = _histogram(x)
    step = 8
    while step:
        moved = [
            _closely(x, masks, hole.color, row, col, own)
            for row, col in ((hole.row + a * step, hole.col + b * step) for a in (-1, 0, 1) for b in (-1, 0, 1))
            if 0 <= row < x.shape[-2] and 0 <= col < x.shape[-1] and (row, col) != (hole.row, hole.col)
        ]
        top = max([hole, *moved], key=lambda found: float(found.evidence.max()))
        step = step if top is not hole else step // 2
        hole = top
    return hole


def _pattern(values: Tensor, kept: Tensor, color: Tensor) -> Tensor:
    """Return how well whole levels (C, N) fit what contractions by `kept` (S, 1, N) toward a color make: (S,)."""
    offset = (1 - kept) * color[:, None]
    inner = kept.clamp(min=1e-3)
    low = torch.ceil((values - 0.5 - offset) / inner).clamp(0, 256)
    high = torch.ceil((values + 0.5 - offset) / inner).clamp(0, 256)
    telling = (kept > 0.03) & (kept < 0.995)
    return (torch.log(((high - low) * inner).clamp(min=0.05)) * telling).sum((1, 2))
