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

SIDE = 256  # pixels of the center that is looked at: a turn about the center maps it onto itself
SEVERITIES = 20  # that are simulated; those between follow a smooth course
PICTURES = 8  # at each
SCALES = (1, 2, 4)  # pixels
FULL = 0.985  # of [0, 1]: nearer to white a pixel may have been clipped, and tells nothing of its flake
RARE = 2e-3  # of the pixels that are white on both sides: flakes are, photographs' highlights seldom meet
LEAST = 2e-3  # of a contrast, half a level: below it the signs are as the contrast, above it as its logarithm
DEGREE = 4  # of the courses
NEAR = 0.07  # of the steps
WORTH = 0.7  # of the evidence: photographs are not as even as made-up pictures
# Photographs' brightness and contrast in [0, 1] vary about as much (scikit-image's and scikit-learn's photographs,
# faces of CelebA's training images, cats of AFHQ's). With this range of falls of the made-up pictures' spectrum those
# photographs' snow is told without bias; with 1.1 alone it came out a fifteenth too heavy, with 1.9 a tenth too light.
FALL = (1.1, 1.7)  # the power of the frequency
BRIGHTNESS = (0.15, 0.85)
CONTRAST = (0.12, 0.3)


def snow_evidence(x: Tensor, op: Degradation) -> tuple[Tensor, Tensor]:
    """Return some severities and the log evidence of each in a picture (1, C, H, W): (S,) int64 and (S,) float64."""
    height, width = (n if n <= SIDE else SIDE - (n - SIDE) % 2 for n in x.shape[-2:])  # so that the center stays
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
    of it and the other; then what share of the pixels is white and so are their opposites, and the contrast
    that pixels have by themselves, for a busy photograph hides what they share.
    """
    y = (x.amin(1, keepdim=True) + 1) / 2  # the channel that the snow fills last
    turned = y.flip(-2, -1)
    darker = torch.minimum(y, turned)
    free = (torch.maximum(y, turned) < FULL).to(y.dtype)
    held = y * free
    found: list[Tensor] = []
    every: list[Tensor] = []
    for scale in SCALES:
        if scale > min(y.shape[-2:]) // 2:
            found += found[-2:]
            continue
        # The turned picture's means are these turned, but for a row or a column that does not fill a square.
        height, width = (n // scale * scale for n in y.shape[-2:])
        top, left = ((n - m) // 2 for n, m in zip(y.shape[-2:], (height, width), strict=True))
        inner = (..., slice(top, top + height), slice(left, left + width))
        weight = F.avg_pool2d(free[inner], scale) if scale > 1 else free
        here = F.avg_pool2d(held[inner], scale).div_(weight.clamp(min=1e-6)) if scale > 1 else held
        there = here.flip(-2, -1)
        has_both = weight > 0.5
        shared = []
        for axis in (-1, -2):
            length = weight.shape[axis] - 1
            both = has_both.narrow(axis, 0, length) & has_both.narrow(axis, 1, length)
            steps, turned_steps = here.diff(dim=axis), there.diff(dim=axis)
            # The smaller of two steps that agree: an edge of the photograph alone counts for nothing.
            agreed = ((steps + turned_steps).abs_() - (steps - turned_steps).abs_()).mul_(both)
            count = both.sum((1, 2, 3)).clamp(min=1)
            shared.append(agreed.sum((1, 2, 3)) / 2 / count)
            every.append((steps.abs_() * both).sum((1, 2, 3)) / count)
        ordered = torch.stack(shared, 1).sort(1).values
        found += [torch.asinh(ordered[:, 1] / LEAST), torch.asinh(ordered[:, 0] / LEAST)]
    whole = torch.asinh((darker >= FULL).to(y.dtype).mean((1, 2, 3)) / RARE)
    return torch.stack([*found, whole, torch.asinh(sum(every, torch.zeros(())) / len(every) / LEAST)], 1).double()


def _photographs(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return made-up pictures (B, 1, H, W) float32 in [-1, 1] with the spectrum that photographs have."""
    count, height, width = shape
    radius = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    noise = torch.fft.rfft2(torch.randn(shape, generator=generator))
    fall = FALL[0] + torch.rand((count, 1, 1), generator=generator) * (FALL[1] - FALL[0])
    drawn = torch.fft.irfft2(noise / radius.clamp(min=1 / max(height, width)) ** fall, s=(height, width))
    drawn = drawn - drawn.mean((1, 2), keepdim=True)
    drawn = drawn / drawn.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-9)
    where = torch.rand((2, count, 1, 1), generator=generator)
    mean = BRIGHTNESS[0] + where[0] * (BRIGHTNESS[1] - BRIGHTNESS[0])
    spread = CONTRAST[0] + where[1] * (CONTRAST[1] - CONTRAST[0])
    return ((mean + spread * drawn).clamp(0, 1) * 2 - 1)[:, None]
