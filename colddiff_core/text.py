"""Text for people: counts, near matches, values shortened and made safe to print."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable

CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff]"
)  # terminals obey some of them, and lone surrogates cannot be encoded
MOST_SHOWN_CHARACTERS = 80


def harmless(text: str) -> str:
    """Return text with control characters replaced, except newlines and tabs."""
    return CONTROLS.sub(lambda match: match[0] if match[0] in "\n\t" else "\N{REPLACEMENT CHARACTER}", text)


def shown(value: object) -> str:
    """Return the repr of a value, shortened if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, endless nesting
        return f"({type(value).__name__})"
    return beginning(text)


def beginning(text: str) -> str:
    """Return the start of a text, short enough for an error message."""
    return text if len(text) <= MOST_SHOWN_CHARACTERS else f"{text[: MOST_SHOWN_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def shell_word(value: object) -> str:
    """Return a path or name as one word of a command to copy: quoted if need be, and never an option."""
    text = str(value)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def counted(number: int, thing: str) -> str:
    """Return a count with its noun: "1 image", "2 images"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a remedy: the known word closest to `name`, or all of them."""
    name, words = name[:MOST_SHOWN_CHARACTERS], sorted(known)  # comparing long texts takes minutes
    lowered = {word.lower(): word for word in words}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{lowered[close[0]]}'?"
    return f"Known: {', '.join(words)}." if words else "There are none."
