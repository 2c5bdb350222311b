"""Mixtures of the image with Gaussian noise (noise) or with an image of a second data set (animorph)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Frozen, entry_at
from colddiff_core.degradations.draws import Generators, draw_normal
from colddiff_core.degradations.registry import register
from colddiff_core.degradations.schedules import cosine_alphas_cumprod
from colddiff_core.errors import UsageError

SIGNAL_VARIANCE = 0.25  # of pictures in [-1, 1]; EDM's sigma_data = .5 (Karras et al. 2022)


@dataclasses.dataclass(frozen=True)
class FrozenMixture(Frozen):
    """What each image is mixed with.

    Attributes:
        z: noise or images, (B, C, H, W) float32.
    """

    z: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Degradation):
    """Mix with z: x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) z, with one z per image.

    Source: Bansal et al. 2022, sections 5.1 and 5.3.
    """

    frozen_type = FrozenMixture
    has_inverse = True

    steps: int = setting(200, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    schedule: Literal["cosine"] = setting("cosine", "schedule by which abar falls from 1 to 0")
    abar: Tensor = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "abar", cosine_alphas_cumprod(self.steps))

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: FrozenMixture) -> Tensor:
        signal, other = self._shares(x0, t)
        return (signal * x0).addcmul_(other, frozen.z)

    def _reestimate(self, x_t: Tensor, x0_hat: Tensor, t: int | Tensor, frozen: FrozenMixture) -> FrozenMixture:
        signal, other = self._shares(x_t, t)
        # At t = 0 nothing is mixed in, so z cannot be solved for.
        return FrozenMixture(torch.where(other > 0, (x_t - signal * x0_hat) / other, frozen.z))

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        """Return the linear least-squares estimate of x0: sqrt(abar) v / (abar v + 1 - abar + floor^2) x_t.

        v is the variance of pictures. Near t = 0 this is x_t / sqrt(abar), near t = T it is 0.
        """
        signal, other = self._shares(x_t, t)
        weighted_signal = SIGNAL_VARIANCE * signal
        return weighted_signal / (weighted_signal * signal + other.square() + floor**2) * x_t

    def _shares(self, like: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        abar = entry_at(self.abar, t, like)
        return abar.sqrt().to(like.dtype), (1 - abar).sqrt().to(like.dtype)


@register("noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Mixture):
    """Gaussian noise: x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) z, z ~ N(0, 1) drawn once per image ("hot" diffusion).

    Source: Bansal et al. 2022, section 5.1 and appendix A.6.
    """

    @property
    def priors(self) -> tuple[str, ...]:
        """Return the names of the priors for x_T, the default first."""
        return ("normal", "degraded")

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenMixture:
        z = fields.get("z")
        return FrozenMixture(draw_normal(x0, generator, tuple(x0.shape[1:])) if z is None else z)


@register("animorph")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Animorph(Mixture):
    """Animorphosis: x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) z, z an image of a second data set.

    Source: Bansal et al. 2022, section 5.3 (animorphosis: faces to animals).
    """

    second_field = "z"

    @property
    def priors(self) -> tuple[str, ...]:
        """Return the names of the priors for x_T, the default first."""
        return ("images", "degraded")

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenMixture:
        if "z" not in fields:
            raise UsageError("animorph needs images of a second data set.", "Pass them to freeze as z=images.")
        return FrozenMixture(fields["z"])
