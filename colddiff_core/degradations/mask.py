"""A growing Gaussian hole in the picture: inpainting, and with a color in the hole, generation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import (
    MOST_STEPS,
    VARIANTS,
    Degradation,
    Estimate,
    Frozen,
    Generators,
    draw_integers,
    draw_uniform,
)
from colddiff_core.degradations.estimation.hole_search import NODES as RADII
from colddiff_core.degradations.estimation.hole_search import HoleMasks, find_hole
from colddiff_core.degradations.estimation.posterior import settle
from colddiff_core.degradations.registry import register
from colddiff_core.degradations.schedules import blur_widths
from colddiff_core.errors import UsageError

REACH = 8.0  # widths from the center beyond which 1 - G is 1 in float32, even over hundreds of steps
MOST_ENTRIES = 2**25  # of a table that is kept: 128 MB
LEAST = 0.001  # pixels
UNSEEN = 1 / 255  # of a pixel that 8 bits do not tell from gray
CANDIDATES = 100  # severities that are compared at most where a picture's own is looked for
NODES = 4096  # per width, of the radial table where squared distances are too many


@dataclasses.dataclass(frozen=True)
class FrozenMask(Frozen):
    """Where each image's hole is and what fills it.

    center_row, center_col: (B,) int64, in pixels, also outside the picture; color: (B, C) float32 in [-1, 1].
    """

    center_row: Tensor
    center_col: Tensor
    color: Tensor


@register("mask")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(Degradation):
    """x_t = M_t x0, M_t = prod_{i < t} (1 - G_i / max G_i), G_i a Gaussian of std `std + growth * i` pixels.

    With fill "color", x_t = M_t x0 + (1 - M_t) c. M_t depends on a pixel's squared distance from the
    center alone, so it is one cumulative product over a table of distances, looked up by pixel.

    Source: Bansal et al. 2022, section 4.2, appendix A.2; section 5.3 for colors.
    """

    frozen_type = FrozenMask
    has_inverse = True
    has_estimate = True
    is_linear = True
    estimated = ("center_row", "center_col", "color")

    steps: int = setting(50, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    std: float = setting(1.1, "width of the first step's Gaussian, in pixels", minimum=LEAST)
    growth: float = setting(0.1, "how much wider each further step's is, in pixels", minimum=0)
    location: Literal["random", "center"] = setting("random", "where the hole is")
    fill: Literal["gray", "color"] = setting("gray", "what is in it: gray, or a color of each image's own")
    tables: dict[tuple[int, torch.device], Tensor] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tables", {})

    @property
    def priors(self) -> tuple[str, ...]:
        return ("color", "degraded") if self.fill == "color" else ("degraded",)

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        scales = [1 + jitter * part for part in VARIANTS]
        return tuple(
            dataclasses.replace(self, std=max(self.std * scale, LEAST), growth=self.growth * scale) for scale in scales
        )

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenMask:
        count, channels, height, width = x0.shape
        if self.location == "center":
            row, col = (torch.full((count,), max(n // 2 - 1, 0), device=x0.device) for n in (height, width))
        else:
            row = draw_integers(x0, generator, height)
            col = draw_integers(x0, generator, width)
        drawn = {"center_row": row, "center_col": col, "color": draw_uniform(x0, generator, (channels,)) * 2 - 1}
        return FrozenMask(**drawn | fields)

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: FrozenMask) -> Tensor:
        mask = self._mask(x0, t, frozen)
        if self.fill == "gray":
            return mask * x0
        return mask * x0 + (1 - mask) * frozen.color[:, :, None, None]

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: FrozenMask, floor: float) -> Tensor:
        mask = self._mask(x_t, t, frozen)
        seen = x_t if self.fill == "gray" else x_t - (1 - mask) * frozen.color[:, :, None, None]
        return mask / (mask.square() + floor**2) * seen

    def covering(self, hidden: Tensor) -> tuple[int, dict[str, Tensor]]:
        rows, cols = (torch.arange(n, device=hidden.device, dtype=torch.float64) for n in hidden.shape[-2:])
        if not hidden.any((-2, -1)).all():
            raise UsageError("The mask hides no pixel.", "Mark what is to be made anew in white.")
        where = hidden.double() / hidden.sum((-2, -1), keepdim=True)
        row, col = (where.sum(-1) * rows).sum(-1).round(), (where.sum(-2) * cols).sum(-1).round()
        squared = (rows - row[:, None]).square()[:, :, None] + (cols - col[:, None]).square()[:, None, :]
        farthest = squared[hidden].max().cpu()
        widths = blur_widths("linear", self.steps, self.std, self.growth)
        left = torch.cumprod(torch.expm1(farthest / (-2 * widths**2)).neg(), 0)
        covering = (left <= UNSEEN).nonzero()
        if not len(covering):
            what = (
                f"The mask reaches {float(farthest) ** 0.5:.0f} pixels from its middle, beyond this run's largest hole."
            )
            raise UsageError(what, "Use a run with larger holes (degradation.std, degradation.growth), or mask less.")
        return int(covering[0]) + 1, {"center_row": row.long(), "center_col": col.long()}

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Tell the hole by its color, and its growth by how far around it the picture is drawn toward that."""
        if bool((x_t == x_t[..., :1, :1]).all()):
            raise UsageError("The picture is of one color, hole or not.", "Give --t.")
        severities = torch.linspace(0, self.steps, min(self.steps, CANDIDATES) + 1).round().long()
        masks = self._radial(severities)
        x = x_t[0]
        color = torch.full((len(x),), 127.5) if self.fill == "gray" else None
        center = (max(x.shape[-2] // 2 - 1, 0), max(x.shape[-1] // 2 - 1, 0)) if self.location == "center" else None
        hole = find_hole(x, masks, color, center)
        fields = {
            "center_row": torch.tensor([hole.row]),
            "center_col": torch.tensor([hole.col]),
            "color": (hole.color / 127.5 - 1)[None],
        }

        def told(t: int) -> str:
            if t == 0:
                return "no hole"
            radius = self._radial(torch.tensor([t])).radius(0, 0.5)
            kind = "gray" if self.fill == "gray" else "plain"
            return f"a {kind} hole of {2 * radius:.0f} pixels around row {hole.row}, column {hole.col}"

        found = settle(severities, hole.evidence, told, fields)
        return found if found.t else dataclasses.replace(found, fields={})

    def _radial(self, severities: Tensor) -> HoleMasks:
        """Return M_t by distance for rising severities, as the search for a hole takes it."""
        reach = REACH * self._widest
        squared = torch.linspace(0, reach, RADII, dtype=torch.float64).square()
        return HoleMasks(self._products(squared, severities.tolist()), reach)

    def _mask(self, like: Tensor, t: int | Tensor, frozen: FrozenMask) -> Tensor:
        """Return M_t for each image: (B, 1, H, W) float32."""
        height, width = like.shape[-2:]
        rows = torch.arange(height, device=like.device) - frozen.center_row.to(torch.int64)[:, None]
        cols = torch.arange(width, device=like.device) - frozen.center_col.to(torch.int64)[:, None]
        squared = rows.square()[:, :, None] + cols.square()[:, None, :]
        # Centers up to a picture's size outside it; beyond, a hole that reaches in would be cut off there.
        reach = min(REACH * self._widest, 2 * math.hypot(height, width))
        exact = math.ceil(reach**2) + 1
        radial = reach / self.std * NODES
        if exact <= max(radial, MOST_ENTRIES // (self.steps + 1)):
            table, row = self._rows(exact, t, like.device, is_radial=False)
            return _look_up(table, row, squared.clamp_(max=exact - 1)).unsqueeze(1)
        nodes = math.ceil(radial) + 2
        table, row = self._rows(nodes, t, like.device, is_radial=True)
        place = squared.to(torch.float32).sqrt_().mul_(NODES / self.std).clamp_(max=nodes - 2)
        below = place.long()
        low = _look_up(table, row, below)
        return torch.lerp(low, _look_up(table, row, below.add_(1)), place.frac_()).unsqueeze(1)

    @property
    def _widest(self) -> float:
        return self.std + self.growth * (self.steps - 1)

    def _rows(
        self, count: int, t: int | Tensor, device: torch.device, *, is_radial: bool
    ) -> tuple[Tensor, int | Tensor]:
        """Return M by distance, a row a severity, and which rows are t's.

        The table is kept where every severity's row fits in memory; else only the rows asked for are made.
        """
        if (self.steps + 1) * count <= MOST_ENTRIES:
            key = (count, device)
            if key not in self.tables:
                self.tables.clear()
                self.tables[key] = self._kept(count, range(self.steps + 1), is_radial).to(device)
            return self.tables[key], t
        if isinstance(t, int):
            return self._kept(count, [t], is_radial).to(device), 0
        severities, row = t.unique(return_inverse=True)
        return self._kept(count, severities.tolist(), is_radial).to(device), row

    def _kept(self, count: int, severities: Sequence[int], is_radial: bool) -> Tensor:
        """Return M_t at `count` distances for rising severities, one running product for all: (S, D) float32."""
        squared = torch.arange(count, dtype=torch.float64)
        if is_radial:
            squared = squared.mul_(self.std / NODES).square_()
        return self._products(squared, severities)

    def _products(self, squared: Tensor, severities: Sequence[int]) -> Tensor:
        """Return M_t at squared distances (D,) float64 for rising severities: (S, D) float32."""
        widths = blur_widths("linear", self.steps, self.std, self.growth).tolist()
        product, done = torch.ones_like(squared), 0
        rows = torch.empty(len(severities), len(squared))
        for row, t in enumerate(severities):
            for width in widths[done:t]:
                product.mul_(torch.expm1(squared / (-2 * width**2)).neg_())
            done = t
            rows[row] = product
        return rows


def _look_up(table: Tensor, t: int | Tensor, index: Tensor) -> Tensor:
    """Return table[t] at `index` (B, H, W), t an int or (B,) int64."""
    if isinstance(t, int):
        return table[t][index]
    return table.view(-1)[index + (t * table.shape[1]).view(-1, 1, 1)]
