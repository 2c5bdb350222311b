"""Gaussian noise: the "hot" diffusion, as one degradation among the others."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor

from colddiff_core.degradations.base import Degradation, Frozen, Generators, at, draw_normal, register
from colddiff_core.schedules import cosine_alphas_cumprod
from colddiff_core.settings import setting

SIGNAL_VARIANCE = 0.25  # of pictures in [-1, 1]; EDM's sigma_data = .5 (Karras et al. 2022)


@dataclasses.dataclass(frozen=True)
class FrozenNoise(Frozen):
    """z: the noise pattern of each image, (B, C, H, W) float32, standard normal."""

    z: Tensor


@register("noise")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise(Degradation):
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) z, z ~ N(0, 1) drawn once per image.

    Source: Bansal et al. 2022, section 5.1 and appendix A.6.
    """

    frozen_type = FrozenNoise
    has_inverse = True

    steps: int = setting(200, "number of severities T; t = T is the most severe", minimum=1)
    schedule: Literal["cosine"] = setting("cosine", "how abar falls from 1 to 0")
    abar: Tensor = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "abar", cosine_alphas_cumprod(self.steps))

    def draw(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> FrozenNoise:
        z = fields.get("z")
        return FrozenNoise(draw_normal(x0, generator) if z is None else z)

    def degrade(self, x0: Tensor, t: int | Tensor, frozen: FrozenNoise) -> Tensor:
        signal, noise = self._shares(x0, t)
        return signal * x0 + noise * frozen.z

    def reestimate(self, x_t: Tensor, x0_hat: Tensor, t: int | Tensor, frozen: Frozen) -> FrozenNoise:
        signal, noise = self._shares(x_t, t)
        return FrozenNoise((x_t - signal * x0_hat) / noise)

    def invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen | None, floor: float) -> Tensor:
        """Return the linear least-squares estimate of x0: x_t / sqrt(abar_t) held back by the noise.

        sqrt(abar) v / (abar v + 1 - abar + floor^2) x_t, with v the variance of pictures: the plain
        quotient where there is little noise, 0 where there is nothing else.
        """
        signal, noise = self._shares(x_t, t)
        kept = SIGNAL_VARIANCE * signal
        return kept / (kept * signal + noise.square() + floor**2) * x_t

    def _shares(self, like: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        abar = at(self.abar, t, like)
        return abar.sqrt().to(like.dtype), (1 - abar).sqrt().to(like.dtype)
