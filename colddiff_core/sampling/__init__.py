"""Samplers and priors."""

from colddiff_core.sampling.samplers import SAMPLERS, Move, Restore, Step, Update, check, final, last, names, sample

__all__ = ["SAMPLERS", "Move", "Restore", "Step", "Update", "check", "final", "last", "names", "sample"]
