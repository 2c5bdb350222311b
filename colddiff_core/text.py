"""Words for people: counts, near matches, values shown short and harmless. Imports nothing of ours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # what a terminal would obey, or cannot be written


LONGEST_SHOWN = 80


def harmless(text: str) -> str:
    """Return a text of someone's files in which the ends of lines and tabs stay and other control characters do not."""
    return CONTROLS.sub(lambda found: found[0] if found[0] in "\n\t" else "\N{REPLACEMENT CHARACTER}", text)


def shown(value: object) -> str:
    """Return a value as Python writes it, the beginning of it where that is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, tables in tables without end
        return f"({type(value).__name__})"
    return beginning(text)


def beginning(text: str) -> str:
    """Return as much of a text as an error has room for."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}\N{HORIZONTAL ELLIPSIS}"


def counted(number: int, thing: str) -> str:
    """Return a count in words: "1 image", "2 images"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a remedy that names the known word closest to `name`, else all of them."""
    name, words = name[:LONGEST_SHOWN], sorted(known)  # comparing long texts takes minutes
    lowered = {word.lower(): word for word in words}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{lowered[close[0]]}'?"
    return f"Known: {', '.join(words)}." if words else "There are none."
