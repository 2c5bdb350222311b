"""Validation while training: RMSE on held-out training images, the best checkpoint, and when to stop early."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from colddiff_core import devices, seeds
from colddiff_core.config.fields import LARGEST
from colddiff_core.config.schema import TrainConfig
from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation.fidelity import Fidelity
from colddiff_core.experiment import Experiment

GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly, however many there are


@dataclasses.dataclass(frozen=True)
class ValidationRecord:
    """What validation has found so far; every checkpoint records it.

    Attributes:
        best_step: The step with the lowest RMSE, 0 for none.
        rmse: That RMSE, on [0, 1]; None for none.
        failures: How many checks since then were no better.
    """

    best_step: int = 0
    rmse: float | None = None
    failures: int = 0

    def after(self, step: int, rmse: float | None) -> ValidationRecord:
        """Return the record after another check; None stands for an RMSE that is not finite."""
        if rmse is not None and (self.rmse is None or rmse < self.rmse):
            return ValidationRecord(step, rmse)
        return dataclasses.replace(self, failures=self.failures + 1)

    def is_over(self, settings: TrainConfig) -> bool:
        """Return whether training is to stop: there were `train.patience` checks without an improvement."""
        return settings.validate_every > 0 and 0 < settings.patience <= self.failures

    def to_state(self) -> dict[str, Any]:
        """Return the record as JSON for a checkpoint's state."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_state(saved: Any) -> ValidationRecord:
        """Return the record of a checkpoint's state; an empty one if it is missing or invalid."""
        if not isinstance(saved, Mapping):
            return ValidationRecord()
        step, rmse, failures = saved.get("best_step"), saved.get("rmse"), saved.get("failures")
        if (
            type(step) is not int
            or type(failures) is not int
            or not (0 <= step <= LARGEST and 0 <= failures <= LARGEST)
        ):
            return ValidationRecord()
        if rmse is None:
            return ValidationRecord(failures=failures)
        is_number = isinstance(rmse, (int, float)) and not isinstance(rmse, bool) and 0 <= rmse <= 1
        return ValidationRecord(step, float(rmse), failures) if is_number else ValidationRecord()


class Validator:
    """Measures a network on held-out images, each at a severity of its own, with the same draws every time."""

    def __init__(self, experiment: Experiment, images: ImageSet) -> None:
        self.experiment, self.images = experiment, images
        steps = experiment.operator.steps
        places = [(0.5 + number * GOLDEN) % 1 for number in range(len(images))]
        self.t = torch.tensor([1 + math.floor(steps * place) for place in places])

    @torch.no_grad()
    def rmse(self, network: nn.Module, at_batch: Callable[[], None]) -> float | None:
        """Return the RMSE on [0, 1] of R(x_t, t) over all images and severities; None if it is not finite.

        `at_batch` is called before each batch.

        Raises:
            MachineError: Memory has no room for one image.
        """
        averaged, meter = self.experiment.with_network(network), Fidelity()
        settings = self.experiment.config.train
        device, operator = self.experiment.device, self.experiment.operator
        for first in range(0, len(self.images), settings.batch_size):
            at_batch()
            numbers = range(first, min(first + settings.batch_size, len(self.images)))
            some = slice(numbers.start, numbers.stop)
            x0, t = self.images.images(some, device), devices.upload(self.t[some], device)
            generators = seeds.image_generators(settings.seed, numbers, "validation")
            frozen = averaged.freeze(x0, generators)
            x_t = averaged.observe(operator(x0, t, frozen), generators)
            meter.update(averaged.pieces(averaged.restorer, x_t, t, frozen, labels=self._labels(some)), x0)
        rmse = meter.result()["rmse"]
        return rmse if rmse is not None and math.isfinite(rmse) else None

    def _labels(self, some: slice) -> Tensor | None:
        """Return the classes of some images for a conditional network; None for another."""
        if not self.experiment.config.model.classes or self.images.labels is None:
            return None
        return devices.upload(self.images.labels[some], self.experiment.device)
