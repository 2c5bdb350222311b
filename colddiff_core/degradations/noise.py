"""x_t between the image and another one: Gaussian noise, or a picture of a second data set."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from colddiff_core.config.fields import setting
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Frozen, Generators, at, draw_normal
from colddiff_core.degradations.registry import register
from colddiff_core.degradations.schedules import cosine_alphas_cumprod
from colddiff_core.errors import UsageError

SIGNAL_VARIANCE = 0.25  # of pictures in [-1, 1]; EDM's sigma_data = .5 (Karras et al. 2022)


@dataclasses.dataclass(frozen=True)
class FrozenMixture(Frozen):
    """z: what each image is mixed with, (B, C, H, W) float32."""

    z: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Degradation):
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) z, z fixed for each image.

    Source: Bansal et al. 2022, sections 5.1 and 5.3.
    """

    frozen_type = FrozenMixture
    has_inverse = True

    steps: int = setting(200, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)
    schedule: Literal["cosine"] = setting("cosine", "how abar falls from 1 to 0")
    abar: Tensor = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "abar", cosine_alphas_cumprod(self.steps))

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: FrozenMixture) -> Tensor:
        signal, other = self._shares(x0, t)
        return (signal * x0).addcmul_(other, frozen.z)

    def _reestimate(self, x_t: Tensor, x0_hat: Tensor, t: int | Tensor, frozen: FrozenMixture) -> FrozenMixture:
        signal, other = self._shares(x_t, t)
        # At t = 0 nothing is mixed in, and x_t says nothing of z.
        return FrozenMixture(torch.where(other > 0, (x_t - signal * x0_hat) / other, frozen.z))

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        """Return the linear least-squares estimate of x0: x_t / sqrt(abar_t) held back by the other image.

        sqrt(abar) v / (abar v + 1 - abar + floor^2) x_t, with v the variance of pictures: the plain
        quotient where little is mixed in, 0 where there is nothing else.
        """
        signal, other = self._shares(x_t, t)
        kept = SIGNAL_VARIANCE * signal
        return kept / (kept * signal + other.square() + floor**2) * x_t

    def _shares(self, like: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        abar = at(self.abar, t, like)
        return abar.sqrt().to(like.dtype), (1 - abar).sqrt().to(like.dtype)


@register("noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Mixture):
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) z, z ~ N(0, 1) drawn once per image: "hot" diffusion.

    Source: Bansal et al. 2022, section 5.1 and appendix A.6.
    """

    @property
    def priors(self) -> tuple[str, ...]:
        return ("normal", "degraded")

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenMixture:
        z = fields.get("z")
        return FrozenMixture(draw_normal(x0, generator, tuple(x0.shape[1:])) if z is None else z)


@register("animorph")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Animorph(Mixture):
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) z, z an image of a second data set.

    Source: Bansal et al. 2022, section 5.3 (animorphosis: faces to animals).
    """

    second_field = "z"

    @property
    def priors(self) -> tuple[str, ...]:
        return ("images", "degraded")

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenMixture:
        if "z" not in fields:
            raise UsageError("animorph mixes in images of a second data set.", "None were given: freeze with z=images.")
        return FrozenMixture(fields["z"])
