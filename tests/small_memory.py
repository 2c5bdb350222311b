"""A simulated machine with little memory, and small runs and commands to try on it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from conftest import finish, make_trainer

from colddiff_core import degradations, runs
from colddiff_core.models import UNet

COMMANDS = {
    "sample": ["--n", "8", "--out", "output.png", "--force"],
    "generate": ["--noise", "0.002", "--n", "8", "--out", "output.png", "--force"],
    "eval": ["--n", "8", "--features", "none"],
    "compare": ["--n", "8", "--features", "none", "--out", "output.png", "--force"],
}


class SmallMachine:
    """A machine with memory for `room` images at a time; `counts` are the batch sizes that were tried."""

    def __init__(self, room: int, error: BaseException | None = None) -> None:
        self.room, self.counts = room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def check(self, images: torch.Tensor) -> None:
        """Record a batch; raise the error if it is too large."""
        self.counts.append(len(images))
        if len(images) > self.room:
            raise self.error

    def restorer(self, op: degradations.Degradation):
        """Return a restorer that runs out of memory like this machine."""

        def restore(x_t, t, frozen, labels=None):
            self.check(x_t)
            classes = torch.zeros(len(x_t)) if labels is None else labels
            times = t if isinstance(t, torch.Tensor) else torch.full((len(x_t),), t)
            # Another image's frozen fields, severity or label would change the result.
            return op(x_t, t, frozen) + (0.1 * classes + 0.01 * times).view(-1, 1, 1, 1)

        return restore


@contextlib.contextmanager
def small_machine(monkeypatch, room: int):
    """Limit every U-Net to `room` images at a time; yield the machine."""
    machine, original = SmallMachine(room), UNet.forward

    def forward(self, x, *rest):
        machine.check(x)
        return original(self, x, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", forward)
        yield machine


def masked_run(path: Path) -> runs.Run:
    """Train a run with classes, whose operator has frozen fields for each image."""
    changes = ("model.classes=10", "train.precision=float32", "train.steps=2")
    return finish(make_trainer(path, *changes, preset="digits-mask")).run
