"""Restoring pictures that are degraded already: of any size, by how badly they look, and true to what they show."""

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
from colddiff_core.sampling import SAMPLERS, DegradedImages, Sampling

Color = Literal["channels", "luma"]
BITS = 8  # of the pictures that users have
# Least floor of the inverse where a restoration is made consistent: below, what is left of the rounding would be let in
# (at the 1e-5 of runs on float32 pictures a blur's guess of 32 dB became one of 5).
FLOOR = 1 / 64
CANDIDATES = 6  # severities of a sweep
HIDDEN = 0.5  # of a pixel's value that is left where it counts as hidden
SMALLEST_TILE = 128  # pixels of a side


@dataclasses.dataclass(frozen=True)
class DegradedPhotograph:
    """A picture as a run takes it, and what is known of its degradation.

    x_t: (B, C, H, W) float32 in [-1, 1], C the run's channels; B is 3 where a gray run takes the channels of a color
    picture one by one, else 1. picture: the same as its file has it, (C', H, W). frozen: for x_t, what is not known of
    it drawn; is_known: whether nothing had to be. estimate: by the operator's trace, where that was looked for.
    """

    picture: Tensor
    x_t: Tensor
    color: Color
    frozen: Frozen
    is_known: bool
    estimate: Estimate | None
    t: int

    def at(self, t: int) -> DegradedPhotograph:
        """Return the same picture taken to be of another severity."""
        return dataclasses.replace(self, t=t)


@dataclasses.dataclass(frozen=True)
class PhotographRestorer:
    """Restores given pictures with a run's experiment.

    tile: pixels of a side of the network's tiles, None for as many as memory has room for; fewer once it has run out.
    is_consistent: the restoration, degraded again, is to be x_t. `at_share` is called with the share of a picture's
    work done.
    """

    experiment: Experiment
    sampling: Sampling
    is_consistent: bool
    color: Color = "channels"
    tile: int | None = None

    @property
    def needs_inverse(self) -> bool:
        """Tell whether what the picture was rounded to counts, for the inverse magnifies it."""
        restorer = self.experiment.restorer
        return restorer.consistent or restorer.inputs != "plain"

    @property
    def operator(self) -> Degradation:
        return self.experiment.operator

    def look(self, picture: Tensor, t: int | None, hidden: Tensor | None = None) -> DegradedPhotograph:
        """Return a picture (C', H, W) float32 in [-1, 1] as the run takes it.

        t: its severity, None to have it estimated; hidden: (H, W) bool, the pixels to be made anew, from which t then
        follows.
        Raises UsageError where the operator leaves no trace, hides no pixels, or cannot be of so small a picture.
        """
        x_t = self._stack(picture.to(self.experiment.device))
        fields: dict[str, Tensor] = {}
        estimate = None
        wanted = {field.name for field in dataclasses.fields(self.operator.frozen_type)}
        if hidden is not None:
            t, fields = self.operator.severity_to_hide(hidden[None].to(x_t.device))
        elif t is None:
            estimate = self.operator.estimate(self._seen(x_t))
            t, fields = estimate.t, estimate.fields
        elif wanted.intersection(self.operator.estimated_fields):
            with contextlib.suppress(UsageError):  # then nothing is known of them
                fields = self.operator.estimate(self._seen(x_t)).fields
        fields = {name: _for_each(value, x_t) for name, value in fields.items() if name in wanted}
        frozen = self.operator.freeze(x_t, generator=torch.Generator().manual_seed(self.sampling.seed), **fields)
        if hidden is not None:  # whatever is there now, a scratch or a name, must not be seen
            x_t = self.operator(x_t, t, frozen)
        is_known = hidden is not None or wanted <= set(fields) or self.operator.has_reestimate
        return DegradedPhotograph(picture, x_t, self.color, frozen, is_known, estimate, t)

    def restore(self, given: DegradedPhotograph, at_share: Callable[[float], None] = lambda share: None) -> Tensor:
        """Return the restoration of a picture, (C', H, W) float32 in [-1, 1] on the CPU; at t = 0 the picture itself.

        C' is the picture's channels, or 3 where color was put into a gray one. Raises UsageError where not enough is
        known of the picture's degradation: all samplers but "direct" must know it in full, and so must a network that
        is shown the inverse; MachineError where memory has no room even for small tiles.
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
            except (MemoryError, RuntimeError) as error:  # what is not the network's
                if not is_out_of_memory(error):
                    raise
            side //= 2
            if side < SMALLEST_TILE:
                height, width = given.picture.shape[-2:]
                what = f"There is not enough memory on {built.device} for a picture of {width}x{height} pixels."
                raise MachineError(what, "Restore parts of it, or a smaller one.")

    def _check_unknown(self) -> None:
        """Refuse to restore what is not known in full, where that would be restored as something else."""
        name = self.operator.name
        if self.sampling.sampler != "direct":
            what = f"{self.sampling.sampler} must know what {name} drew for a picture, and this one does not tell."
            raise UsageError(what, "Use --sampler direct.")
        if self.is_consistent or self.needs_inverse:
            what = f"Where {name} has its hole in this picture was not found."
            raise UsageError(what, "Mark it with --mask, or give a picture that shows it in flat gray.")

    def _restored(self, given: DegradedPhotograph, side: int, at_share: Callable[[float], None]) -> Tensor:
        unet = self.experiment.restorer.unet
        assert isinstance(unet, UNet)
        done = 0.0
        count = 1 if SAMPLERS[self.sampling.sampler].is_single else -(-given.t // self.sampling.stride)

        def at_tile(share: float) -> None:
            at_share((done + share) / count)

        built = dataclasses.replace(self.experiment, pieces=memory.ChunkedRestorer(1))  # a tile is as large as fits
        built = built.with_network(tiling.TiledRestorer(unet, side, at_tile))
        degraded = DegradedImages(given.x_t, given.t, given.frozen, [0] * len(given.x_t))
        with torch.no_grad():
            x = given.x_t
            for step in built.restore(degraded, dataclasses.replace(self.sampling, bits=BITS)):
                x, done = step.x, float(step.index)
                at_share(done / count)
            if self.is_consistent:
                x = self.project(x, given)
        return x

    def project(self, x0_hat: Tensor, given: DegradedPhotograph) -> Tensor:
        """Return x0_hat changed as little as D(x0_hat, t) = x_t asks for, as far as x_t was not rounded.

        x0_hat + A^+ (x* - A x0_hat), A^+ the regularized inverse and x* the values nearest to A x0_hat that round to
        x_t. Source: the projection of Wang et al. 2022 (DDNM), for pictures of 8 bits.
        """
        again = self.operator(x0_hat, given.t, given.frozen)
        wanted = dequantize(given.x_t, again, BITS)
        floor = max(self.experiment.config.model.floor, FLOOR)
        by = (given.t, given.frozen, floor)
        return x0_hat + (self.operator.invert(wanted, *by) - self.operator.invert(again, *by))

    def _seen(self, x_t: Tensor) -> Tensor:
        """Return what a severity is estimated by, a picture (1, C, H, W): with its colors, if a gray run has them."""
        return x_t if len(x_t) == 1 else x_t.transpose(0, 1)

    def _stack(self, picture: Tensor) -> Tensor:
        own, channels = len(picture), self.experiment.channels
        if own == channels:
            return picture[None]
        if own == 1:
            return picture.expand(1, channels, *picture.shape[1:])
        if self.color == "luma":
            return _luma(picture)[None]
        return picture[:, None]

    def _back(self, given: DegradedPhotograph, x: Tensor) -> Tensor:
        own, channels = len(given.picture), self.experiment.channels
        x = x.clamp(-1, 1)
        if own == channels:
            made = x[0]
        elif own == 1:
            made = x[0] if self.operator.is_coloring else x[0].mean(0, keepdim=True)
        elif given.color == "luma":
            picture = given.picture.to(x.device)
            made = picture + (x[0] - _luma(picture))  # the differences of the channels from luma are the chroma
        else:
            made = x[:, 0]
        return made.clamp(-1, 1).cpu()


def severities(operator: Degradation, estimate: Estimate | None, count: int = CANDIDATES) -> list[int]:
    """Return severities to choose from, 0 not among them: around an estimate, as far again as it may be off, or all."""
    low, high = 1, operator.steps
    if estimate is not None and estimate.t > 0:
        reach = max(estimate.high - estimate.low, count)
        low, high = max(1, estimate.t - reach), min(operator.steps, estimate.t + reach)
    found = {round(low + (high - low) * index / (count - 1)) for index in range(count)}
    if estimate is not None and estimate.t:
        found.add(estimate.t)
    return sorted(found)


def detailed(picture: Tensor, side: int) -> Tensor:
    """Return the window of a picture (C, H, W), up to side x side pixels, in which there is most to see."""
    height, width = (min(side, n) for n in picture.shape[-2:])
    luma = picture.mean(0)
    edges = (luma[1:, :-1] - luma[:-1, :-1]).abs() + (luma[:-1, 1:] - luma[:-1, :-1]).abs()
    pitch = max(1, side // 4)
    places = [
        (top, left)
        for top in range(0, picture.shape[-2] - height + 1, pitch)
        for left in range(0, picture.shape[-1] - width + 1, pitch)
    ]
    # The median row's edges: a single hard one, as of a roof before the sky, is little to see.
    top, left = max(places, key=lambda at: float(_window(edges, at[0], at[1], height, width).mean(1).median()))
    return _window(picture, top, left, height, width)


def around(x: Tensor, side: int, place: tuple[int, int] | None = None) -> tuple[slice, slice, slice]:
    """Return what takes a window of up to side x side pixels of pictures (C, H, W), around a place or their middle."""
    row, column = place or (x.shape[-2] // 2, x.shape[-1] // 2)
    spans = []
    for n, middle in zip(x.shape[-2:], (row, column), strict=True):
        first = min(max(0, middle - side // 2), max(0, n - side))
        spans.append(slice(first, min(first + side, n)))
    return slice(None), spans[0], spans[1]


def hole(given: DegradedPhotograph, operator: Degradation) -> tuple[int, int] | None:
    """Return the middle (row, column) of what an operator hides of a picture, None where it hides nothing."""
    ones = torch.ones_like(given.x_t[:1])
    rows, columns = (operator(ones, given.t, given.frozen[:1])[0].mean(0) < HIDDEN).nonzero(as_tuple=True)
    return (int(rows.float().mean()), int(columns.float().mean())) if len(rows) else None


def _for_each(value: Tensor, x_t: Tensor) -> Tensor:
    """Return a random field of one picture for all of a batch: a color's channels one by one where x_t has them so."""
    if len(x_t) > 1 and value.shape == (1, len(x_t)):
        return value.T
    return value.expand(len(x_t), *value.shape[1:])


def _window(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return x[..., top : top + height, left : left + width]


def _luma(picture: Tensor) -> Tensor:
    weights = LUMA.to(picture.device).view(3, 1, 1)
    return (picture * weights).sum(0, keepdim=True)
