"""What a training run logs: means over the steps since the last line."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from colddiff_core.distributed.group import Group

BANDS = 4  # of severity, for the loss


class TrainingLog:
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

    def gather(self, ranks: Group) -> None:
        """Have the first process know what all of them added; the others begin anew."""
        if ranks.is_alone:
            return
        told = {"losses": torch.cat(self.losses), "times": torch.cat(self.times)}
        found = ranks.gather_tensors(told)
        self.losses = [part["losses"].to(self.device) for part in found]
        self.times = [part["times"].to(self.device) for part in found]

    def skip_since(self, began: float | None) -> None:
        """Leave a pause that began at that time out of the times."""
        seconds = 0.0 if began is None else time.monotonic() - began
        self.logged += seconds
        self.started += seconds

    def read(self, steps: int) -> dict[str, Any]:
        """Return the means since the last reading, and begin anew; `steps` is the operator's T.

        Over the images whose loss is finite: None for what there is none of.
        """
        losses, times = torch.cat(self.losses), torch.cat(self.times)
        count = len(losses)
        is_finite = losses.isfinite()  # else one image of a step that was skipped would be all that is told
        losses, times = losses[is_finite], times[is_finite]
        band = (times - 1) * BANDS // steps
        sums = torch.zeros(BANDS, device=self.device).index_add_(0, band, losses)
        counts = torch.bincount(band, minlength=BANDS)
        now = time.monotonic()
        figures: dict[str, Any] = {
            "loss": float(losses.mean()) if len(losses) else None,
            "loss_by_severity": [s / n if n else None for s, n in zip(sums.tolist(), counts.tolist(), strict=True)],
            "grad_norm": norm if math.isfinite(norm := float(self.grad_norm)) else None,
            "images_per_second": round(count / (now - self.logged), 1),
            "elapsed": round(now - self.started, 2),
        }
        self.losses, self.times, self.logged = [], [], now
        return figures
