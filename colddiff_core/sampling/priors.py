"""Priors: distributions of x_T, where generation starts.

Every image is drawn with its own generator, so it does not depend on how many are drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.datasets import ImageSet
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.degradations.draws import draw_integers, draw_normal, draw_uniform
from colddiff_core.errors import UsageError
from colddiff_core.text import nearest

Weights = dict[str, Tensor]
ImageGenerators = Sequence[torch.Generator]  # one per image
BROKEN_SYMMETRY = 0.002  # Source: Bansal et al. 2022, section 5.2


@dataclasses.dataclass(frozen=True)
class PriorSource:
    """The operator and the data that a prior is fitted to and drawn for.

    Attributes:
        operator: D.
        shape: (C, H, W) of an image.
        images: Loads the training images, for the priors that need them.
        freeze: Draws everything random about images.
        observe: Turns x_t into what the network sees.
        second: The second data set of an operator that mixes one in.
    """

    operator: Degradation
    shape: tuple[int, int, int]
    images: Callable[[], ImageSet]
    freeze: Callable[[Tensor, ImageGenerators], Frozen]
    observe: Callable[[Tensor, ImageGenerators], Tensor]
    second: ImageSet | None = None


@dataclasses.dataclass(frozen=True)
class InitialState:
    """Where generation starts: x_T = base + noise * field.

    Attributes:
        base: (B, C, H, W) float32 in [-1, 1], x_T before its symmetry is broken.
        field: Standard normal noise of the same shape.
        noise: Its width.
        frozen: What is random about each image.
    """

    base: Tensor
    field: Tensor
    noise: float
    frozen: Frozen

    @property
    def x(self) -> Tensor:
        return self.base + self.noise * self.field

    def __getitem__(self, images: Tensor) -> InitialState:
        """Select images by index, (N,) int64."""
        return dataclasses.replace(self, base=self.base[images], field=self.field[images], frozen=self.frozen[images])

    def to(self, device: torch.device) -> InitialState:
        """Return a copy on a device."""
        fields = {f.name: getattr(self.frozen, f.name).to(device) for f in dataclasses.fields(self.frozen)}
        frozen = dataclasses.replace(self.frozen, **fields)
        return dataclasses.replace(self, base=self.base.to(device), field=self.field.to(device), frozen=frozen)


class Prior:
    """A distribution of x_T. Subclasses define how to draw it and which random fields of the operator x_T fixes.

    Attributes:
        noise: Default width of the white noise that breaks the symmetry between pixels; None if there is no symmetry
            to break.
        is_drawn_from_images: Every draw uses some of the training images.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    is_drawn_from_images: ClassVar[bool] = False
    noise: ClassVar[float | None] = None

    def draw(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> tuple[Tensor, Frozen]:
        """Draw x_T (B, C, H, W) float32 and its frozen fields, one image per generator."""
        x = self.images(source, weights, generators)
        return x, source.operator.freeze(x, generator=generators, **self.known(source.operator, x))

    def images(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> Tensor:
        """Draw x_T (B, C, H, W) float32, one image per generator."""
        raise TypeError(f"{type(self).__name__} does not define images")

    def known(self, op: Degradation, x: Tensor) -> dict[str, Tensor]:
        """Return the random fields of the operator that follow from x_T."""
        return {}

    def blend(self, first: Tensor, last: Tensor, share: Tensor) -> Tensor:
        """Interpolate between two draws (1, C, H, W) at shares (N, 1, 1, 1) in [0, 1]."""
        return torch.lerp(first, last, share)


class MixturePrior(Prior):
    """A Gaussian mixture over a short summary of each image."""

    noise = 0.0

    def summarize(self, op: Degradation, x: Tensor) -> Tensor:
        """Summarize images x_T (B, C, H, W) as vectors (B, D) float32."""
        raise TypeError(f"{type(self).__name__} does not define summarize")

    def spread(self, source: PriorSource, summaries: Tensor) -> Tensor:
        """Turn summaries (B, D) back into images (B, C, H, W)."""
        raise TypeError(f"{type(self).__name__} does not define spread")

    def images(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> Tensor:
        blank = torch.empty(len(generators), 0)
        shares = draw_uniform(blank, generators, (1,))
        normal = draw_normal(blank, generators, tuple(weights["means"].shape[1:]))
        # The cumulative sum may end slightly below 1.
        component = (
            torch.searchsorted(weights["shares"].cumsum(0), shares).squeeze(1).clamp_(max=len(weights["shares"]) - 1)
        )
        offsets = (weights["factors"][component] @ normal.unsqueeze(2)).squeeze(2)
        return self.spread(source, weights["means"][component] + offsets).clamp(-1, 1)


class ChannelMeansPrior(MixturePrior):
    """One constant per channel: the channel's mean. Source: Bansal et al. 2022, section 5.2."""

    name = "gmm"
    meaning = "a Gaussian mixture over the channel means of the training images"
    noise = BROKEN_SYMMETRY

    def summarize(self, op: Degradation, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def spread(self, source: PriorSource, summaries: Tensor) -> Tensor:
        return summaries[:, :, None, None].expand(-1, *source.shape).clone()


class LowResolutionPrior(MixturePrior):
    """The few pixels that pixelation leaves. Source: Bansal et al. 2022, section 5.3."""

    name = "gaussian"
    meaning = "a Gaussian over the few pixels that are left"

    def summarize(self, op: Degradation, x: Tensor) -> Tensor:
        return F.interpolate(x, size=self._sides(op, x.shape[-2:]), mode="nearest-exact").flatten(1)

    def spread(self, source: PriorSource, summaries: Tensor) -> Tensor:
        channels, *sides = source.shape
        low = summaries.view(-1, channels, *self._sides(source.operator, sides))
        return F.interpolate(low, size=sides, mode="nearest-exact")

    def _sides(self, op: Degradation, sides: Sequence[int]) -> list[int]:
        return [max(n >> op.steps, 1) for n in sides]


class ColorPrior(Prior):
    """One solid color, uniform over all colors. Source: Bansal et al. 2022, section 5.3."""

    name = "color"
    meaning = "one solid color per image, all equally likely"
    noise = 0.0

    def images(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> Tensor:
        color = draw_uniform(torch.empty(len(generators), 0), generators, source.shape[:1]) * 2 - 1
        return color[:, :, None, None].expand(-1, *source.shape).clone()

    def known(self, op: Degradation, x: Tensor) -> dict[str, Tensor]:
        return {"color": x[:, :, 0, 0]}


class NormalPrior(Prior):
    """Standard normal noise. Source: Bansal et al. 2022, section 5.1."""

    name = "normal"
    meaning = "standard normal noise"

    def images(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> Tensor:
        return draw_normal(torch.empty(len(generators), 0), generators, source.shape)

    def known(self, op: Degradation, x: Tensor) -> dict[str, Tensor]:
        return {"z": x}

    def blend(self, first: Tensor, last: Tensor, share: Tensor) -> Tensor:
        return slerp(first, last, share)


class ImagesPrior(Prior):
    """Images of the second data set. Source: Bansal et al. 2022, section 5.3 (animorphosis)."""

    name = "images"
    meaning = "images of the second data set"

    def images(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> Tensor:
        assert source.second is not None
        picked = draw_integers(torch.empty(len(generators), 0), generators, len(source.second))
        return source.second.images(picked)

    def known(self, op: Degradation, x: Tensor) -> dict[str, Tensor]:
        return {op.second_field: x}


class DegradedPrior(Prior):
    """Degraded training images: no model, so it shows what a perfect prior would give."""

    name = "degraded"
    meaning = "degraded training images, as a perfect prior would give"
    is_drawn_from_images = True

    def draw(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> tuple[Tensor, Frozen]:
        images = source.images()
        picked = draw_integers(torch.empty(len(generators), 0), generators, len(images))
        x0 = images.images(picked)
        frozen = source.freeze(x0, generators)
        return source.observe(source.operator(x0, source.operator.steps, frozen), generators), frozen


_REGISTRY: dict[str, Prior] = {
    prior.name: prior
    for prior in (
        ChannelMeansPrior(),
        LowResolutionPrior(),
        ColorPrior(),
        NormalPrior(),
        ImagesPrior(),
        DegradedPrior(),
    )
}


def names() -> list[str]:
    """Return the names of all priors, sorted."""
    return sorted(_REGISTRY)


def find(name: str | None, op: Degradation) -> Prior:
    """Find a prior by name; None is the operator's default.

    Raises:
        UsageError: for an unknown name, or one that does not fit the operator.
    """
    if name is None:
        name = op.priors[0]
    if name not in _REGISTRY:
        raise UsageError(f"Unknown prior '{name}'.", nearest(name, _REGISTRY))
    if name not in op.priors:
        meaning = _REGISTRY[name].meaning
        remedy = f"Use one of: {', '.join(op.priors)}."
        raise UsageError(f"The prior '{name}' does not fit {op.name}: it is {meaning}.", remedy)
    return _REGISTRY[name]


def draw(
    prior: Prior, source: PriorSource, weights: Weights, generators: ImageGenerators, noise: float
) -> InitialState:
    """Draw where generation starts, one image per generator, with white noise of width `noise`."""
    base, frozen = prior.draw(source, weights, generators)
    field = draw_normal(base, generators, tuple(base.shape[1:]))
    return InitialState(base, field, noise, frozen)


def between(prior: Prior, op: Degradation, ends: InitialState, count: int) -> InitialState:
    """Interpolate `count` starting points from the first image of `ends` to its second, both included."""
    share = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    base = prior.blend(ends.base[:1], ends.base[1:2], share)
    frozen = ends.frozen[(share.flatten() > 0.5).long()]  # the nearer end's: two holes have nothing in between
    frozen = dataclasses.replace(frozen, **prior.known(op, base))
    return InitialState(base, slerp(ends.field[:1], ends.field[1:2], share), ends.noise, frozen)


def slerp(first: Tensor, last: Tensor, share: Tensor) -> Tensor:
    """Interpolate along the great circle through two images (1, C, H, W), at shares (N, 1, 1, 1) in [0, 1].

    A straight line between two draws of normal noise would pass through norms that no draw has.
    Source: Shoemake 1985.
    """
    cosine = (first * last).sum() / (first.norm() * last.norm()).clamp_min(torch.finfo(first.dtype).tiny)
    angle = torch.acos(cosine.clamp(-1, 1))
    if torch.sin(angle) < 1e-6:
        return torch.lerp(first, last, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / torch.sin(angle)
