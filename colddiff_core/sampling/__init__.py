"""Samplers and priors."""

from colddiff_core.sampling.samplers import (
    SAMPLERS,
    DegradedImages,
    Restore,
    SamplerRule,
    Sampling,
    Step,
    StepInputs,
    final,
    last,
    names,
    sample,
)

__all__ = [
    "SAMPLERS",
    "DegradedImages",
    "Restore",
    "SamplerRule",
    "Sampling",
    "Step",
    "StepInputs",
    "final",
    "last",
    "names",
    "sample",
]
