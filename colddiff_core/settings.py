"""Declared values: a default, a help text and the values admitted, checked in one place.

Operators and presets declare their fields with `setting`; commands and error messages read them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from typing import Any, Literal

from colddiff_core.errors import UsageError, nearest

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a dataclass field: its default, its help text and the values it admits."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum}
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def settings_of(owner: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass that a user may set, in the order of declaration."""
    return [field for field in dataclasses.fields(owner) if field.init]


def take(owner: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return `values` checked against the settings of `owner`, whole numbers made float where that is asked.

    `where` begins every message: a file, an operator. Raises UsageError for an unknown key (with the
    nearest known one) and for a value of the wrong type or out of range.
    """
    fields = {field.name: field for field in settings_of(owner)}
    hints = _hints(owner)
    taken = {}
    for key, value in values.items():
        if key not in fields:
            raise UsageError(f"{where}: unknown key '{key}'.", nearest(key, fields))
        taken[key] = _checked(f"{where}: {key} = {value!r}", fields[key], hints[key], value)
    return taken


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def _checked(what: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    help_text = field.metadata["help"]
    if typing.get_origin(hint) is Literal:
        # By type as well: True is 1 to `in`.
        if not any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            raise UsageError(f"{what} is not a choice.", f"Choices: {', '.join(map(str, typing.get_args(hint)))}.")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or not value:
            raise UsageError(f"{what} is not a list of whole numbers.", f"Meaning: {help_text}.")
        return tuple(_checked(what, field, typing.get_args(hint)[0], entry) for entry in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{what} is not {KINDS[hint]}.", f"Meaning: {help_text}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{what} is not finite.", f"Meaning: {help_text}.")
    minimum, above = field.metadata["minimum"], field.metadata["above"]
    if minimum is not None and value < minimum:
        raise UsageError(f"{what} is too small: it is at least {minimum}.", f"Meaning: {help_text}.")
    if above is not None and value <= above:
        raise UsageError(f"{what} is too small: it is above {above}.", f"Meaning: {help_text}.")
    if field.metadata["maximum"] is not None and value > field.metadata["maximum"]:
        raise UsageError(f"{what} is too large: it is at most {field.metadata['maximum']}.", f"Meaning: {help_text}.")
    return value
