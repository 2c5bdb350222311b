"""Divergence: steps whose loss or gradient is not finite, and how many of them in a row are too many."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

IN_A_ROW = 5  # skipped steps before the run goes back to its last checkpoint
FALLS = 3  # times that a run may go back before it fails
SLOWER = 0.5  # factor of the learning rate each time


@dataclasses.dataclass(frozen=True)
class SkippedStep:
    """A skipped step: its number from 1, its loss and the norm of its gradient, one of them not finite."""

    step: int
    loss: float
    norm: float

    @property
    def why(self) -> str:
        """What was not finite, in words."""
        wrong, value = ("loss", self.loss) if not math.isfinite(self.loss) else ("gradient's norm", self.norm)
        return f"the {wrong} was {value}"


class DivergenceWatch:
    """Records skipped steps on the device until they are read, so that no step waits for a GPU."""

    def __init__(self) -> None:
        self.in_a_row = 0  # skipped steps up to the newest that was read
        self._unread: list[tuple[int, Tensor]] = []

    def add(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """Record loss and gradient norm, both () float32; return () float32 on their device, 1 to skip the step."""
        values = torch.stack((loss, norm))
        self._unread.append((step, values))
        return (~values.isfinite().all()).float()

    def read(self) -> tuple[list[SkippedStep], bool]:
        """Return the steps skipped since the last reading, and whether there were too many of them in a row.

        Waits for a GPU.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return [], False
        skipped, longest = [], 0
        for (step, _), (loss, norm) in zip(unread, torch.stack([both for _, both in unread]).tolist(), strict=True):
            is_sound = math.isfinite(loss) and math.isfinite(norm)
            self.in_a_row = 0 if is_sound else self.in_a_row + 1
            longest = max(longest, self.in_a_row)
            if not is_sound:
                skipped.append(SkippedStep(step, loss, norm))
        return skipped, longest >= IN_A_ROW

    def restart(self, in_a_row: int) -> None:
        """Restart at a checkpoint that was saved after `in_a_row` skipped steps."""
        self.in_a_row = in_a_row
        self._unread = []
