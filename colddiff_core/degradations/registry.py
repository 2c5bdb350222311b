"""The degradations by name: this package's, other packages', and compositions `a+b`.

To add one here, write a file with a class under `@register(name)` and import it in `__init__.py`. Another
package names its class in the entry-point group `colddiff.degradations`.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any, TypeVar

from colddiff_core.config.fields import validate
from colddiff_core.degradations.base import Degradation
from colddiff_core.degradations.composite import JOIN, compose
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.text import nearest, shown

GROUP = "colddiff.degradations"

_REGISTRY: dict[str, type[Degradation]] = {}
Operator = TypeVar("Operator", bound=type[Degradation])


def register(name: str) -> Callable[[Operator], Operator]:
    """Register a Degradation class under the name that presets and commands use."""

    def add(operator: Operator) -> Operator:
        operator.name = name
        _REGISTRY[name] = operator
        return operator

    return add


@functools.cache
def _others() -> dict[str, importlib.metadata.EntryPoint]:
    """Return what other packages offer, by name; their code is loaded only when a name is asked for."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def names() -> list[str]:
    """Return every registered name, sorted."""
    return sorted(_REGISTRY.keys() | _others().keys())


def find(name: str) -> type[Degradation]:
    """Return the class registered under `name`.

    Raises UsageError with the nearest known name, MachineError where another package's class does not load.
    """
    if name not in _REGISTRY and name in _others():
        _load(name, _others()[name])
    if name not in _REGISTRY:
        raise UsageError(f"Unknown operator {shown(name)}.", nearest(name, names()))
    return _REGISTRY[name]


def build(name: str, **values: Any) -> Degradation:
    """Return the operator `name` with these parameters; the others keep the paper's values.

    `a+b` applies a, then b; its parameters are `steps` (of the whole, and of each part that is not given
    its own) and those of its parts: by their own name where one part alone has it, or as a table or
    dotted key under the part's name.

    Raises UsageError for an unknown name or parameter, or a value out of its range.
    """
    if JOIN in name:
        return compose(name, [find(part) for part in name.split(JOIN)], values)
    operator = find(name)
    return operator(**validate(operator, values, name))


def _load(name: str, point: importlib.metadata.EntryPoint) -> None:
    try:
        loaded = point.load()
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        what = f"The operator '{name}' of the package {package} does not load: {type(error).__name__}: {error}."
        raise MachineError(what, "Update or remove that package.") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Degradation)):
        what = f"The entry point '{name}' = {point.value} is no Degradation."
        raise MachineError(what, "Update or remove that package.")
    register(name)(loaded)
