"""Find a Gaussian hole in a picture: its center and how far it has grown.

A pixel at distance r from the center keeps M_t(r) of its difference from the hole's color c. So no pixel lies outside
c + M (cube - c), the spread of the pixels grows with r as M does, and rounding leaves the pattern of a contraction by M
(rounding_pattern.py), which is sharp enough to separate neighboring severities.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.degradations.estimation.posterior import levels

RADIAL_NODES = 8192  # entries of a radial table
MAX_CONTRAST_LEVELS = 30.0  # difference from the hole's color, or from the neighbors, that rules a hole out
SEARCH_PIXELS = 2**20  # a larger picture is searched in every few rows and columns
SCALES = 9  # hole sizes searched for
REFINE_RADIUS_PIXELS = 3  # around a candidate, where its exact center is searched
SAMPLE_SIDE_PIXELS = 2048  # of the grid around a place from which the samples are drawn
SAMPLES = 2000  # pixels around a place compared with each severity
CORRELATED_PIXELS = 100.0  # neighboring pixels of a photograph that count as one independent sample
OUTLIER_DENSITY = 0.02 / 256  # per level: edited, or changed by compression
SPREAD_WEIGHT = 0.1  # of the evidence, if only the spread of the pixels separates the severities
PATTERN_WEIGHT = 0.3  # of the evidence from the rounding pattern
PATTERN_MIN_Z = 7.0  # standard deviations by which the best place's pattern must stand out
CHANCE_HOLE = 6.0  # log evidence with which a photograph's own dark or flat spot passes for a tiny hole


@dataclasses.dataclass(frozen=True)
class Hole:
    """A candidate hole: its center in pixels, color (C,) in levels, and the log evidence (S,) for each severity."""

    row: int
    col: int
    color: Tensor
    evidence: Tensor


@dataclasses.dataclass(frozen=True)
class HoleMasks:
    """M_t by distance for S severities, t = 0 first.

    table: (S, RADIAL_NODES) float32, at evenly spaced distances from 0 to `reach` pixels.
    """

    table: Tensor
    reach: float

    def at(self, distance: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return M at distances (N,) for the selected severities: (S, N) float32."""
        place = (distance * ((RADIAL_NODES - 1) / self.reach)).clamp(max=RADIAL_NODES - 1.001)
        low = place.long()
        table = self.table[rows]
        return torch.lerp(table[:, low], table[:, low + 1], (place - low).to(table.dtype))

    def radius(self, row: int, kept: float) -> float:
        """Return the distance in pixels within which less than the share `kept` of a pixel is left."""
        return float((self.table[row] < kept).sum()) / (RADIAL_NODES - 1) * self.reach


def find_hole(x: Tensor, masks: HoleMasks, color: Tensor | None, center: tuple[int, int] | None) -> Hole:
    """Return the most likely hole in a picture.

    Args:
        x: the picture, (C, H, W) float32 in [-1, 1], rounded to 8 bits.
        masks: M_t for the candidate severities.
        color: the hole's color, (C,) in levels, or None if unknown.
        center: the hole's row and column, or None if unknown.
    """
    histogram = _cumulative_histogram(x)
    places = [center] if center else _places(x, masks, color)
    holes = [
        _hole_at(x, masks, color if color is not None else levels(x[:, row, col]).round(), row, col, histogram)
        for row, col in places
    ]
    hole = max(holes, key=lambda candidate: float(candidate.evidence.max()))
    if center or not int(hole.evidence.argmax()):
        return hole
    hole = _climb(x, masks, hole)
    exact = None if color is None else _match_pattern(x, masks, hole)
    if exact:
        return exact
    # Many sizes fit nearly as well, each with its center slightly off.
    evidence = hole.evidence.clone()
    evidence[1:] = evidence.max() + SPREAD_WEIGHT * (evidence[1:] - evidence.max())
    return dataclasses.replace(hole, evidence=evidence)


def _places(x: Tensor, masks: HoleMasks, color: Tensor | None) -> list[tuple[int, int]]:
    """Return the places where the picture is nearest to the color, or flattest, one per disc size."""
    stride = max(1, math.ceil(math.sqrt(x.shape[-2] * x.shape[-1] / SEARCH_PIXELS)))
    y = levels(x[:, ::stride, ::stride]).round()
    if color is not None:
        contrast = (y - color[:, None, None]).abs().amax(0)
    else:
        padded = F.pad(y[None], (1, 1, 1, 1), mode="replicate")
        contrast = (F.max_pool2d(padded, 3, 1) + F.max_pool2d(-padded, 3, 1)).amax(1)[0]
    contrast = contrast.clamp(max=MAX_CONTRAST_LEVELS) / MAX_CONTRAST_LEVELS
    height, width = contrast.shape
    places = []
    for row in torch.logspace(0, math.log10(len(masks.table) - 1), SCALES).round().long().unique().tolist():
        radius = min(int(masks.radius(row, 0.9) / stride) + 2, max(height, width))
        offsets = torch.arange(-radius, radius + 1)
        distance = (offsets[:, None].square() + offsets.square()).float().sqrt().view(-1) * stride
        disc = (1 - masks.at(distance, slice(row, row + 1))).pow(4).view(2 * radius + 1, -1)
        # Linear correlation by FFT with zero padding: a disc counts only its part inside the picture.
        size = (height + 2 * radius, width + 2 * radius)
        kernel = torch.fft.rfft2(disc, s=size).conj()

        def disc_sum(
            values: Tensor, kernel: Tensor = kernel, radius: int = radius, size: tuple[int, int] = size
        ) -> Tensor:
            spread = torch.fft.rfft2(F.pad(values, (radius,) * 4)) * kernel
            return torch.fft.irfft2(spread, s=size)[:height, :width]

        place = int((disc_sum(contrast) / disc_sum(torch.ones_like(contrast))).argmin())
        places.append((place // width * stride, place % width * stride))
    return list(dict.fromkeys(places))


def _sample(x: Tensor, masks: HoleMasks, row: int, col: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a sample of pixels around a place: values (C, N), rows and columns (N,)."""
    radius = int(masks.radius(len(masks.table) - 1, 0.995)) + 1
    top, left = max(row - radius, 0), max(col - radius, 0)
    # Every few pixels of a wide area: torch.multinomial takes at most 2^24 categories.
    stride = max(1, -(-2 * radius // SAMPLE_SIDE_PIXELS))
    part = x[:, top : row + radius + 1 : stride, left : col + radius + 1 : stride]
    height, width = part.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    # Evenly over distance: uniform over the square, a small hole would get no samples.
    count = min(SAMPLES, height * width)
    rows = torch.arange(height)[:, None].expand(height, width).reshape(-1) * stride + top
    cols = torch.arange(width).expand(height, width).reshape(-1) * stride + left
    distance = ((rows - row).square() + (cols - col).square()).float().sqrt() + 1
    everything = torch.arange(len(distance))
    chosen = torch.multinomial(1 / distance, count, generator=generator) if count < len(distance) else everything
    return levels(part.reshape(len(part), -1)[:, chosen]).round(), rows[chosen], cols[chosen]


def _hole_at(x: Tensor, masks: HoleMasks, color: Tensor, row: int, col: int, histogram: Tensor) -> Hole:
    """Return a hole at one place, with the evidence for each severity from the spread of the pixels around it."""
    values, rows, cols = _sample(x, masks, row, col)
    distance = ((rows - row).square() + (cols - col).square()).float().sqrt()
    kept = masks.at(distance)[:, None]
    before = (values - color[:, None]) / kept.clamp(min=1e-4) + color[:, None]
    # A sample stands for its share of the ring that it was drawn from, in independent pixels.
    weight = (2 * math.pi * distance + 1) / _ring_counts(distance) / CORRELATED_PIXELS
    with_hole = _density(histogram, before, 0.5 / kept.clamp(min=1e-4)) / kept.clamp(min=1e-4) + OUTLIER_DENSITY
    without = _density(histogram, values[None], torch.full((1, 1, 1), 0.5)) + OUTLIER_DENSITY
    evidence = ((with_hole.log() - without.log()).mean(1) * weight).sum(-1) * math.sqrt(len(values))
    evidence[1:] -= CHANCE_HOLE
    return Hole(row, col, color, evidence)


def _ring_counts(distance: Tensor) -> Tensor:
    """Return, for each distance, how many of the distances share its ring, one pixel wide."""
    ring = distance.round().long()
    return torch.bincount(ring)[ring].float()


def _cumulative_histogram(x: Tensor) -> Tensor:
    """Return the share of a picture's levels below 0, 1, ..., 256, smoothed with a uniform part: (257,) float32."""
    stride = max(1, math.ceil(math.sqrt(x.shape[-2] * x.shape[-1] / SEARCH_PIXELS)))
    counts = torch.bincount(
        levels(x[:, ::stride, ::stride]).round().long().flatten().clamp(0, 255), minlength=256
    ).float()
    share = 0.7 * counts / counts.sum() + 0.3 / 256
    return torch.cat([torch.zeros(1), share.cumsum(0)])


def _density(histogram: Tensor, value: Tensor, half: Tensor) -> Tensor:
    """Return the mean density of levels in value - half..value + half; it is 0 outside 0..255."""

    def below(v: Tensor) -> Tensor:
        place = (v + 0.5).clamp_(0, 256)
        low = place.int().clamp_(max=255)
        # A search spends most of its time here: index_select and work in place take a third of it.
        here, above = (table.index_select(0, low.view(-1)).view_as(low) for table in (histogram, histogram[1:]))
        return here.lerp_(above, place.sub_(low))

    return below(value + half).sub_(below(value - half)).div_(2 * half)


def _match_pattern(x: Tensor, masks: HoleMasks, hole: Hole) -> Hole | None:
    """Return the hole with its exact center and severity from the rounding pattern, or None if that is not clear."""
    best = int(hole.evidence.argmax())
    last = len(masks.table) - 1
    nearby = torch.arange(max(1, int(best * 0.6) - 2), min(last, int(best * 1.7) + 3) + 1)
    places = [
        (hole.row + down, hole.col + along)
        for down in range(-REFINE_RADIUS_PIXELS, REFINE_RADIUS_PIXELS + 1)
        for along in range(-REFINE_RADIUS_PIXELS, REFINE_RADIUS_PIXELS + 1)
        if 0 <= hole.row + down < x.shape[-2] and 0 <= hole.col + along < x.shape[-1]
    ]
    histogram = _cumulative_histogram(x)
    values, rows, cols = _sample(x, masks, hole.row, hole.col)
    scores = []
    for row, col in places:
        distance = ((rows - row).square() + (cols - col).square()).float().sqrt()
        scores.append(_pattern_score(values, masks.at(distance, nearby)[:, None], hole.color))
    stacked = torch.stack(scores)
    excess = stacked - stacked.median()
    if excess.max() > PATTERN_MIN_Z * 1.48 * excess.abs().median():
        row, col = places[int(stacked.amax(1).argmax())]
        exact = _hole_at(x, masks, hole.color, row, col, histogram)
        evidence = exact.evidence.clone()
        evidence[nearby] += PATTERN_WEIGHT * excess.amax(0)
        return dataclasses.replace(exact, evidence=evidence)
    return None


def _climb(x: Tensor, masks: HoleMasks, hole: Hole) -> Hole:
    """Return the most likely hole reached by moving the center uphill in ever smaller steps."""
    histogram = _cumulative_histogram(x)
    step = 8
    while step:
        moved = [
            _hole_at(x, masks, hole.color, row, col, histogram)
            for row, col in ((hole.row + a * step, hole.col + b * step) for a in (-1, 0, 1) for b in (-1, 0, 1))
            if 0 <= row < x.shape[-2] and 0 <= col < x.shape[-1] and (row, col) != (hole.row, hole.col)
        ]
        best = max([hole, *moved], key=lambda candidate: float(candidate.evidence.max()))
        step = step if best is not hole else step // 2
        hole = best
    return hole


def _pattern_score(values: Tensor, kept: Tensor, color: Tensor) -> Tensor:
    """Return how well whole levels (C, N) fit contractions by `kept` (S, 1, N) toward a color: (S,)."""
    offset = (1 - kept) * color[:, None]
    inner = kept.clamp(min=1e-3)
    low = torch.ceil((values - 0.5 - offset) / inner).clamp(0, 256)
    high = torch.ceil((values + 0.5 - offset) / inner).clamp(0, 256)
    is_informative = (kept > 0.03) & (kept < 0.995)
    return (torch.log(((high - low) * inner).clamp(min=0.05)) * is_informative).sum((1, 2))
