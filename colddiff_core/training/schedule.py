"""The learning rate of a step, and how it joins an older schedule when a run is resumed with another length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from colddiff_core.config.fields import LARGEST
from colddiff_core.config.schema import TrainConfig

JOINING = 0.1  # share of the steps left over which a changed schedule is reached


@dataclasses.dataclass(frozen=True)
class Joint:
    """Where a resumed run left the schedule that it had, and how it gets to its new one.

    Attributes:
        step: The first step of the new schedule.
        excess: How far the old schedule was above the new one there, as a factor of `train.lr`; negative if below.
        steps: Over how many steps the excess falls to 0 linearly.
    """

    step: int
    excess: float
    steps: int

    def at(self, step: int) -> float:
        """Return what is left of the excess at a step."""
        return self.excess * min(max(1 - (step - self.step) / self.steps, 0.0), 1.0)


def scale(settings: TrainConfig, step: int, joint: Joint | None = None) -> float:
    """Return the learning rate of a step, from 0, as a factor of `train.lr`: a linear warm-up, then the schedule."""
    factor = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * min(step / settings.steps, 1)))
    return max(0.0, factor + joint.at(step)) if joint else factor


def join(settings: TrainConfig, old_steps: int, step: int, old: Joint | None = None) -> Joint | None:
    """Return how a run of `old_steps` steps that is resumed at `step` joins its schedule of `settings.steps` steps.

    A cosine of another length has another rate at this step. The rate starts from the old one, even if that is 0, and
    reaches the new one over a tenth of the steps that are left. `old` is how the run had joined its old schedule.

    Source: Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train", for warming up again.
    """
    if settings.schedule != "cosine" or old_steps == settings.steps or not 0 < step < settings.steps:
        return old
    before = scale(dataclasses.replace(settings, steps=old_steps), step, old)
    return Joint(step, before - scale(settings, step), max(1, math.ceil(JOINING * (settings.steps - step))))


def announce(settings: TrainConfig, joint: Joint | None, step: int, factor: float) -> str:
    """Return in words how the rate goes on, for the step that a changed schedule starts from; empty for any other.

    `factor` is by how much falls have lowered the rate.
    """
    if joint is None or step != joint.step or step >= settings.steps:
        return ""
    end = min(joint.step + joint.steps, settings.steps)
    first, then = (settings.lr * factor * scale(settings, place, joint) for place in (step, end))
    length = f"the schedule now ends at step {settings.steps}"
    return f"{length}: the learning rate goes from {first:.3g} to {then:.3g} by step {end}, then falls to 0"


def to_state(joint: Joint | None) -> dict[str, Any] | None:
    """Return a joint as JSON for a checkpoint's state."""
    return dataclasses.asdict(joint) if joint else None


def from_state(saved: Any) -> Joint | None:
    """Return the joint that a checkpoint's state records; None if it is missing or invalid."""
    if not isinstance(saved, Mapping):
        return None
    step, excess, steps = saved.get("step"), saved.get("excess"), saved.get("steps")
    if type(step) is not int or type(steps) is not int or not isinstance(excess, (int, float)):
        return None
    is_possible = 0 <= step <= LARGEST and 0 < steps <= LARGEST and -1 <= excess <= 1
    return Joint(step, float(excess), steps) if is_possible else None
