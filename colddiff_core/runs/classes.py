"""The classes of a conditional run: their names, kept in its folder, and how a user names one.

A run may come from anyone, so names are made safe to print where they are read. Runs of older versions have no names:
their classes go by numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from colddiff_core.errors import UsageError
from colddiff_core.files import parse_json, read_ordinary
from colddiff_core.text import beginning, harmless, nearest

FILE = "classes.json"
ALL = "all"
MOST_BYTES = 1 << 24
MOST_DIGITS = 9


def as_json(names: Sequence[str]) -> str:
    """Return the text of the file that keeps the names."""
    return json.dumps(list(names)) + "\n"


def read(folder: Path) -> tuple[str, ...]:
    """Return the names of a run's classes in the order of their numbers; empty if it keeps none.

    Raises:
        UsageError: The file is damaged.
    """
    path = folder / FILE
    try:
        names = parse_json(read_ordinary(path, MOST_BYTES))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} is damaged.", "Delete it: the classes then go by their numbers.")
    return cleaned(names)


def cleaned(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as they are shown and typed: one short line each, without control characters."""
    return tuple(beginning(" ".join(harmless(name).split())) for name in names)


def numbers_of(asked: Sequence[str | int], names: Sequence[str], count: int) -> tuple[int, ...]:
    """Return the numbers of the classes that a user names, in that order.

    A word is a name, else a number, else "all": every class that the run learned. A whole number is never a name.

    Args:
        asked: What the user wrote, as for `--class`; or numbers.
        names: The run's names, empty if it keeps none.
        count: How many classes the network is conditioned on.

    Raises:
        UsageError: The run has no classes, or none of that name or number; lists those that it has.
    """
    known = min(len(names), count) or count
    found: list[int] = []
    for given in asked:
        word = str(given)
        if not count:
            raise UsageError(
                f"--class {_shown(word)}: this run was trained without classes.",
                "Leave --class out, or train with --set model.classes=all.",
            )
        if isinstance(given, str) and word in names[:known]:
            found.append(names.index(word))
        elif word == ALL:
            found += range(known)
        elif word.isascii() and word.isdecimal() and len(word) <= MOST_DIGITS and int(word) < known:
            found.append(int(word))
        else:
            remedy = nearest(word, names[:known]) if names else f"Use 0 to {known - 1}, or all."
            raise UsageError(f"--class {_shown(word)}: this run has no such class.", remedy)
    return tuple(found)


def _shown(word: str) -> str:
    return beginning(harmless(word))
