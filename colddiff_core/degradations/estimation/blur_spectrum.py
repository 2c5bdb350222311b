"""Blur evidence from the power spectrum: the frequency where the picture sinks into rounding noise.

A photograph's power falls as a power of the frequency. A blur multiplies it by its gain, and rounding to 8 bits adds
the same small power at every frequency. Where one sinks into the other gives the blur's width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from colddiff_core.degradations.estimation.posterior import is_gray, levels, tiles

TILE_SIDE_PIXELS = 512
TILES_PER_AXIS = 3
BINS = 28
MIN_BINS = 6
HIGHEST_CYCLES_PER_PIXEL = 0.66  # nearly the end of the diagonal, beyond what a row or a column has
# The log power of a sharp photograph, in squared levels, is fitted by 1, L, L^2 and -(2 pi f)^2, L = log(f / pivot).
# The last coefficient is the photograph's own softness in squared pixels. Mean and covariance of the coefficients are
# measured on scikit-image's and scikit-learn's photographs at full and half size, 40 faces of CelebA's training images
# and 30 cats of AFHQ's, with equal weight for each group.
PIVOT_CYCLES_PER_PIXEL = 0.1
MEAN = (8.586, -2.477, -0.081, 0.085)
COVARIANCE = (
    (0.5449, -0.0188, -0.0477, 0.0159),
    (-0.0188, 0.2073, 0.0562, 0.0292),
    (-0.0477, 0.0562, 0.0951, 0.0242),
    (0.0159, 0.0292, 0.0242, 0.0124),
)
SPECTRUM_STD = 0.25  # deviation of a photograph's log power from that fit, per bin
# Log of the noise floor over the power of rounding: 0 for rounding alone, less where areas are flat, more in a
# compressed file.
LOG_FLOORS = (-2.0, -1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
FLOOR_PENALTY = 1.0  # log probability per unit of that log
GAUSS_NEWTON_STEPS = 12
EVIDENCE_WEIGHT = 0.5  # the bins are not quite independent


def blur_evidence(x: Tensor, gains: tuple[Tensor, Tensor]) -> Tensor:
    """Return the log evidence for each of S blurs: (S,) float64, all 0 if the picture is too small or too flat.

    Args:
        x: the picture, (1, C, H, W) float32 in [-1, 1].
        gains: the power gains of the blurs along columns and rows, at the frequencies of rfft2 over `tile_sides(x)`:
            (S, h) and (S, w // 2 + 1) float64.
    """
    power, bins, counts, centers = _spectrum(x)
    is_usable = counts > 3
    if int(is_usable.sum()) < MIN_BINS or not bool((power[is_usable] > 0).all()):
        return torch.zeros(len(gains[0]), dtype=torch.float64)
    log_gains = torch.stack([_sum_by_bin(rows[:, None] * columns, bins) for rows, columns in zip(*gains, strict=True)])
    log_gains = (log_gains / counts.clamp(min=1))[:, is_usable].clamp(min=1e-30).log()
    fitted = _marginal_evidence(
        power[is_usable].log(), counts[is_usable], centers[is_usable], log_gains, _rounding_power(x)
    )
    return EVIDENCE_WEIGHT * fitted


def tile_sides(x: Tensor) -> tuple[int, int]:
    """Return the height and width of the tiles over which the spectrum of x (1, C, H, W) is taken."""
    return min(x.shape[-2], TILE_SIDE_PIXELS), min(x.shape[-1], TILE_SIDE_PIXELS)


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean power per bin, each frequency's bin, the bins' counts and their mean frequencies."""
    height, width = tile_sides(x)
    window = _window(height)[:, None] * _window(width)
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = (rows[:, None].square() + columns.square()).sqrt()
    lowest = min(2.5 / min(height, width), HIGHEST_CYCLES_PER_PIXEL / 2)
    edges = torch.logspace(math.log10(lowest), math.log10(HIGHEST_CYCLES_PER_PIXEL), BINS + 1, dtype=torch.float64)
    bins = torch.bucketize(radius, edges)  # 0 and BINS + 1 are outside
    power = torch.zeros(BINS, dtype=torch.float64)
    views = tiles(x, TILE_SIDE_PIXELS, TILES_PER_AXIS)
    for view in views:
        y = levels(view).mean(1)[0].double()
        y = (y - (y * window).sum() / window.sum()) * window
        power += _sum_by_bin(torch.fft.rfft2(y).abs().square(), bins) / (window.square().sum() * len(views))
    counts = _sum_by_bin(torch.ones_like(radius), bins)
    return power / counts.clamp(min=1), bins, counts, _sum_by_bin(radius, bins) / counts.clamp(min=1)


def _sum_by_bin(values: Tensor, bins: Tensor) -> Tensor:
    return torch.bincount(bins.view(-1), values.reshape(-1), minlength=BINS + 2)[1 : BINS + 1]


def _window(n: int) -> Tensor:
    return torch.hann_window(n + 2, periodic=False, dtype=torch.float64)[1:-1]


def _rounding_power(x: Tensor) -> float:
    """Return the power that rounding adds to the mean of the channels, in squared levels."""
    return 1 / 12 if is_gray(x) else 1 / 36


def _marginal_evidence(measured: Tensor, counts: Tensor, centers: Tensor, log_gains: Tensor, rounding: float) -> Tensor:
    """Return each blur's log evidence (S,), the photograph's spectrum and the noise floor marginalized out.

    measured, counts, centers: (B,), log power, its count and its frequency; log_gains: (S, B).
    """
    log_frequency = (centers / PIVOT_CYCLES_PER_PIXEL).log()
    basis = torch.stack(
        [torch.ones_like(log_frequency), log_frequency, log_frequency.square(), -(2 * math.pi * centers).square()], 1
    )  # (B, 4)
    prior_mean = torch.tensor(MEAN, dtype=torch.float64)
    precision = torch.linalg.inv(torch.tensor(COVARIANCE, dtype=torch.float64))
    weight = 1 / (SPECTRUM_STD**2 + 2 / counts)
    log_floors = torch.tensor(LOG_FLOORS, dtype=torch.float64)
    floor = (log_floors + math.log(rounding))[:, None]  # (E, 1)
    shape = (len(log_gains), len(log_floors))
    theta = prior_mean.expand(*shape, 4).clone()
    damping = 0.3 * torch.eye(4, dtype=torch.float64) * precision.diagonal()

    def misfit(at: Tensor) -> tuple[Tensor, Tensor]:
        signal = at @ basis.T + log_gains[:, None]
        return measured - torch.logaddexp(signal, floor), torch.sigmoid(signal - floor)

    for iteration in range(GAUSS_NEWTON_STEPS):
        misfits, share = misfit(theta)
        slopes = share[..., None] * basis
        curvature = torch.einsum("...bi,b,...bj->...ij", slopes, weight, slopes) + precision
        downhill = torch.einsum("...bi,b,...b->...i", slopes, weight, misfits) - (theta - prior_mean) @ precision
        theta = theta + torch.linalg.solve(
            curvature + (damping if iteration < GAUSS_NEWTON_STEPS // 2 else 0), downhill
        )
    misfits, _ = misfit(theta)
    shift = theta - prior_mean
    energy = (weight * misfits.square()).sum(-1) + torch.einsum("...i,ij,...j->...", shift, precision, shift)
    evidence = -0.5 * (energy + torch.logdet(curvature)) - FLOOR_PENALTY * log_floors.abs()
    return torch.logsumexp(evidence, 1)
