"""Snow evidence from symmetry: snow is the same after a half turn, photographs are not.

So what opposite pixels share beyond chance is snow: its contrast at several scales along rows and columns, and how
white the whole picture is. Expected values per severity come from snowing on synthetic pictures of many brightnesses
and contrasts. Whether it snows at all shows best in the bright spots: do more of them lie opposite each other than
after any other shift?
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.degradations.base import Degradation

SIDE_PIXELS = 256  # of the center that is used; a half turn maps it onto itself
SEVERITIES = 20  # simulated; a polynomial interpolates between them
PICTURES = 8  # simulated per severity
SCALES_PIXELS = (1, 2, 4)
WHITE = 0.985  # of [0, 1]: a brighter pixel may be clipped, which hides its flake
MIN_DARK_SHARE = (
    0.05  # of pixels that are white on neither side, below which a picture says nothing; bad snow leaves 16%
)
RARE = 2e-3  # share of pixels white on both sides: common for flakes, rare for a photograph's highlights
LINEAR_CONTRAST = 2e-3  # half a level: a statistic is linear in the contrast below this and logarithmic above
DEGREE = 4  # of the polynomials
SPOT_SIDE_PIXELS = 512  # of the center in which spots are compared
SPOT_PIXELS = 3  # side of the square over whose median a spot rises
BUSY_PIXELS = 17  # side of the square by whose contrast a spot is divided
MIN_BUSY = 0.01  # of [0, 1]
# Standard deviations by which opposite spots match better than shifted ones. Photographs reach 2.9, snow is above 5 but
# in a few dense textures (scikit-image's and scikit-learn's photographs, CelebA's training images, AFHQ's cats).
MATCH_Z = 5.0
MOST_MATCH_EVIDENCE = 30.0
LEAST_MATCH_EVIDENCE = (-3.0, -10.0)  # for a tiny picture and for one of FULL_PIXELS, which has enough spots
FULL_PIXELS = 64**2
BANDWIDTH = 0.07  # of the steps: severities this close scatter alike
EVIDENCE_WEIGHT = 0.7  # photographs vary more than synthetic pictures
# Photographs' brightness and contrast in [0, 1] vary about as much (scikit-image's and scikit-learn's photographs,
# faces of CelebA's training images, cats of AFHQ's). With this range of spectral slopes the snow of those photographs
# is estimated without bias; a slope of 1.1 alone overestimated it by 7%, 1.9 underestimated it by 10%.
SPECTRAL_SLOPE = (1.1, 1.7)  # amplitude ~ 1 / frequency^slope
BRIGHTNESS = (0.15, 0.85)
CONTRAST = (0.12, 0.3)


def snow_evidence(x: Tensor, op: Degradation) -> tuple[Tensor, Tensor]:
    """Return candidate severities and the log evidence for each: (S,) int64 and (S,) float64.

    Shapes: x (1, C, H, W) float32 in [-1, 1]. `op` is the snow operator.
    """
    center = _center(x, SIDE_PIXELS)
    measured = symmetry_statistics(center)[0]
    candidates, expected, scatter = _expected_statistics(op, *center.shape[-2:])
    deviation = measured - expected
    energy = torch.einsum("si,sij,sj->s", deviation, torch.linalg.inv(scatter), deviation)
    evidence = -0.5 * EVIDENCE_WEIGHT * (energy + torch.logdet(scatter))
    evidence[1:] += _match_evidence(_center(x, SPOT_SIDE_PIXELS))
    return candidates, evidence


def shows_no_shades(x: Tensor) -> bool:
    """Return whether a picture (1, C, H, W) has too little between black and white for snow to show.

    Nearly every pixel or its opposite is white as a sheet of paper, or the rest has two shades at most, as in a
    dithered scan: snow adds many.
    """
    y = (_center(x, SIDE_PIXELS).amin(1) + 1) / 2
    dark = y[torch.maximum(y, y.flip(-2, -1)) < WHITE]
    return len(dark) / y.numel() < MIN_DARK_SHARE or len(dark.unique()) <= 2


def _match_evidence(x: Tensor) -> float:
    """Return the log evidence for snow from how well bright spots match their half turn."""
    tiny, full = LEAST_MATCH_EVIDENCE
    least = tiny + (full - tiny) * min(x.shape[-2] * x.shape[-1] / FULL_PIXELS, 1)
    z = spot_match(x)
    return min(max((z * abs(z) - MATCH_Z**2) / 2, least), MOST_MATCH_EVIDENCE)


def _center(x: Tensor, side: int) -> Tensor:
    """Return the center of pictures (B, C, H, W), up to `side` pixels square."""
    # The parity of n is kept, so that the crop has the same center.
    height, width = (n if n <= side else side - (n - side) % 2 for n in x.shape[-2:])
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def spot_match(x: Tensor) -> float:
    """Return how much better bright spots match their half turn in place than shifted, in standard deviations.

    Shapes: x (1, C, H, W) float32 in [-1, 1].
    """
    y = (x.amin(1) + 1) / 2
    rows = F.pad(y[None], [SPOT_PIXELS // 2] * 4, mode="replicate").unfold(-2, SPOT_PIXELS, 1)
    squares = rows.unfold(-2, SPOT_PIXELS, 1)
    contrast = y - squares.flatten(-2).median(-1).values[0]
    half = BUSY_PIXELS // 2
    busy = F.avg_pool2d(contrast.abs(), BUSY_PIXELS, stride=1, padding=half, count_include_pad=False)
    spots = (contrast.clamp(min=0) / (busy + MIN_BUSY))[0].double()
    spectrum = torch.fft.rfft2(spots - spots.mean())
    # Each entry is the sum of products of spots with those of the half turn, shifted cyclically.
    matches = torch.fft.irfft2(spectrum.square(), s=spots.shape)
    in_place = matches[-1, -1]
    variance = matches.square().sum() - in_place.square()
    return float(in_place / (variance / (matches.numel() - 1)).sqrt().clamp(min=1e-12))


@functools.lru_cache(maxsize=8)
def _expected_statistics(op: Degradation, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return candidate severities, and the statistics' mean and covariance at each, for pictures of this size.

    Simulating them takes nearly all of an estimate's time, so they are cached for the next picture.
    Shapes: (S,) int64, (S, K) and (S, K, K) float64.
    """
    severities = torch.linspace(0, op.steps, min(op.steps, SEVERITIES) + 1).round().long()
    generator = torch.Generator().manual_seed(0)
    simulated = []
    for t in severities.tolist():
        pictures = _synthetic_photographs((PICTURES, height, width), generator)
        snowed = op(pictures, t, op.freeze(pictures, generator=generator))
        simulated.append(symmetry_statistics(((snowed + 1) * 127.5).round() / 127.5 - 1))
    samples = torch.stack(simulated)  # (S, PICTURES, K)
    # Fit a polynomial to each statistic: the few pictures of one severity are too noisy.
    place = severities.double() / op.steps
    powers = place[:, None] ** torch.arange(min(DEGREE, len(severities) - 1) + 1)
    coefficients = torch.linalg.lstsq(powers, samples.mean(1)).solution
    residuals = samples - (powers @ coefficients)[:, None]
    candidates = torch.linspace(0, op.steps, min(op.steps, 200) + 1).round().long()
    expected = (candidates.double() / op.steps)[:, None] ** torch.arange(powers.shape[1]) @ coefficients
    near = torch.exp(-0.5 * ((candidates[:, None] - severities) / (BANDWIDTH * op.steps)).square())
    near = near / near.sum(1, keepdim=True)
    scatter = torch.einsum("es,spi,spj->eij", near, residuals, residuals) / PICTURES
    scatter += torch.diag_embed(0.02 * scatter.diagonal(dim1=1, dim2=2) + 1e-6)
    return candidates, expected, scatter


def symmetry_statistics(x: Tensor) -> Tensor:
    """Return the statistics that reveal snow: (B, K) float64, for pictures x (B, C, H, W) float32 in [-1, 1].

    They are the contrast that opposite pixels share, at each scale, along the axis that has more of it and along the
    other; the share of pixels that are white on both sides; and the mean contrast of single pixels, because a busy
    photograph hides what they share.
    """
    y = (x.amin(1, keepdim=True) + 1) / 2  # the channel that snow saturates last
    turned = y.flip(-2, -1)
    darker = torch.minimum(y, turned)
    free = (torch.maximum(y, turned) < WHITE).to(y.dtype)
    unclipped = y * free
    statistics: list[Tensor] = []
    contrasts: list[Tensor] = []
    for scale in SCALES_PIXELS:
        if scale > min(y.shape[-2:]) // 2:
            statistics += statistics[-2:]
            continue
        # Drop rows and columns that do not fill a square, so that pooling commutes with the half turn.
        height, width = (n // scale * scale for n in y.shape[-2:])
        top, left = ((n - m) // 2 for n, m in zip(y.shape[-2:], (height, width), strict=True))
        inner = (..., slice(top, top + height), slice(left, left + width))
        weight = F.avg_pool2d(free[inner], scale) if scale > 1 else free
        pooled = F.avg_pool2d(unclipped[inner], scale).div_(weight.clamp(min=1e-6)) if scale > 1 else unclipped
        opposite = pooled.flip(-2, -1)
        has_both = weight > 0.5
        shared = []
        for axis in (-1, -2):
            length = weight.shape[axis] - 1
            both = has_both.narrow(axis, 0, length) & has_both.narrow(axis, 1, length)
            steps, turned_steps = pooled.diff(dim=axis), opposite.diff(dim=axis)
            # The smaller of two steps of one sign: an edge on one side alone counts for nothing.
            agreed = ((steps + turned_steps).abs_() - (steps - turned_steps).abs_()).mul_(both)
            count = both.sum((1, 2, 3)).clamp(min=1)
            shared.append(agreed.sum((1, 2, 3)) / 2 / count)
            contrasts.append((steps.abs_() * both).sum((1, 2, 3)) / count)
        ordered = torch.stack(shared, 1).sort(1).values
        statistics += [torch.asinh(ordered[:, 1] / LINEAR_CONTRAST), torch.asinh(ordered[:, 0] / LINEAR_CONTRAST)]
    whiteness = torch.asinh((darker >= WHITE).to(y.dtype).mean((1, 2, 3)) / RARE)
    contrast = torch.asinh(sum(contrasts, torch.zeros(())) / len(contrasts) / LINEAR_CONTRAST)
    return torch.stack([*statistics, whiteness, contrast], 1).double()


def _synthetic_photographs(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Draw synthetic pictures (B, 1, H, W) float32 in [-1, 1] with the spectrum of photographs."""
    count, height, width = shape
    radius = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    noise = torch.fft.rfft2(torch.randn(shape, generator=generator))
    slope = SPECTRAL_SLOPE[0] + torch.rand((count, 1, 1), generator=generator) * (SPECTRAL_SLOPE[1] - SPECTRAL_SLOPE[0])
    drawn = torch.fft.irfft2(noise / radius.clamp(min=1 / max(height, width)) ** slope, s=(height, width))
    drawn = drawn - drawn.mean((1, 2), keepdim=True)
    drawn = drawn / drawn.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-9)
    uniform = torch.rand((2, count, 1, 1), generator=generator)
    mean = BRIGHTNESS[0] + uniform[0] * (BRIGHTNESS[1] - BRIGHTNESS[0])
    spread = CONTRAST[0] + uniform[1] * (CONTRAST[1] - CONTRAST[0])
    return ((mean + spread * drawn).clamp(0, 1) * 2 - 1)[:, None]
