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

    def invert(self, x_t: Tensor, t: int | Tensor, frozen: Any, floor: float) -> Tensor: ...


class Restorer(nn.Module):
    """R(x_t, t) -> x0_hat.

    inputs="plain" is the paper's: the U-Net sees x_t. inputs="inverse" shows it [x_t, inverse], the
    operator's regularised inverse of x_t, and has it predict the difference from the inverse.

    Shapes: x_t (B, C, H, W) float32 in [-1, 1], t an int or (B,) int64 in 1..T; returns x0_hat
    (B, C, H, W) float32, not clamped. Raises UsageError where the operator has no inverse.
    """

    def __init__(self, unet: nn.Module, operator: Operator, *, inputs: str = "plain", floor: float = 1e-5) -> None:
        super().__init__()
        if inputs == "inverse" and not operator.has_inverse:
            raise UsageError("model.inputs = 'inverse': this operator has no inverse.", "Use model.inputs=plain.")
        self.unet = unet
        self.operator = operator
        self.inputs = inputs
        self.floor = floor

    def with_network(self, unet: nn.Module) -> Restorer:
        """Return the same restorer around another network, such as the averaged one."""
        return Restorer(unet, self.operator, inputs=self.inputs, floor=self.floor)

    def forward(self, x_t: Tensor, t: int | Tensor, frozen: Any = None) -> Tensor:
        times = torch.full((len(x_t),), t, device=x_t.device) if isinstance(t, int) else t
        if self.inputs == "plain":
            return self.unet(x_t, times)
        inverse = self.operator.invert(x_t, t, frozen, self.floor).clamp(-INVERSE_BOUND, INVERSE_BOUND)
        return inverse + self.unet(torch.cat([x_t, inverse], dim=1), times)
