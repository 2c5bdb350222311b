"""The degradations, by name."""

from colddiff_core.degradations import blur as _blur
from colddiff_core.degradations import noise as _noise
from colddiff_core.degradations.base import Degradation, Frozen, build, find, names, register

__all__ = ["Degradation", "Frozen", "build", "find", "names", "register"]
_REGISTERED = (_blur, _noise)
