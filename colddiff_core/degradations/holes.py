"""Free-form holes with hard rims, filled with gray: inpainting of any mask, a user's own among them."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import (
    MOST_STEPS,
    Degradation,
    Estimate,
    Frozen,
    Generators,
    at,
    draw_normal,
    draw_uniform,
)
from colddiff_core.degradations.registry import register
from colddiff_core.errors import UsageError
from colddiff_core.images import to_bytes
from colddiff_core.text import counted

LEAST = 0.75  # pixels: a disc of this radius has a pixel's center in it wherever it lies
LONG = (0.4, 1.0)  # a shape's longer half-extent, as a share of the largest
ROUND = (0.35, 1.0)  # the shorter half-extent of an ellipse or a rectangle, as a share of the longer
THICK = (0.12, 0.35)  # half of a stroke's width, as a share of the longer half-extent
GRAYS = (127, 128)  # of 8 bits, what programs round the middle to
SURE = 0.95  # that a photograph has no such gray of its own; none of scikit-image's has
TIPS = 64  # pixels from a flat area's thick parts within which the thin ones belong to it


@dataclasses.dataclass(frozen=True)
class FrozenHoles(Frozen):
    """Each image's holes.

    turn: (B, H, W) float32, the share t / T of the severities from which on a pixel is hidden; above 1: never.
    """

    turn: Tensor


@register("holes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Holes(Degradation):
    """x_t = K_t x0, K_t = 1 where turn > t / T and 0 in the holes.

    `turn` is the least of the gauges of a few shapes at random places and angles: an ellipse's normalized
    radius, a rectangle's normalized maximum norm, the distance from a thick stroke's middle line over half
    its width. So holes grow from their middles, those of t lie within those of t + 1, and D is one
    comparison at every t.

    Source: irregular holes as in Liu et al. 2018 ("Image inpainting for irregular holes using partial
    convolutions"), there drawn as strokes of a pen; severities as in Bansal et al. 2022, section 4.2.
    """

    frozen_type = FrozenHoles
    has_inverse = True
    has_estimate = True
    estimated = ("turn",)
    is_linear = True

    steps: int = setting(20, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    count: int = setting(3, "shapes in an image: ellipses, rectangles, strokes", minimum=1, maximum=8)
    size: float = setting(
        0.2, "largest half-extent of a shape, as a share of the image's shorter side", above=0, maximum=1
    )
    shares: Tensor = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        object.__setattr__(self, "shares", shares.float())

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenHoles:
        """Return the holes; raises UsageError for a given `turn` that is not of the pictures' size."""
        turn = fields.get("turn")
        if turn is None:
            return FrozenHoles(self._drawn(x0, generator))
        if turn.shape[1:] != x0.shape[-2:]:
            given, wanted = (" x ".join(map(str, shape)) for shape in (turn.shape[1:], x0.shape[-2:]))
            raise UsageError(f"holes: a mask of {given} pixels for images of {wanted}.", "Scale one to the other.")
        return FrozenHoles(turn.to(torch.float32))

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: FrozenHoles) -> Tensor:
        return torch.where(frozen.turn.unsqueeze(1) > at(self.shares, t, x0), x0, 0.0)

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: FrozenHoles, floor: float) -> Tensor:
        """Return x_t where it is seen, and in the holes a smooth surface through what is seen around them.

        Any value there is an inverse of D; this one is linear in x_t, and what a network has to add to it is detail.
        There is nothing for the floor to hold back, for K_t has no entry between 0 and 1.
        """
        seen = (frozen.turn.unsqueeze(1) > at(self.shares, t, x_t)).to(x_t.dtype)
        return _filled(x_t, seen)

    def covering(self, hidden: Tensor) -> tuple[int, dict[str, Tensor]]:
        if not hidden.any((-2, -1)).all():
            raise UsageError("The mask hides no pixel.", "Mark what is to be made anew in white.")
        return self.steps, {"turn": turn_of(hidden, self.steps)}

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Take flat gray areas for holes: as one of T, whose form is told by `turn`."""
        hidden = flat_gray(x_t)
        count = int(hidden.sum())
        if not count:
            return Estimate(0, 0, 0, SURE, "no holes of flat gray", {})
        fields = {"turn": turn_of(hidden, self.steps)}
        return Estimate(
            self.steps, self.steps, self.steps, SURE, f"flat gray holes of {counted(count, 'pixel')}", fields
        )

    def _drawn(self, x0: Tensor, generator: Generators) -> Tensor:
        """Return the least of `count` gauges, each of a kind, a place, an angle and two extents of its own."""
        height, width = x0.shape[-2:]
        chance = draw_uniform(x0, generator, (self.count, 5))
        # The direction of a normal pair is uniform, and a quotient the same in any batch, which a cosine need not be.
        pair = draw_normal(x0, generator, (self.count, 2))
        pair = pair / (pair.square().sum(-1, keepdim=True).sqrt() + 1e-12)
        largest = self.size * min(height, width)
        rows = (torch.arange(height, device=x0.device) + 0.5).view(-1, 1)
        cols = (torch.arange(width, device=x0.device) + 0.5).view(1, -1)
        turn = x0.new_full((len(x0), height, width), 2.0)
        for shape in range(self.count):
            kind, row, col, long, short = chance[:, shape, :, None, None].unbind(1)
            cosine, sine = pair[:, shape, :, None, None].unbind(1)
            down, right = rows - row * height, cols - col * width
            along, across = (cosine * right + sine * down).abs_(), (cosine * down - sine * right).abs_()
            long = (_between(LONG, long) * largest).clamp_(min=LEAST)
            width_of = {share: (_between(share, short) * long).clamp_(min=LEAST) for share in (ROUND, THICK)}
            ellipse = ((along / long).square() + (across / width_of[ROUND]).square()).sqrt_()
            rectangle = torch.maximum(along / long, across / width_of[ROUND])
            beyond = (along - (long - width_of[THICK])).clamp_(min=0)
            stroke = (beyond.square() + across.square()).sqrt_() / width_of[THICK]
            gauge = torch.where(kind < 1 / 3, ellipse, torch.where(kind < 2 / 3, rectangle, stroke))
            torch.minimum(turn, gauge, out=turn)
        return turn


def _filled(x: Tensor, seen: Tensor) -> Tensor:
    """Return pictures (B, C, H, W) with what is not seen, where seen (B, 1, H, W) is 0, taken from coarser scales.

    Means of the seen pixels are pulled to half the resolution until every one has some, and pushed back up between
    them; 0 where nothing is seen at all. Source: Gortler et al. 1996 (pull-push).
    """
    if min(x.shape[-2:]) == 1 and max(x.shape[-2:]) == 1:
        return x * seen
    size = x.shape[-2:]
    value, weight = (F.avg_pool2d(v, 2, ceil_mode=True, count_include_pad=False) for v in (x * seen, seen))
    coarse = value / weight.clamp(min=torch.finfo(x.dtype).tiny)
    if bool((weight == 0).any()):
        coarse = _filled(coarse, (weight > 0).to(x.dtype))
    return torch.where(seen > 0, x, F.interpolate(coarse, size=size, mode="bilinear"))


def _between(ends: tuple[float, float], share: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * share


def turn_of(hidden: Tensor, steps: int) -> Tensor:
    """Return the `turn` of FrozenHoles for masks of a user's own, so that a sampler fills them from their rims inwards.

    At t = steps all of a mask is hidden, with t falling its rim is shown first, and at t = 1 its deepest pixels are
    hidden still. Depth is the city-block distance from what is seen, on a common scale for all holes of an image.

    Shapes: hidden (B, H, W) bool, true where nothing is known; steps is the operator's T, at least 1.
    Returns (B, H, W) float32 in (0, 1], and 2 (never hidden) outside of the mask.
    """
    depth = _depth(hidden)
    deepest = depth.amax((1, 2), keepdim=True).clamp_(min=1)
    above = deepest - depth
    # By equal parts where there are more rings than severities; else spread, the rim at T and the deepest at 1.
    level = torch.maximum(above * steps // deepest, above * (steps - 1) // (deepest - 1).clamp_(min=1))
    # Half a step before the severity itself, where no rounding of t / T matters.
    return torch.where(hidden, (level.float() + 0.5) / steps, 2.0)


def _depth(hidden: Tensor) -> Tensor:
    """Return each pixel's city-block distance from the nearest seen one: (B, H, W) int32; H + W where none is seen.

    What lies beyond the borders is not seen. Two running minima an axis: it costs the same for a hole of any depth.
    """
    far = sum(hidden.shape[-2:])
    depth = hidden.to(torch.int32) * far
    for axis in (-2, -1):
        ramp = torch.arange(depth.shape[axis], dtype=torch.int32, device=depth.device)
        ramp = ramp.view(-1, 1) if axis == -2 else ramp
        before = (depth - ramp).cummin(axis).values.add_(ramp)
        after = (depth + ramp).flip(axis).cummin(axis).values.flip(axis).sub_(ramp)
        depth = torch.minimum(before, after)
    return depth.clamp_(max=far)


def flat_gray(x_t: Tensor) -> Tensor:
    """Return which pixels of 8-bit pictures are holes by their looks: one flat gray, in areas of 9 pixels or more.

    Gray is 127, or 128, in every channel; an area counts where a square of 3 pixels fits in it, with the thin parts
    that hang on it.

    Shapes: x_t (B, C, H, W) float32 in [-1, 1]; returns (B, H, W) bool.
    """
    levels = to_bytes(x_t)
    found = torch.zeros_like(levels[:, 0], dtype=torch.bool)
    for gray in GRAYS:
        flat = (levels == gray).all(1)
        if flat.any():
            found |= _opened(flat)
    return found


def _opened(flat: Tensor) -> Tensor:
    """Return those areas of (B, H, W) bool in which a square of 3 pixels fits, with what hangs on them within TIPS."""
    bounds = flat.float()
    kept = 1 - F.max_pool2d(F.pad(1 - bounds, [1] * 4, value=1.0), 3, stride=1)
    for _ in range(TIPS + 1):
        grown = F.max_pool2d(kept, 3, stride=1, padding=1) * bounds
        if torch.equal(grown, kept):
            break
        kept = grown
    return kept > 0
