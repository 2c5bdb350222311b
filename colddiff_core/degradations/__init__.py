"""The degradations: the base class, every operator by name, and compositions `a+b`."""

from colddiff_core.degradations import blur as _blur
from colddiff_core.degradations import desaturate as _desaturate
from colddiff_core.degradations import holes as _holes
from colddiff_core.degradations import mask as _mask
from colddiff_core.degradations import noise as _noise
from colddiff_core.degradations import pixelate as _pixelate
from colddiff_core.degradations import snow as _snow
from colddiff_core.degradations.base import Degradation, Estimate, Frozen
from colddiff_core.degradations.registry import build, find, names, register

__all__ = ["Degradation", "Estimate", "Frozen", "build", "find", "names", "register"]
_REGISTERED = (_blur, _desaturate, _holes, _mask, _noise, _pixelate, _snow)
