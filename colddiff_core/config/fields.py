"""Declared values: a default, a help text and the allowed values, checked in one place.

Operators and presets declare their fields with `setting`; commands and error messages read them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from colddiff_core.config import sizes
from colddiff_core.errors import UsageError
from colddiff_core.text import CONTROLS, nearest, shown

LARGEST = 10**9  # unless a field sets its own maximum: more is a typo that would run forever or out of memory
MOST_TEXT_CHARACTERS = 10_000
MOST_DIGITS = 18  # of a whole number in a list
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    longest: int | None = None,
    words: Mapping[str, int] | None = None,
) -> Any:
    """Declare a dataclass field: its default, help text and allowed values.

    A number without a `maximum` may be up to LARGEST; a list may have up to `longest` entries. `words` stand for
    numbers that users would not know, to be typed in their place.
    """
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "longest": longest, "words": words or {}}
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def settings_of(owner: type) -> list[dataclasses.Field[Any]]:
    """Return the dataclass fields that a user may set, in order of declaration."""
    return [field for field in dataclasses.fields(owner) if field.init]


def validate(owner: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return `values` checked against the settings of `owner`; whole numbers become floats for float fields.

    Args:
        owner: the dataclass that declares the settings.
        values: the values by name.
        where: the start of every error message, such as a file or an operator.

    Raises:
        UsageError: a key is unknown (with the nearest known one), or a value has the wrong type or is out of range.
    """
    fields = {field.name: field for field in settings_of(owner)}
    hints = _hints(owner)
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise UsageError(f"{where}: unknown key {shown(key)}.", nearest(key, fields))
        checked[key] = _checked(f"{where}: {key} = {shown(value)}", fields[key], hints[key], value)
    return checked


def is_text(owner: type, key: str) -> bool:
    """Return whether a setting of `owner` takes any text; False for a key that it does not have."""
    return _hints(owner).get(key) is str


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def _checked(what: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    help_text = field.metadata["help"]
    if typing.get_origin(hint) is Literal:
        # Compare types too: True == 1.
        if not any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            raise UsageError(f"{what} is not a choice.", f"Choices: {', '.join(map(str, typing.get_args(hint)))}.")
        return value
    if typing.get_origin(hint) in (tuple, types.UnionType) and isinstance(value, str) and "," in value:
        parts = value[:MOST_TEXT_CHARACTERS].split(",")
        value = [int(part) if part.strip().isdecimal() and len(part) <= MOST_DIGITS else part for part in parts]
    if hint == sizes.Size:
        return _checked_size(what, field, value)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or not value:
            raise UsageError(f"{what} is not a list of whole numbers.", f"Meaning: {help_text}.")
        if field.metadata["longest"] is not None and len(value) > field.metadata["longest"]:
            what = f"{what} is too long: at most {field.metadata['longest']} entries."
            raise UsageError(what, f"Meaning: {help_text}.")
        return tuple(_checked(what, field, typing.get_args(hint)[0], entry) for entry in value)
    if isinstance(value, str) and value in field.metadata["words"]:
        return field.metadata["words"][value]
    is_whole = hint is float and isinstance(value, int)
    if not (is_whole or isinstance(value, hint)) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{what} is not {KINDS[hint]}.", f"Meaning: {help_text}.")
    if isinstance(value, str):
        _check_text(what, value)
    elif not isinstance(value, bool):
        _check_range(what, field, value)
    return float(value) if is_whole else value


def _checked_size(what: str, field: dataclasses.Field[Any], value: Any) -> sizes.Size:
    """Return a size: a whole number, or two of them; equal ones are a square."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return sizes.simplest(*(_checked(what, field, int, side) for side in value))
    if isinstance(value, (list, tuple, str)):
        raise UsageError(f"{what} is not a size.", "Write a side, or height and width with a comma: 32 or 48,64.")
    side: int = _checked(what, field, int, value)
    return side


def _check_text(what: str, value: str) -> None:
    if CONTROLS.search(value):
        raise UsageError(f"{what} contains control characters.", "Remove them.")
    if len(value) > MOST_TEXT_CHARACTERS:
        raise UsageError(f"{what} is too long: at most {MOST_TEXT_CHARACTERS:,} characters.", "Shorten it.")


def _check_range(what: str, field: dataclasses.Field[Any], value: float) -> None:
    """Refuse a number out of range; whole numbers may be too large for a float, so they are compared as they are."""
    remedy = f"Meaning: {field.metadata['help']}."
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{what} is not finite.", remedy)
    minimum, above, maximum = (field.metadata[limit] for limit in ("minimum", "above", "maximum"))
    if above is not None and value <= above:
        raise UsageError(f"{what} is too small: it must be above {above}.", remedy)
    least, most = -LARGEST if minimum is None else minimum, LARGEST if maximum is None else maximum
    if value < least:
        raise UsageError(f"{what} is too small: it must be at least {least}.", remedy)
    if value > most:
        raise UsageError(f"{what} is too large: it must be at most {most}.", remedy)
