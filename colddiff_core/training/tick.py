"""What a training tells its caller after every step."""

from __future__ import annotations

import dataclasses
from typing import Any

from colddiff_core.training.validation import ValidationRecord


@dataclasses.dataclass(frozen=True)
class Tick:
    """One optimizer step taken; `metrics` is the logged line on the steps that log.

    `validation` is what validation has found so far, on the steps that validate (on rank 0).
    Pausing and resuming yield one more tick each, of the same step.
    """

    step: int
    metrics: dict[str, Any] | None = None
    is_paused: bool = False
    validation: ValidationRecord | None = None
