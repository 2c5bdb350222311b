"""How much of a picture is alike under a half turn, which snow is and photographs are not.

The snow's layer is the same turned by half, so what two opposite pixels share beyond chance is snow: its
contrast at several scales along rows and columns, and how white the whole has become. What these come to at
each severity is seen by letting the operator snow on made-up pictures of many brightnesses and contrasts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.degradations.base import Degradation

SIDE = 224  # pixels of the centre that is looked at: a turn about the centre maps it onto itself
SEVERITIES = 20  # that are simulated; those between follow a smooth course
PICTURES = 10  # at each
SCALES = (1, 2, 4)  # pixels
FULL = 0.985  # of [0, 1]: nearer to white a pixel may have been clipped, and tells nothing of its flake
WHITES = (FULL,)  # what both of two opposite pixels reach: flakes do, photographs' highlights seldom meet
RARE = 2e-3  # of the pixels
LEAST = 2e-3  # of a contrast, half a level: below it the signs are as the contrast, above it as its logarithm
DEGREE = 4  # of the courses
NEAR = 0.07  # of the steps
WORTH = 0.7  # of the evidence: photographs are not as even as made-up pictures
# Photographs' brightness and contrast in [0, 1] vary about as much (scikit-image's and scikit-learn's photographs,
# faces of CelebA's training images, cats of AFHQ's), and their spectrum falls as the frequency's power of -1.
BRIGHTNESS = (0.2, 0.65)
CONTRAST = (0.12, 0.3)


def snow_evidence(x: Tensor, op: Degradation) -> tuple[Tensor, Tensor]:
    """Return some severities and the log evidence of each in a picture (1, C, H, W): (S,) int64 and (S,) float64."""
    height, width = (min(n, SIDE) for n in x.shape[-2:])
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    seen = signs(x[..., top : top + height, left : left + width])[0]
    severities = torch.linspace(0, op.steps, min(op.steps, SEVERITIES) + 1).round().long()
    generator = torch.Generator().manual_seed(0)
    made = []
    for t in severities.tolist():
        pictures = _photographs((PICTURES, height, width), generator)
        snowed = op(pictures, t, op.freeze(pictures, generator=generator))
        made.append(signs(((snowed + 1) * 127.5).round() / 127.5 - 1))
    sampled = torch.stack(made)  # (S, PICTURES, K)
    # A course for each sign and for its spread: a severity's few pictures alone would be too uneven.
    place = severities.double() / op.steps
    powers = place[:, None] ** torch.arange(min(DEGREE, len(severities) - 1) + 1)
    mean = torch.linalg.lstsq(powers, sampled.mean(1)).solution
    off = sampled - (powers @ mean)[:, None]
    every = torch.linspace(0, op.steps, min(op.steps, 200) + 1).round().long()
    course = (every.double() / op.steps)[:, None] ** torch.arange(powers.shape[1]) @ mean
    # What is near in severity scatters alike.
    near = torch.exp(-0.5 * ((every[:, None] - severities) / (NEAR * op.steps)).square())
    near = near / near.sum(1, keepdim=True)
    scatter = torch.einsum("es,spi,spj->eij", near, off, off) / PICTURES
    scatter += torch.diag_embed(0.02 * scatter.diagonal(dim1=1, dim2=2) + 1e-6)
    apart = seen - course
    energy = torch.einsum("si,sij,sj->s", apart, torch.linalg.inv(scatter), apart)
    return every, -0.5 * WORTH * (energy + torch.logdet(scatter))


def signs(x: Tensor) -> Tensor:
    """Return what tells snow of pictures (B, C, H, W) float32 in [-1, 1]: (B, K) float64.

    The contrast that opposite pixels share, at each of SCALES, along the direction that has more
    of it and the other; then what share of the opposite pixels is white, and the mean of the darker of them.
    """
    y = ((x.mean(1, keepdim=True) + 1) / 2).double()
    turned = y.flip(-2, -1)
    free = ((torch.maximum(y, turned) < FULL) & (y > 0) & (turned > 0)).double()
    found: list[Tensor] = []
    for scale in SCALES:
        if scale > min(y.shape[-2:]) // 2:
            found += found[-2:]
            continue
        weight = F.avg_pool2d(free, scale)
        here, there = (F.avg_pool2d(v * free, scale) / weight.clamp(min=1e-9) for v in (y, turned))
        shared = []
        for axis in (-1, -2):
            both = (weight.narrow(axis, 0, weight.shape[axis] - 1) > 0.5) & (
                weight.narrow(axis, 1, weight.shape[axis] - 1) > 0.5
            )
            steps, turned_steps = here.diff(dim=axis), there.diff(dim=axis)
            # The smaller of two steps that agree: an edge of the photograph alone counts for nothing.
            agreed = torch.minimum(steps.abs(), turned_steps.abs()) * (steps * turned_steps).sign() * both
            shared.append(agreed.sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1))
        ordered = torch.stack(shared, 1).sort(1).values
        found += [torch.asinh(ordered[:, 1] / LEAST), torch.asinh(ordered[:, 0] / LEAST)]
    darker = torch.minimum(y, turned)
    whole = [torch.asinh((darker >= white).double().mean((1, 2, 3)) / RARE) for white in WHITES]
    return torch.stack([*found, *whole, darker.mean((1, 2, 3))], 1)


def _photographs(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return made-up pictures (B, 1, H, W) float32 in [-1, 1] with the spectrum that photographs have."""
    count, height, width = shape
    radius = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    noise = torch.fft.rfft2(torch.randn(shape, generator=generator))
    drawn = torch.fft.irfft2(noise / radius.clamp(min=1 / max(height, width)) ** 1.1, s=(height, width))
    drawn = drawn - drawn.mean((1, 2), keepdim=True)
    drawn = drawn / drawn.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-9)
    where = torch.rand((2, count, 1, 1), generator=generator)
    mean = BRIGHTNESS[0] + where[0] * (BRIGHTNESS[1] - BRIGHTNESS[0])
    spread = CONTRAST[0] + where[1] * (CONTRAST[1] - CONTRAST[0])
    return ((mean + spread * drawn).clamp(0, 1) * 2 - 1)[:, None]
