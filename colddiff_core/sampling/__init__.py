"""Samplers and priors."""

from colddiff_core.sampling.samplers import (
    SAMPLERS,
    DegradedImages,
    Restore,
    SamplerRule,
    Sampling,
    Step,
    StepInputs,
    check_sound,
    final,
    last,
    names,
    sample,
    sound,
)

__all__ = [
    "SAMPLERS",
    "DegradedImages",
    "Restore",
    "SamplerRule",
    "Sampling",
    "Step",
    "StepInputs",
    "check_sound",
    "final",
    "last",
    "names",
    "sample",
    "sound",
]
