"""A Gaussian hole that grows with t: inpainting, or generation if the hole is filled with a random color."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from colddiff_core import devices
from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, VARIANTS, Degradation, Estimate, Frozen
from colddiff_core.degradations.draws import Generators, draw_integers, draw_uniform
from colddiff_core.degradations.estimation.hole_search import RADIAL_NODES, HoleMasks, find_hole
from colddiff_core.degradations.estimation.posterior import is_flat, to_estimate
from colddiff_core.degradations.registry import register
from colddiff_core.degradations.schedules import blur_widths
from colddiff_core.errors import UsageError

REACH_WIDTHS = 8.0  # from the center; beyond, 1 - G is 1 in float32, even over hundreds of steps
MAX_TABLE_ENTRIES = 2**25  # of a table that is kept: 128 MB in float32
MIN_STD_PIXELS = 0.001
INVISIBLE_SHARE = 1 / 255  # of a pixel's contrast that is lost in 8 bits
MAX_CANDIDATES = 100  # severities compared by an estimate
NODES_PER_WIDTH = 4096  # of the radial table, used where there are too many squared distances


@dataclasses.dataclass(frozen=True)
class FrozenMask(Frozen):
    """The place and color of each image's hole.

    Attributes:
        center_row: (B,) int64, in pixels, may be outside the picture.
        center_col: the same, for the column.
        color: (B, C) float32 in [-1, 1], used with fill "color".
    """

    center_row: Tensor
    center_col: Tensor
    color: Tensor


@register("mask")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(Degradation):
    """Gaussian hole: x_t = M_t x0, M_t = prod_{i < t} (1 - G_i / max G_i), G_i of std `std + growth * i` pixels.

    With fill "color", x_t = M_t x0 + (1 - M_t) c. M_t depends only on a pixel's squared distance from the center, so
    it is looked up in a table of cumulative products.

    Source: Bansal et al. 2022, section 4.2, appendix A.2; section 5.3 for colors.
    """

    frozen_type = FrozenMask
    has_inverse = True
    has_estimate = True
    is_linear = True
    estimated_fields = ("center_row", "center_col", "color")

    steps: int = setting(50, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    std: float = setting(1.1, "width of the first Gaussian, in pixels", minimum=MIN_STD_PIXELS)
    growth: float = setting(0.1, "growth of the width per step, in pixels", minimum=0)
    location: Literal["random", "center"] = setting("random", "place of the hole")
    fill: Literal["gray", "color"] = setting("gray", "color of the hole: gray, or random for each image")
    tables: dict[tuple[int, torch.device], Tensor] = dataclasses.field(init=False, repr=False, compare=False)
    widths: Tensor = dataclasses.field(init=False, repr=False, compare=False)  # (T,) float64, in pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tables", {})
        object.__setattr__(self, "widths", blur_widths("linear", self.steps, self.std, self.growth))

    @property
    def priors(self) -> tuple[str, ...]:
        """Return the names of the priors for x_T, the default first."""
        return ("color", "degraded") if self.fill == "color" else ("degraded",)

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        """Return holes up to `jitter` (a fraction) wider or narrower, this one included."""
        scales = [1 + jitter * part for part in VARIANTS]
        return tuple(
            dataclasses.replace(self, std=max(self.std * scale, MIN_STD_PIXELS), growth=self.growth * scale)
            for scale in scales
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
        visible = x_t if self.fill == "gray" else x_t - (1 - mask) * frozen.color[:, :, None, None]
        return mask / (mask.square() + floor**2) * visible

    def severity_to_hide(self, hidden: Tensor) -> tuple[int, dict[str, Tensor]]:
        """Return the lowest severity, and the centers, at which the hole hides all pixels of `hidden` (B, H, W) bool.

        Raises:
            UsageError: if a mask hides no pixels, or reaches beyond the largest hole.
        """
        rows, cols = (torch.arange(n, device=hidden.device, dtype=torch.float64) for n in hidden.shape[-2:])
        if not hidden.any((-2, -1)).all():
            raise UsageError("The mask hides no pixels.", "Paint the area to restore in white.")
        weight = hidden.double() / hidden.sum((-2, -1), keepdim=True)
        row, col = (weight.sum(-1) * rows).sum(-1).round(), (weight.sum(-2) * cols).sum(-1).round()
        squared = (rows - row[:, None]).square()[:, :, None] + (cols - col[:, None]).square()[:, None, :]
        farthest = squared[hidden].max().cpu()
        kept = torch.cumprod(torch.expm1(farthest / (-2 * self.widths**2)).neg(), 0)
        hiding = (kept <= INVISIBLE_SHARE).nonzero()
        if not len(hiding):
            what = (
                f"The mask reaches {float(farthest) ** 0.5:.0f} pixels from its center, beyond this run's largest hole."
            )
            raise UsageError(what, "Use a run with larger holes (degradation.std, degradation.growth), or mask less.")
        return int(hiding[0]) + 1, {"center_row": row.long(), "center_col": col.long()}

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Find the hole by its color, and its growth by how far around it the picture is pulled toward that color."""
        if is_flat(x_t):
            raise UsageError("The picture has only one color, so no hole can be found.", "Give --t.")
        severities = torch.linspace(0, self.steps, min(self.steps, MAX_CANDIDATES) + 1).round().long()
        masks = self._radial_masks(severities)
        x = x_t[0]
        color = torch.full((len(x),), 127.5) if self.fill == "gray" else None
        center = (max(x.shape[-2] // 2 - 1, 0), max(x.shape[-1] // 2 - 1, 0)) if self.location == "center" else None
        hole = find_hole(x, masks, color, center)
        fields = {
            "center_row": torch.tensor([hole.row]),
            "center_col": torch.tensor([hole.col]),
            "color": (hole.color / 127.5 - 1)[None],
        }

        def describe(t: int) -> str:
            if t == 0:
                return "no hole"
            radius = self._radial_masks(torch.tensor([t])).radius(0, 0.5)
            kind = "gray" if self.fill == "gray" else "plain"
            return f"a {kind} hole of {2 * radius:.0f} pixels around row {hole.row}, column {hole.col}"

        estimate = to_estimate(severities, hole.evidence, describe, fields)
        return estimate if estimate.t else dataclasses.replace(estimate, fields={})

    def _radial_masks(self, severities: Tensor) -> HoleMasks:
        """Return M_t by distance for rising severities, as `find_hole` needs it."""
        reach = REACH_WIDTHS * self._largest_width
        squared = torch.linspace(0, reach, RADIAL_NODES, dtype=torch.float64).square()
        return HoleMasks(self._cumulative_products(squared, severities.tolist()), reach)

    def _mask(self, like: Tensor, t: int | Tensor, frozen: FrozenMask) -> Tensor:
        """Return M_t for each image: (B, 1, H, W) float32."""
        height, width = like.shape[-2:]
        rows = torch.arange(height, device=like.device) - frozen.center_row.to(torch.int64)[:, None]
        cols = torch.arange(width, device=like.device) - frozen.center_col.to(torch.int64)[:, None]
        squared = rows.square()[:, :, None] + cols.square()[:, None, :]
        # Enough for centers up to a picture's size outside it; the hole of a farther one is cut off.
        reach = min(REACH_WIDTHS * self._largest_width, 2 * math.hypot(height, width))
        exact = math.ceil(reach**2) + 1
        radial = reach / self.std * NODES_PER_WIDTH
        if exact <= max(radial, MAX_TABLE_ENTRIES // (self.steps + 1)):
            table, row, every = self._table_rows(exact, t, like, is_radial=False)
            mask = _look_up(table, row, squared.clamp_(max=exact - 1))
            return self._completed(mask, squared, t, every).unsqueeze(1)
        nodes = math.ceil(radial) + 2
        table, row, every = self._table_rows(nodes, t, like, is_radial=True)
        place = squared.to(torch.float32).sqrt_().mul_(NODES_PER_WIDTH / self.std).clamp_(max=nodes - 2)
        below = place.long()
        low = _look_up(table, row, below)
        mask = torch.lerp(low, _look_up(table, row, below.add_(1)), place.frac_())
        return self._completed(mask, squared, t, every).unsqueeze(1)

    def _completed(self, mask: Tensor, squared: Tensor, t: int | Tensor, every: int) -> Tensor:
        """Return M_t (B, H, W) float32 from `mask` = M_s, where s is t rounded down to a multiple of `every`.

        Multiplies by the factors of steps s..t - 1 in float64, like the tables. `squared`: squared distances from the
        center, (B, H, W) int64.
        """
        if every == 1:
            return mask
        exponent, product = squared.double().div_(-2), mask.double()
        if isinstance(t, int):
            for width in self.widths[t - t % every : t].tolist():
                product.mul_(torch.expm1(exponent / width**2).neg_())
            return product.float()
        first, widths = t - t % every, devices.on_device(self.widths, t.device)
        for offset in range(every - 1):
            step = (first + offset).view(-1, 1, 1)
            factor = torch.expm1(exponent / widths[step.clamp(max=self.steps - 1)].square()).neg_()
            product = torch.where(step < t.view(-1, 1, 1), product * factor, product)
        return product.float()

    @property
    def _largest_width(self) -> float:
        return self.std + self.growth * (self.steps - 1)

    def _table_rows(
        self, count: int, t: int | Tensor, like: Tensor, *, is_radial: bool
    ) -> tuple[Tensor, int | Tensor, int]:
        """Return a table of M by distance on the device of `like`, the row or rows to use for t, and `every`.

        A table of all severities is cached if it has at most MAX_TABLE_ENTRIES; `every` is then 1. Otherwise only the
        rows of t are built. On a GPU the CPU would have to wait to read t, so the cached table has a row for each
        multiple of `every` only, and the row is that of t rounded down.
        """
        every = min(-(-(self.steps + 1) * count // max(MAX_TABLE_ENTRIES, 1)), self.steps + 1)
        if every == 1 or not devices.can_read(like):
            key = (count, like.device)
            if key not in self.tables:
                self.tables.clear()
                self.tables[key] = self._build_rows(count, range(0, self.steps + 1, every), is_radial).to(like.device)
            return self.tables[key], t if every == 1 else t // every, every
        if isinstance(t, int):
            return self._build_rows(count, [t], is_radial).to(like.device), 0, 1
        severities, row = t.unique(return_inverse=True)
        return self._build_rows(count, severities.tolist(), is_radial).to(like.device), row, 1

    def _build_rows(self, count: int, severities: Sequence[int], is_radial: bool) -> Tensor:
        """Return M_t at `count` distances for rising severities: (S, D) float32."""
        squared = torch.arange(count, dtype=torch.float64)
        if is_radial:
            squared = squared.mul_(self.std / NODES_PER_WIDTH).square_()
        return self._cumulative_products(squared, severities)

    def _cumulative_products(self, squared: Tensor, severities: Sequence[int]) -> Tensor:
        """Return M_t at squared distances (D,) float64 for rising severities: (S, D) float32."""
        widths = self.widths.tolist()
        product, done = torch.ones_like(squared), 0
        rows = torch.empty(len(severities), len(squared), dtype=torch.float32)
        for row, t in enumerate(severities):
            for width in widths[done:t]:
                product.mul_(torch.expm1(squared / (-2 * width**2)).neg_())
            done = t
            rows[row] = product
        return rows


def _look_up(table: Tensor, t: int | Tensor, index: Tensor) -> Tensor:
    """Return table[t][index] per image: (B, H, W), t an int or (B,) int64."""
    if isinstance(t, int):
        return table[t][index]
    return table.view(-1)[index + (t * table.shape[1]).view(-1, 1, 1)]
