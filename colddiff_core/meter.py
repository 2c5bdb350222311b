"""What a training run logs: means over the steps since the last line."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

BANDS = 4  # of severity, for the loss


class Meter:
    """Sums since the last logged line, kept on the device so that a step does not wait for them.

    grad_norm: () float32, of the newest step that tells it.
    """

    def __init__(self, device: torch.device, elapsed: float) -> None:
        """Begin; `elapsed` is how many seconds were trained before."""
        self.device = device
        self.losses: list[Tensor] = []
        self.times: list[Tensor] = []
        self.grad_norm = torch.zeros((), device=device)
        self.logged = time.monotonic()
        self.started = self.logged - elapsed

    def add(self, losses: Tensor, t: Tensor) -> None:
        """Add the losses (B,) of images at severities t (B,)."""
        self.losses.append(losses)
        self.times.append(t)

    def keep(self, count: int) -> None:
        """Forget all but the first `count` that were added since the last reading."""
        del self.losses[count:], self.times[count:]

    def skip_since(self, began: float | None) -> None:
        """Leave a pause that began at that time out of the times."""
        seconds = 0.0 if began is None else time.monotonic() - began
        self.logged += seconds
        self.started += seconds

    def read(self, steps: int) -> dict[str, Any]:
        """Return the means since the last reading, and begin anew; `steps` is the operator's T."""
        losses, times = torch.cat(self.losses), torch.cat(self.times)
        band = (times - 1) * BANDS // steps
        sums = torch.zeros(BANDS, device=self.device).index_add_(0, band, losses)
        counts = torch.bincount(band, minlength=BANDS)
        now = time.monotonic()
        figures: dict[str, Any] = {
            "loss": float(losses.mean()),
            "loss_by_severity": [s / n if n else None for s, n in zip(sums.tolist(), counts.tolist(), strict=True)],
            "grad_norm": float(self.grad_norm),
            "images_per_second": round(len(losses) / (now - self.logged), 1),
            "elapsed": round(now - self.started, 2),
        }
        self.losses, self.times, self.logged = [], [], now
        return figures
