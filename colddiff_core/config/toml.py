"""Read and write TOML, with limits so that a bad file cannot take minutes."""

from __future__ import annotations

import contextlib
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from colddiff_core.errors import UsageError

MOST_FILE_BYTES = 1 << 18  # a preset has a thousand or two
MOST_LINE_CHARACTERS = 4096  # tomllib takes quadratic time for a dotted key
MOST_LEVELS = 16  # tables within tables
LARGEST_INTEGER = 2**63  # TOML's whole numbers are smaller
NUMBER = re.compile(r"[+-]?(0|[1-9][0-9_]*)?(\.[0-9_]*)?([eE][+-]?[0-9]+)?")
FRACTION = re.compile(r"\.[0-9]")
TRUTHS = {"true": True, "false": False}


def dump(table: Mapping[str, Any]) -> str:
    """Return plain tables as TOML."""
    return tomli_w.dumps(dict(table))


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's tables; raises UsageError if it cannot be read, is not text or is not TOML."""
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # reading a pipe would block
            raise UsageError(f"{path} is not an ordinary file.", "Check the path.")
        if status.st_size > MOST_FILE_BYTES:
            raise UsageError(
                f"{path} is larger than any preset or run.toml ({MOST_FILE_BYTES:,} bytes).", "Check the path."
            )
        return parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.", "Check the path.") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is not a text file.", "TOML is UTF-8 text: save it as UTF-8, or name another file."
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", "Fix it there.") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML text; raises ValueError if it is invalid, has a longer line or is nested deeper than allowed."""
    if max(map(len, text.split("\n"))) > MOST_LINE_CHARACTERS:
        raise ValueError(f"a line has more than {MOST_LINE_CHARACTERS:,} characters")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level: list[Any] = [table]
    for _ in range(MOST_LEVELS):
        if any(type(value) is int and abs(value) >= LARGEST_INTEGER for value in level):
            raise ValueError("a whole number has more than 64 bits")
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError("nested too deep")
    return table


def spelled(text: str, *, is_text: bool = False, keeps_point: bool = False) -> Any:
    """Return the value that a person typed, as in KEY=VALUE: TOML, or an obvious spelling that TOML does not have.

    Those are `.5` and `5.`, True and False in any case, and text without quotation marks. A whole number may have a
    point or an exponent: 1e3 is 1000. With `is_text`, everything but quoted text is taken as it stands; with
    `keeps_point`, for a setting whose type is not known here, 2.0 stays a float.
    """
    text = text.strip()
    value: Any = text
    with contextlib.suppress(ValueError):
        table = parse_toml(f"value = {text}")
        if list(table) == ["value"]:  # and no second line adds another key
            value = table["value"]
    if is_text:
        return value if isinstance(value, str) else text
    if value is text:
        value = TRUTHS.get(text.lower(), text)
        with contextlib.suppress(ValueError):
            value = float(text) if NUMBER.fullmatch(text) else value
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_INTEGER
    return int(value) if is_whole and not (keeps_point and FRACTION.search(text)) else value
