"""What the library's registries hold, known without importing torch: help and TAB would take seconds with it.

`registered.json` is generated from the registries by `docs/make_completions.py`, and a test compares them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from colddiff_core.config.fields import settings_of
from colddiff_core.errors import ColddiffError

Registry = Literal["samplers", "priors", "datasets", "devices"]
FILE = Path(__file__).with_name("registered.json")


@dataclasses.dataclass(frozen=True)
class DeclaredSetting:
    """A field declared with `setting`: its name, type ("bool", "int", ...), default, help and choices, if any."""

    name: str
    type: str
    default: Any
    help: str
    choices: Sequence[int | str] = ()


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return table


def parameters(operator: str) -> list[DeclaredSetting]:
    """Return an operator's parameters in order of declaration; imports torch for those of other packages.

    Raises:
        UsageError: The operator is unknown.
        MachineError: Another package's operator does not load.
    """
    known = _table()["operators"].get(operator)
    if known is None:
        from colddiff_core import degradations

        return declared(degradations.find(operator))
    return [DeclaredSetting(*values) for values in known]


def operators() -> list[str]:
    """Return the names of all operators, those of other packages included; loads none of them."""
    import importlib.metadata  # 15 ms

    others = importlib.metadata.entry_points(group=_table()["entry_points"])
    return sorted({*_table()["operators"], *(point.name for point in others)})


def names(registry: Registry) -> list[str]:
    """Return the names that a registry holds."""
    held: list[str] = _table()[registry]
    return held


def collect() -> dict[str, Any]:
    """Return what `registered.json` should hold, from the registries themselves; imports torch."""
    from colddiff_core import datasets, degradations, devices, sampling
    from colddiff_core.degradations import registry
    from colddiff_core.sampling import priors

    found = {name: degradations.find(name) for name in degradations.names()}
    return {
        "operators": {
            name: [list(dataclasses.astuple(parameter)) for parameter in declared(operator)]
            for name, operator in found.items()
            if operator.__module__.startswith(f"{degradations.__name__}.")
        },
        "entry_points": registry.GROUP,
        "samplers": list(sampling.SAMPLERS),
        "priors": priors.names(),
        "datasets": datasets.names(),
        "devices": list(devices.NAMES),
    }


def declared(owner: type) -> list[DeclaredSetting]:
    """Return the settings of an operator or of a section of the configuration, in order of declaration."""
    hints = typing.get_type_hints(owner)
    found = []
    for field in settings_of(owner):
        choices = list(typing.get_args(hints[field.name])) if typing.get_origin(hints[field.name]) is Literal else []
        type_name = getattr(type(choices[0]) if choices else hints[field.name], "__name__", "")
        choices += field.metadata["words"]
        found.append(DeclaredSetting(field.name, type_name, field.default, field.metadata["help"], choices))
    return found


def operator_of_preset(preset: str) -> str | None:
    """Return the name of a preset's operator; None if there is no such preset."""
    from colddiff_core.config import presets

    try:
        return presets.load(preset).degradation.name
    except ColddiffError:
        return None
