"""How much of a picture's spectrum a blur has taken: power by frequency, down to what rounding put there.

A photograph's power falls as a power of the frequency. A blur multiplies it by its own gain, and rounding
to 8 bits adds the same small power everywhere; where the one sinks into the other tells the blur's width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from colddiff_core.degradations.estimation.posterior import is_gray, levels, tiles

SIDE = 512  # pixels of a tile
TILES = 3  # along each axis of a large picture
BINS = 28
LEAST_BINS = 6
HIGHEST = 0.66  # cycles a pixel: nearly the diagonal's end, past what a row or a column has
# The logarithm of a sharp photograph's power, in squared levels, over PIVOT's logarithm L, L^2 and -(2 pi f)^2, the
# last its own softness in squared pixels: mean and covariance over scikit-image's and scikit-learn's photographs at
# full and half size, 40 faces of CelebA's training images and 30 cats of AFHQ's, each group weighing the same.
PIVOT = 0.1  # cycles a pixel
MEAN = (8.586, -2.477, -0.081, 0.085)
COVARIANCE = (
    (0.5449, -0.0188, -0.0477, 0.0159),
    (-0.0188, 0.2073, 0.0562, 0.0292),
    (-0.0477, 0.0562, 0.0951, 0.0242),
    (0.0159, 0.0292, 0.0242, 0.0124),
)
UNEVEN = 0.25  # how far a photograph's log power strays from that course, from bin to bin
# What lies under the picture, over the power of rounding, as logarithms and their log chances: rounding alone, less of
# it where areas are flat, more in a file that was compressed.
FLOORS = (-2.0, -1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
UNLIKELY = 1.0  # per unit of that logarithm
ROUNDS = 12  # of Gauss-Newton
WORTH = 0.5  # of the evidence: the bins are not quite independent


def blur_evidence(x: Tensor, gains: tuple[Tensor, Tensor]) -> Tensor:
    """Return the log evidence of each of S blurs in a picture.

    x: (1, C, H, W) float32; gains: their power's gain along columns and rows, at the frequencies of rfft2
    over `tile_sides(x)`, (S, h) and (S, w // 2 + 1) float64; returns (S,) float64. All are 0 where the
    picture is too small to tell.
    """
    power, bins, counts, centers = _spectrum(x)
    seen = counts > 3
    if int(seen.sum()) < LEAST_BINS or not bool((power[seen] > 0).all()):
        return torch.zeros(len(gains[0]), dtype=torch.float64)
    passed = torch.stack([_binned(rows[:, None] * columns, bins) for rows, columns in zip(*gains, strict=True)])
    passed = (passed / counts.clamp(min=1))[:, seen].clamp(min=1e-30).log()
    return WORTH * _profile(power[seen].log(), counts[seen], centers[seen], passed, _rounding(x))


def tile_sides(x: Tensor) -> tuple[int, int]:
    """Return the height and width of the tiles that a picture's spectrum is taken over."""
    return min(x.shape[-2], SIDE), min(x.shape[-1], SIDE)


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the power in rings of frequencies, each frequency's ring, how many each ring has and where it is."""
    height, width = tile_sides(x)
    window = _window(height)[:, None] * _window(width)
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = (rows[:, None].square() + columns.square()).sqrt()
    lowest = min(2.5 / min(height, width), HIGHEST / 2)
    edges = torch.logspace(math.log10(lowest), math.log10(HIGHEST), BINS + 1, dtype=torch.float64)
    bins = torch.bucketize(radius, edges)  # 0 and BINS + 1 lie outside
    power = torch.zeros(BINS, dtype=torch.float64)
    parts = tiles(x, SIDE, TILES)
    for part in parts:
        y = levels(part).mean(1)[0].double()
        y = (y - (y * window).sum() / window.sum()) * window
        power += _binned(torch.fft.rfft2(y).abs().square(), bins) / (window.square().sum() * len(parts))
    counts = _binned(torch.ones_like(radius), bins)
    return power / counts.clamp(min=1), bins, counts, _binned(radius, bins) / counts.clamp(min=1)


def _binned(values: Tensor, bins: Tensor) -> Tensor:
    return torch.bincount(bins.view(-1), values.reshape(-1), minlength=BINS + 2)[1 : BINS + 1]


def _window(n: int) -> Tensor:
    return torch.hann_window(n + 2, periodic=False, dtype=torch.float64)[1:-1]


def _rounding(x: Tensor) -> float:
    """Return the power of rounding in the mean of the channels, in squared levels."""
    return 1 / 12 if is_gray(x) else 1 / 36


def _profile(seen: Tensor, counts: Tensor, centers: Tensor, passed: Tensor, rounding: float) -> Tensor:
    """Return each blur's log evidence: the photograph's own spectrum and the floor fitted, then summed out.

    seen, counts, centers: (B,), log power, its count and its frequency; passed: (S, B) log gain; returns (S,).
    """
    course = (centers / PIVOT).log()
    basis = torch.stack(
        [torch.ones_like(course), course, course.square(), -(2 * math.pi * centers).square()], 1
    )  # (B, 4)
    prior_mean = torch.tensor(MEAN, dtype=torch.float64)
    precision = torch.linalg.inv(torch.tensor(COVARIANCE, dtype=torch.float64))
    weight = 1 / (UNEVEN**2 + 2 / counts)
    floors = torch.tensor(FLOORS, dtype=torch.float64)
    floor = (floors + math.log(rounding))[:, None]  # (E, 1)
    shape = (len(passed), len(floors))
    theta = prior_mean.expand(*shape, 4).clone()
    damping = 0.3 * torch.eye(4, dtype=torch.float64) * precision.diagonal()

    def misfit(at: Tensor) -> tuple[Tensor, Tensor]:
        own = at @ basis.T + passed[:, None]
        return seen - torch.logaddexp(own, floor), torch.sigmoid(own - floor)

    for turn in range(ROUNDS):
        off, share = misfit(theta)
        slopes = share[..., None] * basis
        curvature = torch.einsum("...bi,b,...bj->...ij", slopes, weight, slopes) + precision
        downhill = torch.einsum("...bi,b,...b->...i", slopes, weight, off) - (theta - prior_mean) @ precision
        theta = theta + torch.linalg.solve(curvature + (damping if turn < ROUNDS // 2 else 0), downhill)
    off, _ = misfit(theta)
    apart = theta - prior_mean
    energy = (weight * off.square()).sum(-1) + torch.einsum("...i,ij,...j->...", apart, precision, apart)
    evidence = -0.5 * (energy + torch.logdet(curvature)) - UNLIKELY * floors.abs()
    return torch.logsumexp(evidence, 1)
