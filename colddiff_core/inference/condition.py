"""What generated images are to show: classes, and how strongly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from colddiff_core.distributed import group
from colddiff_core.errors import UsageError
from colddiff_core.experiment import Experiment
from colddiff_core.inference import batches
from colddiff_core.runs import Run, classes

MOST_GUIDANCE = 20.0
ClassNames = str | int | Sequence[str | int]


@dataclasses.dataclass(frozen=True)
class Condition:
    """The classes of generated images; by default any.

    Attributes:
        labels: Numbers of the classes, which the images take in turn; empty for any.
        guidance: How far to lean towards the class, see `models.guidance`: 1 as trained, 0 not at all.
        names: What to call the run's classes; empty if they go by their numbers.
    """

    labels: tuple[int, ...] = ()
    guidance: float = 1.0
    names: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated for each image and step."""
        return 2 if self.labels and self.guidance not in (0.0, 1.0) else 1

    def check(self, built: Experiment) -> None:
        """Check that the run has these classes, and that the guidance is in range.

        Raises:
            UsageError: It has not, or guidance has no class to lean towards.
        """
        classes.numbers_of(self.labels, (), built.config.model.classes)
        if not 0 <= self.guidance <= MOST_GUIDANCE:  # NaN too
            value = f"{self.guidance:g}" if math.isfinite(self.guidance) else str(self.guidance)
            remedy = f"Use 0 to {MOST_GUIDANCE:g}: 1 is as trained, above 1 leans towards the class."
            raise UsageError(f"guidance = {value} is out of range.", remedy)
        if self.guidance != 1 and not built.config.model.classes:
            what = f"guidance = {self.guidance:g}: this run was trained without classes."
            raise UsageError(what, "Leave --guidance out, or train with --set model.classes=all.")
        if self.guidance != 1 and not self.labels:
            raise UsageError(f"guidance = {self.guidance:g} leans towards a class.", "Name one with --class, or all.")

    def request(self) -> dict[str, Any]:
        """Return what the images depend on, to record beside them."""
        labels = self.labels[0] if len(self.labels) == 1 else list(self.labels) or None
        return {"class": labels, "guidance": self.guidance}

    def titles(self) -> dict[int, str]:
        """Return what to call each class that the images are of, by its number; no two alike."""
        titles: dict[int, str] = {}
        for label in self.labels:
            name = self.names[label] if label < len(self.names) else ""
            titles[label] = name if name and self.names.count(name) == 1 else f"{name or 'class'} {label}"
        return titles

    def batch_size(self, built: Experiment) -> int:
        """Return how many images to generate at a time; guided ones are evaluated twice in the same batch."""
        return max(1, built.batch_size(batches.MOST) // self.evaluations)

    def of(self, numbers: Sequence[int], device: torch.device) -> Tensor | None:
        """Return the labels (B,) int64 of the images with these numbers; None for any class."""
        if not self.labels:
            return None
        return torch.tensor([self.labels[number % len(self.labels)] for number in numbers], device=device)


def named(run: Run, built: Experiment, chosen: ClassNames | None, guidance: float = 1.0) -> Condition:
    """Return the condition for classes named as a user names them: by name, by number or as "all".

    All processes of a job must call this; only rank 0 reads the run's folder.

    Raises:
        UsageError: The run has no such class, or the guidance does not fit.
    """
    asked: Sequence[str | int] = () if chosen is None else [chosen] if isinstance(chosen, str | int) else chosen
    names = tuple(group.current().on_first(lambda: list(run.classes()))) if asked else ()
    condition = Condition(classes.numbers_of(asked, names, built.config.model.classes), guidance, names)
    condition.check(built)
    return condition
