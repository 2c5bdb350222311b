"""Free-form holes with hard edges, filled with gray: inpainting of any mask, including a user's own."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core import devices
from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Estimate, Frozen, entry_at
from colddiff_core.degradations.draws import Generators, draw_normal, draw_uniform
from colddiff_core.degradations.estimation.flat_gray import find_gray
from colddiff_core.degradations.registry import register
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

MIN_RADIUS_PIXELS = 0.75  # a disc of this radius always contains a pixel's center
LENGTHS = (0.4, 1.0)  # the longer half-extent of a shape, as a share of the largest
WIDTHS = (0.35, 1.0)  # the shorter half-extent of an ellipse or a rectangle, as a share of the longer
STROKE_WIDTHS = (0.12, 0.35)  # half the width of a stroke, as a share of the longer half-extent
CONFIDENCE = 0.95  # that flat gray is a hole; none of scikit-image's photographs has any


@dataclasses.dataclass(frozen=True)
class FrozenHoles(Frozen):
    """The holes of each image.

    Attributes:
        turn: (B, H, W) float32, the share t / T at which a pixel becomes hidden; above 1 it never is.
    """

    turn: Tensor


@register("holes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Holes(Degradation):
    """Free-form holes: x_t = K_t x0, K_t = 1 where turn > t / T and 0 in the holes.

    `turn` is the minimum over a few shapes, at random places and angles, of a normalized distance from the shape's
    middle: an ellipse's radius, a rectangle's maximum norm, or the distance from a stroke's center line over half its
    width. So holes grow outward, the holes of t lie within those of t + 1, and D is a single comparison.

    Source: irregular holes as in Liu et al. 2018 ("Image inpainting for irregular holes using partial
    convolutions"), there drawn as strokes of a pen; severities as in Bansal et al. 2022, section 4.2.
    """

    frozen_type = FrozenHoles
    has_inverse = True
    has_estimate = True
    estimated_fields = ("turn",)
    is_linear = True

    steps: int = setting(20, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    count: int = setting(3, "shapes per image: ellipses, rectangles, strokes", minimum=1, maximum=8)
    size: float = setting(
        0.2, "largest half-extent of a shape, as a share of the image's shorter side", above=0, maximum=1
    )
    shares: Tensor = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        object.__setattr__(self, "shares", shares.float())

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenHoles:
        turn = fields.get("turn")
        if turn is None:
            return FrozenHoles(self._draw(x0, generator))
        if turn.shape[1:] != x0.shape[-2:]:
            mask_size, image_size = (" x ".join(map(str, shape)) for shape in (turn.shape[1:], x0.shape[-2:]))
            raise UsageError(
                f"holes: a mask of {mask_size} pixels does not fit images of {image_size}.",
                "Scale the mask to the images.",
            )
        return FrozenHoles(turn.to(torch.float32))

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: FrozenHoles) -> Tensor:
        return torch.where(frozen.turn.unsqueeze(1) > entry_at(self.shares, t, x0), x0, 0.0)

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: FrozenHoles, floor: float) -> Tensor:
        """Return x_t with the holes filled by a smooth surface through the visible pixels around them.

        Any fill is an inverse of D; this one is linear in x_t and leaves only detail for a network to add. `floor` is
        not needed, because K_t is 0 or 1.
        """
        visible = (frozen.turn.unsqueeze(1) > entry_at(self.shares, t, x_t)).to(x_t.dtype)
        return _fill(x_t, visible)

    def severity_to_hide(self, hidden: Tensor) -> tuple[int, dict[str, Tensor]]:
        """Return T and the `turn` that hides exactly the pixels of `hidden` (B, H, W) bool.

        Raises:
            UsageError: if a mask hides no pixels.
        """
        if not hidden.any((-2, -1)).all():
            raise UsageError("The mask hides no pixels.", "Paint the area to restore in white.")
        return self.steps, {"turn": turn_from_mask(hidden, self.steps)}

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Take gray areas for holes, fully grown, if they are flat or stand out: `turn` holds their form."""
        hidden, evidence = find_gray(x_t)
        count = int(hidden.sum())
        if not count:
            return Estimate(0, 0, 0, CONFIDENCE, "no flat gray holes", {}, evidence)
        fields = {"turn": turn_from_mask(hidden, self.steps)}
        trace = f"flat gray holes of {counted(count, 'pixel')}"
        return Estimate(self.steps, self.steps, self.steps, CONFIDENCE, trace, fields, evidence)

    def _draw(self, x0: Tensor, generator: Generators) -> Tensor:
        """Draw `count` shapes per image, each of random kind, place, angle and extents; return `turn` (B, H, W)."""
        height, width = x0.shape[-2:]
        uniform = draw_uniform(x0, generator, (self.count, 5))
        # A normal pair has a uniform direction. Unlike a cosine, its quotients do not depend on the batch size.
        pair = draw_normal(x0, generator, (self.count, 2))
        pair = pair / (pair.square().sum(-1, keepdim=True).sqrt() + 1e-12)
        largest = self.size * min(height, width)
        rows = (torch.arange(height, device=x0.device) + 0.5).view(-1, 1)
        cols = (torch.arange(width, device=x0.device) + 0.5).view(1, -1)
        turn = x0.new_full((len(x0), height, width), 2.0)
        for shape in range(self.count):
            kind, row, col, long, short = uniform[:, shape, :, None, None].unbind(1)
            cosine, sine = pair[:, shape, :, None, None].unbind(1)
            down, right = rows - row * height, cols - col * width
            along, across = (cosine * right + sine * down).abs_(), (cosine * down - sine * right).abs_()
            long = (_lerp(LENGTHS, long) * largest).clamp_(min=MIN_RADIUS_PIXELS)
            width_of = {
                share: (_lerp(share, short) * long).clamp_(min=MIN_RADIUS_PIXELS) for share in (WIDTHS, STROKE_WIDTHS)
            }
            ellipse = ((along / long).square() + (across / width_of[WIDTHS]).square()).sqrt_()
            rectangle = torch.maximum(along / long, across / width_of[WIDTHS])
            beyond = (along - (long - width_of[STROKE_WIDTHS])).clamp_(min=0)
            stroke = (beyond.square() + across.square()).sqrt_() / width_of[STROKE_WIDTHS]
            distance = torch.where(kind < 1 / 3, ellipse, torch.where(kind < 2 / 3, rectangle, stroke))
            torch.minimum(turn, distance, out=turn)
        return turn


def _fill(x: Tensor, visible: Tensor) -> Tensor:
    """Return pictures (B, C, H, W) with hidden pixels filled from coarser scales; `visible` (B, 1, H, W) is 0 or 1.

    Means over visible pixels are taken at half the resolution until none is missing, then interpolated back up. The
    result is 0 if nothing is visible.

    Source: Gortler et al. 1996 (pull-push).
    """
    if min(x.shape[-2:]) == 1 and max(x.shape[-2:]) == 1:
        return x * visible
    size = x.shape[-2:]
    value, weight = (F.avg_pool2d(v, 2, ceil_mode=True, count_include_pad=False) for v in (x * visible, visible))
    coarse = value / weight.clamp(min=torch.finfo(x.dtype).tiny)
    # If no weight is 0, the coarser scales have no effect. Computing them anyway saves waiting for a GPU.
    if not devices.can_read(weight) or bool((weight == 0).any()):
        coarse = _fill(coarse, (weight > 0).to(x.dtype))
    return torch.where(visible > 0, x, F.interpolate(coarse, size=size, mode="bilinear"))


def _lerp(ends: tuple[float, float], share: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * share


def turn_from_mask(hidden: Tensor, steps: int) -> Tensor:
    """Return the `turn` of FrozenHoles for a user's masks, so that samplers fill them from the edge inward.

    The whole mask is hidden at t = steps. As t falls, the edge is revealed first; the deepest pixels stay hidden until
    t = 1. Depth is the city-block distance from the visible pixels, on one scale for all holes of an image.

    Shapes: hidden (B, H, W) bool, true where a pixel is unknown; `steps` is the operator's T, at least 1.
    Returns (B, H, W) float32 in (0, 1], and 2 (never hidden) outside the mask.
    """
    depth = _depth_in_mask(hidden)
    deepest = depth.amax((1, 2), keepdim=True).clamp_(min=1)
    above = deepest - depth
    # Equal parts if there are more rings than severities; else spread them, the edge at T and the deepest at 1.
    level = torch.maximum(above * steps // deepest, above * (steps - 1) // (deepest - 1).clamp_(min=1))
    # Half a step early, so that rounding of t / T does not matter.
    return torch.where(hidden, (level.float() + 0.5) / steps, 2.0)


def _depth_in_mask(hidden: Tensor) -> Tensor:
    """Return each pixel's city-block distance from the nearest visible pixel of its image: (B, H, W) int32.

    It is H + W if there is none. Pixels beyond the border do not count as visible. Two running minima per axis, so the
    cost does not depend on the depth.
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
