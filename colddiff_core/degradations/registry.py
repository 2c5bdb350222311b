"""The degradations by name: this package's, other packages' and compositions `a+b`.

To add one here, write a file with a class under `@register(name)` and import it in `__init__.py`. Another package
lists its class in the entry-point group `colddiff.degradations`.
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
    """Return a decorator that registers a Degradation class under `name`, as presets and commands use it."""

    def add(operator: Operator) -> Operator:
        operator.name = name
        _REGISTRY[name] = operator
        return operator

    return add


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Return other packages' entry points by name; their code is loaded only when it is needed."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def names() -> list[str]:
    """Return every registered name, sorted."""
    return sorted(_REGISTRY.keys() | _entry_points().keys())


def find(name: str) -> type[Degradation]:
    """Return the class registered under `name`.

    Raises:
        UsageError: for an unknown name; suggests the nearest one.
        MachineError: if another package's class does not load.
    """
    if name not in _REGISTRY and name in _entry_points():
        _load(name, _entry_points()[name])
    if name not in _REGISTRY:
        raise UsageError(f"Unknown operator {shown(name)}.", nearest(name, names()))
    return _REGISTRY[name]


def build(name: str, **values: Any) -> Degradation:
    """Return the operator `name` with these parameters; the defaults are the paper's.

    `a+b` applies a, then b. Its parameters are those of its parts, by bare name if only one part has it, else as
    `part.key` or a table `part = {key: value}`; and `steps`, of the whole and of each part without its own.

    Raises:
        UsageError: for an unknown name or parameter, or a value out of range.
        MachineError: if another package's class does not load.
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
        what = f"The entry point '{name}' = {point.value} is not a Degradation."
        raise MachineError(what, "Update or remove that package.")
    register(name)(loaded)
