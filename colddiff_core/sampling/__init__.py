"""Samplers and priors."""

from colddiff_core.sampling.samplers import (
    SAMPLERS,
    Restore,
    SamplerRule,
    Step,
    StepInputs,
    check,
    final,
    last,
    names,
    sample,
)

__all__ = ["SAMPLERS", "Restore", "SamplerRule", "Step", "StepInputs", "check", "final", "last", "names", "sample"]
