"""TOML files, read with limits that keep a bad file from taking minutes."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from colddiff_core.errors import UsageError

LARGEST_FILE = 1 << 18  # bytes of TOML: a preset has a thousand or two


LONGEST_LINE = 4096  # the reader takes the square of the length of a dotted key


DEEPEST = 16  # tables within tables


def dump(table: Mapping[str, Any]) -> str:
    """Return plain tables as TOML."""
    return tomli_w.dumps(dict(table))


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's tables; raises UsageError where it cannot be read, is not text or is not TOML."""
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # reading a pipe would wait for ever
            raise UsageError(f"{path} is not an ordinary file.", "Check the path.")
        if found.st_size > LARGEST_FILE:
            raise UsageError(
                f"{path} is larger than any preset or run.toml ({LARGEST_FILE:,} bytes).", "Check the path."
            )
        return parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.", "Check the path.") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is not a text file.", "TOML is text in UTF-8; name another file, or write it anew."
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", "Mend it there.") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text; raises ValueError where it is none, and for lines and depths beyond all use."""
    if max(map(len, text.split("\n"))) > LONGEST_LINE:
        raise ValueError(f"a line has more than {LONGEST_LINE:,} characters")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level: list[Any] = [table]
    for _ in range(DEEPEST):
        if any(type(value) is int and abs(value) >= 2**63 for value in level):
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
