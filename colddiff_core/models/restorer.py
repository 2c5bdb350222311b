"""The restorer R(x_t, t) -> x0_hat: a U-Net that may use its operator's inverse."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from colddiff_core.distributed import threads
from colddiff_core.errors import UsageError

INVERSE_BOUND = 2.0  # more than any picture in [-1, 1] with overshoot, so only noise is clipped


class Operator(Protocol):
    """The part of a degradation that the restorer needs."""

    @property
    def has_inverse(self) -> bool:
        """Whether `invert` works."""
        ...

    @property
    def is_linear(self) -> bool:
        """Whether D(., t) is linear or affine."""
        ...

    def __call__(self, x0: Tensor, t: int | Tensor, frozen: Any) -> Tensor:
        """Return D(x0, t), (B, C, H, W) float32."""
        ...

    def invert(self, x_t: Tensor, t: int | Tensor, frozen: Any, floor: float) -> Tensor:
        """Return a regularized inverse of x_t, (B, C, H, W) float32."""
        ...


class Restorer(nn.Module):
    """Restore images: R(x_t, t) -> x0_hat.

    Args:
        unet: the network.
        operator: the degradation to undo.
        inputs: "plain", as in the paper: the U-Net sees x_t. "inverse": it sees [x_t, inverse], the operator's
            regularized inverse of x_t, and predicts the difference from the inverse.
        floor: the noise in x_t divided by the spread of pictures, see `Degradation.invert`.
        consistent: take from x_t what it determines, and only the rest from the network's output u:
            x0_hat = u + inverse(x_t) - inverse(D(u, t)). Otherwise the network's small errors in what x_t determines
            add up over a sampler's steps (docs/decisions/006-consistent-restoration.md).

    Shapes: x_t (B, C, H, W) float32 in [-1, 1], t an int or (B,) int64 in 1..T; returns x0_hat (B, C, H, W) float32,
    not clamped. labels: (B,) int64 for a network with classes; None if the class is unknown.

    Raises:
        UsageError: if the operator has no inverse but `inputs` or `consistent` needs one, or is not linear for
            `consistent`.

    Source: for `consistent`, the range-null space decomposition of Wang et al. 2022 (DDNM), there at sampling only.
    """

    def __init__(
        self,
        unet: nn.Module,
        operator: Operator,
        *,
        inputs: str = "plain",
        floor: float = 1e-5,
        consistent: bool = False,
    ) -> None:
        super().__init__()
        if inputs == "inverse" and not operator.has_inverse:
            raise UsageError("model.inputs = inverse: this operator has no inverse.", "Use model.inputs=plain.")
        if consistent and not (operator.is_linear and operator.has_inverse):
            raise UsageError(
                "model.consistent = true: this operator is not linear or has no inverse.", "Use model.consistent=false."
            )
        self.unet = unet
        self.operator = operator
        self.inputs = inputs
        self.floor = floor
        self.consistent = consistent

    def with_network(self, unet: nn.Module) -> Restorer:
        """Return the same restorer with another network, such as the averaged one."""
        return Restorer(unet, self.operator, inputs=self.inputs, floor=self.floor, consistent=self.consistent)

    def forward(self, x_t: Tensor, t: int | Tensor, frozen: Any = None, labels: Tensor | None = None) -> Tensor:
        """Return x0_hat, (B, C, H, W) float32, not clamped."""
        threads.adapt()
        times = torch.full((len(x_t),), t, device=x_t.device) if isinstance(t, int) else t
        inverse = self._invert(x_t, t, frozen) if self.inputs == "inverse" or self.consistent else x_t
        if self.inputs == "plain":
            estimate = self.unet(x_t, times, labels)
        else:
            clipped = inverse.clamp(-INVERSE_BOUND, INVERSE_BOUND)
            estimate = clipped + self.unet(torch.cat([x_t, clipped], dim=1), times, labels)
        if not self.consistent:
            return estimate
        return estimate + (inverse - self._invert(self.operator(estimate, t, frozen), t, frozen))

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Any) -> Tensor:
        return self.operator.invert(x_t, t, frozen, self.floor)
