"""x_T from nothing: where generation starts.

A prior says how the most degraded images are distributed. What it must learn it fits once to the training
images; every draw then has a generator of its own, so an image does not depend on how many are asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.degradations.base import draw_integers, draw_normal, draw_uniform
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import whole
from colddiff_core.tensor_files import write
from colddiff_core.text import counted, nearest

Weights = dict[str, Tensor]
ImageGenerators = Sequence[torch.Generator]  # one for each image
FIT_BATCH = 500
BROKEN_SYMMETRY = 0.002  # Source: Bansal et al. 2022, section 5.2


@dataclasses.dataclass(frozen=True)
class PriorSource:
    """What priors are fitted to and drawn for.

    operator: D; shape: (C, H, W) of an image; images: loads the training images, called only by priors that need
    them; freeze: draws everything random about images; observe: what the network gets to see of x_t; second: the
    second data set where the operator mixes one in.
    """

    operator: Degradation
    shape: tuple[int, int, int]
    images: Callable[[], ImageSet]
    freeze: Callable[[Tensor, ImageGenerators], Frozen]
    observe: Callable[[Tensor, ImageGenerators], Tensor]
    second: ImageSet | None = None


@dataclasses.dataclass(frozen=True)
class InitialState:
    """Where generation starts: base + noise * field is x_T, and `frozen` what is random about each image.

    base: (B, C, H, W) float32 in [-1, 1], x_T before its symmetry is broken; field: standard normal numbers of the
    same shape; noise: their width.
    """

    base: Tensor
    field: Tensor
    noise: float
    frozen: Frozen

    @property
    def x(self) -> Tensor:
        return self.base + self.noise * self.field

    def __getitem__(self, images: Tensor) -> InitialState:
        """Return the starts of some images, by their numbers (N,) int64."""
        return dataclasses.replace(self, base=self.base[images], field=self.field[images], frozen=self.frozen[images])

    def to(self, device: torch.device) -> InitialState:
        """Return the start on a device."""
        fields = {f.name: getattr(self.frozen, f.name).to(device) for f in dataclasses.fields(self.frozen)}
        frozen = dataclasses.replace(self.frozen, **fields)
        return dataclasses.replace(self, base=self.base.to(device), field=self.field.to(device), frozen=frozen)


class Prior:
    """A distribution of x_T. A subclass says how it is drawn, and what x_T tells of the operator's random fields.

    noise: width of the white noise that breaks the symmetry between pixels, unless user or run say otherwise; None
    where there is no symmetry to break. is_fitted: whether it learns from the training images; is_drawn_from_images:
    whether every draw takes some of them.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    is_fitted: ClassVar[bool] = False
    is_drawn_from_images: ClassVar[bool] = False
    noise: ClassVar[float | None] = None

    def draw(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> tuple[Tensor, Frozen]:
        """Return x_T (B, C, H, W) float32 and its frozen fields, an image for each generator."""
        x = self.images(source, weights, generators)
        return x, source.operator.freeze(x, generator=generators, **self.known(source.operator, x))

    def images(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> Tensor:
        """Return x_T (B, C, H, W) float32, an image for each generator."""
        raise TypeError(f"{type(self).__name__} does not define images")

    def known(self, op: Degradation, x: Tensor) -> dict[str, Tensor]:
        """Return the operator's random fields that x_T tells."""
        return {}

    def blend(self, first: Tensor, last: Tensor, share: Tensor) -> Tensor:
        """Return what lies between two draws (1, C, H, W) at shares (N, 1, 1, 1) in [0, 1]."""
        return torch.lerp(first, last, share)


class MixturePrior(Prior):
    """A Gaussian mixture over a few numbers of each image."""

    is_fitted = True
    noise = 0.0

    def summarize(self, op: Degradation, x: Tensor) -> Tensor:
        """Return the few numbers that tell images x_T (B, C, H, W) apart: (B, D) float32."""
        raise TypeError(f"{type(self).__name__} does not define summarize")

    def spread(self, source: PriorSource, summaries: Tensor) -> Tensor:
        """Return the images (B, C, H, W) that summaries (B, D) stand for."""
        raise TypeError(f"{type(self).__name__} does not define spread")

    def images(self, source: PriorSource, weights: Weights, generators: ImageGenerators) -> Tensor:
        blank = torch.empty(len(generators), 0)
        shares = draw_uniform(blank, generators, (1,))
        normal = draw_normal(blank, generators, tuple(weights["means"].shape[1:]))
        # The shares may sum to a hair below 1.
        component = (
            torch.searchsorted(weights["shares"].cumsum(0), shares).squeeze(1).clamp_(max=len(weights["shares"]) - 1)
        )
        offsets = (weights["factors"][component] @ normal.unsqueeze(2)).squeeze(2)
        return self.spread(source, weights["means"][component] + offsets).clamp(-1, 1)


class ChannelMeansPrior(MixturePrior):
    """Every pixel of an image alike: the mean of each channel. Source: Bansal et al. 2022, section 5.2."""

    name = "gmm"
    meaning = "a Gaussian mixture over the channel means of the training images"
    noise = BROKEN_SYMMETRY

    def summarize(self, op: Degradation, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def spread(self, source: PriorSource, summaries: Tensor) -> Tensor:
        return summaries[:, :, None, None].expand(-1, *source.shape).clone()


class LowResolutionPrior(MixturePrior):
    """The few pixels that pixelation leaves, as one vector. Source: Bansal et al. 2022, section 5.3."""

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
    """One solid color, uniform over all. Source: Bansal et al. 2022, section 5.3."""

    name = "color"
    meaning = "one solid color an image, any as likely as another"
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
    """Training images, degraded: nothing is modeled, so it shows what a perfect prior would give."""

    name = "degraded"
    meaning = "training images, degraded: what a perfect prior would give"
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
    """Return every prior's name, sorted."""
    return sorted(_REGISTRY)


def find(name: str | None, op: Degradation) -> Prior:
    """Return a prior of an operator, its default where `name` is None.

    Raises UsageError for an unknown name, and for one that does not fit the operator.
    """
    if name is None:
        name = op.priors[0]
    if name not in _REGISTRY:
        raise UsageError(f"Unknown prior '{name}'.", nearest(name, _REGISTRY))
    if name not in op.priors:
        meaning = _REGISTRY[name].meaning
        remedy = f"Use one of: {', '.join(op.priors)}."
        raise UsageError(f"The prior '{name}' is {meaning}; images under {op.name} do not end as that.", remedy)
    return _REGISTRY[name]


def load_or_fit(prior: Prior, source: PriorSource, folder: Path, components: int | None) -> Weights:
    """Return a prior's weights, fitted once and kept in `folder`; none for a prior that is not fitted.

    Raises UsageError for more components than images, or components where nothing is fitted.
    """
    if not isinstance(prior, MixturePrior):
        if components is not None:
            raise UsageError(f"The prior '{prior.name}' has no components.", "Leave --components out.")
        return {}
    count = 1 if components is None else components
    path = folder / f"{prior.name}-{count}.safetensors"
    kept = _read(path, count)
    if kept is None:
        kept = _fit(prior, source, count)
        if not folder.is_symlink():  # in someone's run that may lead anywhere
            with contextlib.suppress(MachineError), whole(path) as draft:  # a run that cannot be written to can be used
                write(kept, draft)
    return kept


def draw(
    prior: Prior, source: PriorSource, weights: Weights, generators: ImageGenerators, noise: float
) -> InitialState:
    """Return where generation starts: an image for each generator, white noise of width `noise` on it."""
    base, frozen = prior.draw(source, weights, generators)
    field = draw_normal(base, generators, tuple(base.shape[1:]))
    return InitialState(base, field, noise, frozen)


def between(prior: Prior, op: Degradation, ends: InitialState, count: int) -> InitialState:
    """Return `count` starts on the way from the first image of `ends` to its second, both included."""
    share = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    base = prior.blend(ends.base[:1], ends.base[1:2], share)
    frozen = ends.frozen[(share.flatten() > 0.5).long()]  # the nearer end's, for there is nothing between two holes
    frozen = dataclasses.replace(frozen, **prior.known(op, base))
    return InitialState(base, slerp(ends.field[:1], ends.field[1:2], share), ends.noise, frozen)


def slerp(first: Tensor, last: Tensor, share: Tensor) -> Tensor:
    """Return points of the great circle through two images (1, C, H, W), for shares (N, 1, 1, 1) in [0, 1].

    Between two draws of standard normal numbers a straight line passes through lengths that no draw has.
    Source: Shoemake 1985.
    """
    cosine = (first * last).sum() / (first.norm() * last.norm()).clamp_min(torch.finfo(first.dtype).tiny)
    angle = torch.acos(cosine.clamp(-1, 1))
    if torch.sin(angle) < 1e-6:
        return torch.lerp(first, last, share)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * last) / torch.sin(angle)


def _fit(prior: MixturePrior, source: PriorSource, count: int) -> Weights:
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415 - half a second that a kept prior need not pay

    images, op = source.images(), source.operator
    if len(images) < 2:
        raise UsageError(f"The prior '{prior.name}' cannot be fitted to one training image.", "Use --prior degraded.")
    if count > len(images):
        raise UsageError(
            f"{counted(count, 'component')} for {counted(len(images), 'training image')}.", "Use fewer --components."
        )
    summaries = []
    for first in range(0, len(images), FIT_BATCH):
        numbers = range(first, min(first + FIT_BATCH, len(images)))
        x0 = images.images(slice(numbers.start, numbers.stop))
        frozen = source.freeze(x0, seeds.image_generators(0, numbers))
        summaries.append(prior.summarize(op, op(x0, op.steps, frozen)))
    # The seed is fixed: a prior belongs to the run, not to a request.
    mixture = GaussianMixture(count, random_state=0).fit(torch.cat(summaries).double().numpy())
    covariances = torch.from_numpy(mixture.covariances_)
    return {
        "shares": torch.from_numpy(mixture.weights_).float(),
        "means": torch.from_numpy(mixture.means_).float(),
        "factors": torch.linalg.cholesky(covariances).float().contiguous(),
    }


def _read(path: Path, count: int) -> Weights | None:
    """Return the weights kept in a file, or None where there are none that could be these."""
    try:
        weights = safetensors.torch.load(path.read_bytes())
        size = weights["means"].shape[1]
        wanted = {"shares": (count,), "means": (count, size), "factors": (count, size, size)}
        is_right = {name: tuple(tensor.shape) for name, tensor in weights.items()} == wanted
    except (OSError, safetensors.SafetensorError, KeyError, IndexError):
        return None
    is_sound = all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values())
    return weights if is_right and is_sound else None
