"""Classifier-free guidance: a restorer that leans towards a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def guided(restorer: Callable[..., Tensor], weight: float, unknown: int) -> Callable[..., Tensor]:
    """Return a restorer that is called as this one is, with labels, and evaluates it with and without them.

        x0_hat = R(x_t, t, none) + weight (R(x_t, t, class) - R(x_t, t, none))

    Both evaluations are one batch. With a linear operator a consistent restorer stays consistent.

    Args:
        restorer: R, of a network with classes.
        weight: 1 for the class as trained, above 1 to lean towards it, 0 for any class.
        unknown: The label that stands for no class.

    Source: Ho and Salimans 2022, equation 6, with x0_hat in place of the noise; their weight is one lower.
    """

    def restore(x_t: Tensor, t: int | Tensor, frozen: Any, labels: Tensor) -> Tensor:
        twice = torch.arange(len(x_t), device=x_t.device).repeat(2)
        both = torch.cat([labels, torch.full_like(labels, unknown)])
        times = t if isinstance(t, int) else t[twice]
        of_class, of_any = restorer(x_t[twice], times, frozen[twice], labels=both).chunk(2)
        return of_any + weight * (of_class - of_any)

    return restore
