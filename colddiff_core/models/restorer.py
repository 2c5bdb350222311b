"""R(x_t, t) -> x0_hat: the U-Net and what it is told of its operator."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from colddiff_core.errors import UsageError

INVERSE_BOUND = 2.0  # beyond any picture in [-1, 1] with its overshoot: only noise is cut off


class Operator(Protocol):
    """What the restorer needs of a degradation."""

    @property
    def has_inverse(self) -> bool: ...

    @property
    def is_linear(self) -> bool: ...

    def __call__(self, x0: Tensor, t: int | Tensor, frozen: Any) -> Tensor: ...

    def invert(self, x_t: Tensor, t: int | Tensor, frozen: Any, floor: float) -> Tensor: ...


class Restorer(nn.Module):
    """R(x_t, t) -> x0_hat.

    inputs="plain" is the paper's: the U-Net sees x_t. inputs="inverse" shows it [x_t, inverse], the
    operator's regularized inverse of x_t, and has it predict the difference from the inverse.

    consistent: what x_t tells of x0 beyond doubt is taken from x_t, the rest from the network's u:
    x0_hat = u + inverse(x_t) - inverse(D(u, t)). Without it the network's small errors in what x_t holds
    exactly add up over a sampler's steps (docs/decisions/006-consistent-restoration.md). Source: the
    range-null space decomposition of Wang et al. 2022 (DDNM), there at sampling alone.

    Shapes: x_t (B, C, H, W) float32 in [-1, 1], t an int or (B,) int64 in 1..T; returns x0_hat
    (B, C, H, W) float32, not clamped. labels: (B,) int64, for a network that knows classes; None for
    images of no known class. Raises UsageError where the operator has no inverse, or is not linear for `consistent`.
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
            raise UsageError("model.inputs = 'inverse': this operator has no inverse.", "Use model.inputs=plain.")
        if consistent and not (operator.is_linear and operator.has_inverse):
            raise UsageError(
                "model.consistent: this operator is not linear, or has no inverse.", "Use model.consistent=false."
            )
        self.unet = unet
        self.operator = operator
        self.inputs = inputs
        self.floor = floor
        self.consistent = consistent

    def with_network(self, unet: nn.Module) -> Restorer:
        """Return the same restorer around another network, such as the averaged one."""
        return Restorer(unet, self.operator, inputs=self.inputs, floor=self.floor, consistent=self.consistent)

    def forward(self, x_t: Tensor, t: int | Tensor, frozen: Any = None, labels: Tensor | None = None) -> Tensor:
        times = torch.full((len(x_t),), t, device=x_t.device) if isinstance(t, int) else t
        inverse = self._invert(x_t, t, frozen) if self.inputs == "inverse" or self.consistent else x_t
        if self.inputs == "plain":
            estimate = self.unet(x_t, times, labels)
        else:
            shown = inverse.clamp(-INVERSE_BOUND, INVERSE_BOUND)
            estimate = shown + self.unet(torch.cat([x_t, shown], dim=1), times, labels)
        if not self.consistent:
            return estimate
        return estimate + (inverse - self._invert(self.operator(estimate, t, frozen), t, frozen))

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Any) -> Tensor:
        return self.operator.invert(x_t, t, frozen, self.floor)
