"""Restore pictures that are degraded already: any size, estimated severity, consistent with what they show."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from colddiff_core.degradations import Degradation, Estimate, Frozen
from colddiff_core.errors import MachineError, UsageError, is_out_of_memory
from colddiff_core.experiment import Experiment
from colddiff_core.images import LUMA, dequantize
from colddiff_core.models import UNet, memory, tiling
from colddiff_core.sampling import SAMPLERS, DegradedImages, Sampling, check_sound

Color = Literal["channels", "luma"]
BITS = 8  # of users' pictures
# Smallest floor of the inverse when a restoration is made consistent: below it, rounding errors blow up
# (at the 1e-5 of runs on float32 pictures, a blur's guess of 32 dB dropped to 5).
FLOOR = 1 / 64
CANDIDATES = 6  # severities in a sweep
HIDDEN = 0.5  # a pixel counts as hidden below this share of its value
SMALLEST_TILE_PIXELS = 128  # side


@dataclasses.dataclass(frozen=True)
class DegradedPhotograph:
    """A picture prepared for a run, and what is known about its degradation.

    Attributes:
        picture: (C', H, W) float32 in [-1, 1], as in its file.
        x_t: (B, C, H, W), the same with the run's C channels; B is 3 if a gray run takes a color picture channel by
            channel, else 1.
        frozen: For x_t; unknown fields are drawn at random.
        is_known: Whether every field is known.
        estimate: Of the severity, if it was estimated.
    """

    picture: Tensor
    x_t: Tensor
    color: Color
    frozen: Frozen
    is_known: bool
    estimate: Estimate | None
    t: int

    def at(self, t: int) -> DegradedPhotograph:
        """Return the same picture at another severity."""
        return dataclasses.replace(self, t=t)


@dataclasses.dataclass(frozen=True)
class PhotographRestorer:
    """Restores degraded pictures with a run's experiment.

    Attributes:
        is_consistent: Change the restoration so that, degraded again, it is x_t.
        tile: Side of the network's tiles in pixels, None for the largest that fit in memory; they shrink if memory
            runs out.
    """

    experiment: Experiment
    sampling: Sampling
    is_consistent: bool
    color: Color = "channels"
    tile: int | None = None

    @property
    def needs_inverse(self) -> bool:
        """Say whether the restorer uses the inverse, which magnifies rounding errors."""
        restorer = self.experiment.restorer
        return restorer.consistent or restorer.inputs != "plain"

    @property
    def operator(self) -> Degradation:
        """The run's degradation."""
        return self.experiment.operator

    def look(
        self, picture: Tensor, t: int | None, hidden: Tensor | None = None, estimate: Estimate | None = None
    ) -> DegradedPhotograph:
        """Prepare a picture (C', H, W) float32 in [-1, 1] for the run.

        Args:
            t: Its severity; None to estimate it.
            hidden: (H, W) bool, the pixels to fill in; they determine t.
            estimate: Its severity, if that was estimated already.

        Raises:
            UsageError: The operator leaves no trace or hides no pixels, or the picture is too small.
        """
        x_t = self._stack(picture.to(self.experiment.device))
        fields: dict[str, Tensor] = {}
        random_fields = {field.name for field in dataclasses.fields(self.operator.frozen_type)}
        if hidden is not None:
            t, fields = self.operator.severity_to_hide(hidden[None].to(x_t.device))
        elif t is None:
            estimate = estimate or self.operator.estimate(self._for_estimate(x_t))
            t, fields = estimate.t, estimate.fields
        elif random_fields.intersection(self.operator.estimated_fields):
            with contextlib.suppress(UsageError):  # they stay unknown
                fields = self.operator.estimate(self._for_estimate(x_t)).fields
        fields = {name: _for_each(value, x_t) for name, value in fields.items() if name in random_fields}
        frozen = self.operator.freeze(x_t, generator=torch.Generator().manual_seed(self.sampling.seed), **fields)
        if hidden is not None:  # the network must not see a scratch or a name there
            x_t = self.operator(x_t, t, frozen)
        is_known = hidden is not None or random_fields <= set(fields) or self.operator.has_reestimate
        return DegradedPhotograph(picture, x_t, self.color, frozen, is_known, estimate, t)

    def restore(self, given: DegradedPhotograph, at_share: Callable[[float], None] = lambda share: None) -> Tensor:
        """Restore a picture: (C', H, W) float32 in [-1, 1] on the CPU, with the picture's channels.

        C' is 3 where the operator drains color and the picture is gray. At t = 0 the picture is returned as is.

        Args:
            at_share: Called with the share of the work done, 0 to 1.

        Raises:
            UsageError: Not enough is known about the degradation: all samplers but "direct" need all of it, and so do
                networks that are shown an inverse that needs it; or restored pixels are not finite.
            MachineError: Memory has no room even for small tiles.
        """
        if given.t == 0:
            return given.picture
        built = self.experiment
        if not given.is_known:
            self._check_unknown()
        side = self.tile or memory.tile_side(built.config.model, built.body_dtype, built.device)
        while True:
            try:
                return self._back(given, self._restored(given, side, at_share))
            except memory.TooLargeError:
                pass
            except (MemoryError, RuntimeError) as error:  # outside the network
                if not is_out_of_memory(error):
                    raise
            side //= 2
            if side < SMALLEST_TILE_PIXELS:
                height, width = given.picture.shape[-2:]
                what = f"There is not enough memory on {built.device} for a picture of {width}x{height} pixels."
                raise MachineError(what, "Restore parts of it, or a smaller one.")

    def _check_unknown(self) -> None:
        """Raise UsageError if a random field that was not found would spoil the restoration."""
        name = self.operator.name
        if self.sampling.sampler != "direct":
            what = f"{self.sampling.sampler} needs the random choices of {name}, and this picture does not show them."
            raise UsageError(what, "Use --sampler direct.")
        if not self.operator.inverts_unseen and (self.is_consistent or self.needs_inverse):
            what = f"The hole of {name} was not found in this picture."
            raise UsageError(what, "Mark it with --mask, or use a picture where it is flat gray.")

    def _restored(self, given: DegradedPhotograph, side: int, at_share: Callable[[float], None]) -> Tensor:
        unet = self.experiment.restorer.unet
        assert isinstance(unet, UNet)
        done = 0.0
        count = 1 if SAMPLERS[self.sampling.sampler].is_single else -(-given.t // self.sampling.stride)

        def at_tile(share: float) -> None:
            at_share((done + share) / count)

        built = dataclasses.replace(self.experiment, pieces=memory.ChunkedRestorer(1))  # tiles fill the memory
        built = built.with_network(tiling.TiledRestorer(unet, side, at_tile))
        degraded = DegradedImages(given.x_t, given.t, given.frozen, [0] * len(given.x_t))
        with torch.no_grad():
            x = given.x_t
            for step in built.restore(degraded, dataclasses.replace(self.sampling, bits=BITS)):
                x, done = step.x, float(step.index)
                at_share(done / count)
            check_sound(x)
            if self.is_consistent:
                x = self.project(x, given)
        return x

    def project(self, x0_hat: Tensor, given: DegradedPhotograph) -> Tensor:
        """Project x0_hat (B, C, H, W) onto the images whose degradation rounds to x_t.

        x0_hat + A^+ (x* - A x0_hat), A^+ the regularized inverse and x* the values nearest to A x0_hat that round to
        x_t. Source: the projection of Wang et al. 2022 (DDNM), for pictures of 8 bits.
        """
        degraded = self.operator(x0_hat, given.t, given.frozen)
        target = dequantize(given.x_t, degraded, BITS)
        how = (given.t, given.frozen, max(self.experiment.config.model.floor, FLOOR))
        return x0_hat + (self.operator.invert(target, *how) - self.operator.invert(degraded, *how))

    def _for_estimate(self, x_t: Tensor) -> Tensor:
        """Return the picture to estimate from, (1, C, H, W), with its colors even in a gray run."""
        return x_t if len(x_t) == 1 else x_t.transpose(0, 1)

    def _stack(self, picture: Tensor) -> Tensor:
        """Return x_t (B, C, H, W) of a picture (C', H, W), with the run's channels."""
        own, channels = len(picture), self.experiment.channels
        if own == channels:
            return picture[None]
        if own == 1:
            return picture.expand(1, channels, *picture.shape[1:])
        if self.color == "luma":
            return _luma(picture)[None]
        return picture[:, None]

    def _back(self, given: DegradedPhotograph, x: Tensor) -> Tensor:
        """Return a restored x (B, C, H, W) with the picture's channels, (C', H, W)."""
        own, channels = len(given.picture), self.experiment.channels
        x = x.clamp(-1, 1)
        if own == channels:
            restored = x[0]
        elif own == 1:
            restored = x[0] if self.operator.is_coloring else x[0].mean(0, keepdim=True)
        elif given.color == "luma":
            picture = given.picture.to(x.device)
            restored = picture + (x[0] - _luma(picture))  # keeps the chroma, each channel's difference from luma
        else:
            restored = x[:, 0]
        return restored.clamp(-1, 1).cpu()


def severities(operator: Degradation, estimate: Estimate | None, count: int = CANDIDATES) -> list[int]:
    """Return severities above 0 to choose from: around an estimate, or spread over all of them."""
    low, high = 1, operator.steps
    if estimate is not None and estimate.t > 0:
        reach = max(estimate.high - estimate.low, count)
        low, high = max(1, estimate.t - reach), min(operator.steps, estimate.t + reach)
    candidates = {round(low + (high - low) * index / (count - 1)) for index in range(count)}
    if estimate is not None and estimate.t:
        candidates.add(estimate.t)
    return sorted(candidates)


def detailed(picture: Tensor, side: int) -> Tensor:
    """Return the most detailed window of a picture (C, H, W), up to side x side pixels."""
    height, width = (min(side, n) for n in picture.shape[-2:])
    luma = picture.mean(0)
    edges = (luma[1:, :-1] - luma[:-1, :-1]).abs() + (luma[:-1, 1:] - luma[:-1, :-1]).abs()
    pitch = max(1, side // 4)
    places = [
        (top, left)
        for top in range(0, picture.shape[-2] - height + 1, pitch)
        for left in range(0, picture.shape[-1] - width + 1, pitch)
    ]
    # By the median row: a single hard edge, like a roof against the sky, is not much detail.
    top, left = max(places, key=lambda at: float(_window(edges, at[0], at[1], height, width).mean(1).median()))
    return _window(picture, top, left, height, width)


def around(x: Tensor, side: int, place: tuple[int, int] | None = None) -> tuple[slice, slice, slice]:
    """Return slices for a window of pictures (C, H, W), up to side x side pixels, around a place or the middle."""
    row, column = place or (x.shape[-2] // 2, x.shape[-1] // 2)
    spans = []
    for n, middle in zip(x.shape[-2:], (row, column), strict=True):
        first = min(max(0, middle - side // 2), max(0, n - side))
        spans.append(slice(first, min(first + side, n)))
    return slice(None), spans[0], spans[1]


def hole(given: DegradedPhotograph, operator: Degradation) -> tuple[int, int] | None:
    """Return the center (row, column) of the pixels that an operator hides; None if it hides none."""
    ones = torch.ones_like(given.x_t[:1])
    rows, columns = (operator(ones, given.t, given.frozen[:1])[0].mean(0) < HIDDEN).nonzero(as_tuple=True)
    return (int(rows.float().mean()), int(columns.float().mean())) if len(rows) else None


def _for_each(value: Tensor, x_t: Tensor) -> Tensor:
    """Expand a random field of one picture to a batch; a color is split if x_t has its channels one by one."""
    if len(x_t) > 1 and value.shape == (1, len(x_t)):
        return value.T
    return value.expand(len(x_t), *value.shape[1:])


def _window(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return x[..., top : top + height, left : left + width]


def _luma(picture: Tensor) -> Tensor:
    weights = LUMA.to(picture.device).view(3, 1, 1)
    return (picture * weights).sum(0, keepdim=True)
