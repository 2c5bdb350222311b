"""What a training run logs: means over the steps since the last line."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from colddiff_core.datasets import TrainingSet
from colddiff_core.distributed.group import Group
from colddiff_core.text import named

BANDS = 4  # of severity, for the loss


class TrainingLog:
    """Losses since the last logged line, kept on the device so that no step waits for them.

    grad_norm: () float32, of the newest step.
    """

    def __init__(self, device: torch.device, elapsed: float) -> None:
        """Start the clock at `elapsed` seconds, the time trained before."""
        self.device = device
        self.losses: list[Tensor] = []
        self.times: list[Tensor] = []
        self.grad_norm = torch.zeros((), device=device)
        self.logged = time.monotonic()
        self.started = self.logged - elapsed

    def add(self, losses: Tensor, t: Tensor) -> None:
        """Add the losses (B,) float32 of images at severities t (B,) int64."""
        self.losses.append(losses)
        self.times.append(t)

    def keep(self, count: int) -> None:
        """Drop all but the first `count` batches since the last reading."""
        del self.losses[count:], self.times[count:]

    def gather(self, ranks: Group) -> None:
        """Gather losses on rank 0 and clear the other ranks."""
        if ranks.is_alone:
            return
        tensors = {"losses": torch.cat(self.losses), "times": torch.cat(self.times)}
        gathered = ranks.gather_tensors(tensors)
        self.losses = [part["losses"].to(self.device) for part in gathered]
        self.times = [part["times"].to(self.device) for part in gathered]

    def skip_since(self, began: float | None) -> None:
        """Exclude a pause that began at `began` from the elapsed time; None for no pause."""
        seconds = 0.0 if began is None else time.monotonic() - began
        self.logged += seconds
        self.started += seconds

    def read(self, steps: int) -> dict[str, Any]:
        """Return the means since the last reading and clear the sums; `steps` is the operator's T.

        Only finite losses count; a mean of nothing is None.
        """
        losses, times = torch.cat(self.losses), torch.cat(self.times)
        count = len(losses)
        is_finite = losses.isfinite()  # one bad image of a skipped step must not hide the others
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


class UnreadableImages:
    """Counts the training images that turned out unreadable since training began."""

    def __init__(self, images: TrainingSet, ranks: Group) -> None:
        self._images, self._ranks = images, ranks
        self._before, self._reported = images.skipped, 0

    def message(self) -> str:
        """Return how many there are and the first files, if there are more now, else nothing; all ranks must call this.

        Every rank eventually meets the same unreadable images, so it is the highest count, not the sum.
        """
        (count,) = self._ranks.all_max(self._images.skipped - self._before)
        if count <= self._reported:
            return ""
        self._reported = count
        first = f" ({named(files, count)})" if (files := self._images.skipped_files) else ""
        return f"unreadable training images so far: {count}{first}; other images are used instead"


def elapsed_seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Return the seconds trained so far according to the last line of a log, 0 if it does not say."""
    elapsed = lines[-1].get("elapsed") if lines else 0
    return float(elapsed) if isinstance(elapsed, (int, float)) and math.isfinite(elapsed) else 0.0
