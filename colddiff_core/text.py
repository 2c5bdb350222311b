"""Text for people: counts, near matches, values shortened and made safe to print."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff]"
)  # terminals obey some of them, and lone surrogates cannot be encoded
# What else a stranger's text must not bring to a screen: line separators, and marks that reverse text or hide in it.
# The two joiners that Persian, Indian scripts and emoji need are left, and the marks of Arabic and Syriac numbers.
MARKS = "\xad\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u061c\ufeff\ufff9-\ufffb"
# Letters and joiners that take no room or look like a space.
MARKS += "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0\ufff0-\ufff8"
MARKS += "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
HARMFUL = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{MARKS}]")
MOST_SHOWN_CHARACTERS = 80
MOST_NAMED = 3  # of many files or shards


def harmless(text: str) -> str:
    """Return text without what a terminal would obey or hide: each such character but newlines and tabs is replaced."""
    return HARMFUL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Return harmless text without newlines and tabs: a space in place of each."""
    return harmless(text).replace("\n", " ").replace("\t", " ")


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


def named(names: Sequence[str], count: int) -> str:
    """Return the first few of `count` names: "a, b, c and 4 more". `names` may hold only the first of them."""
    first = [beginning(harmless(name)) for name in names[:MOST_NAMED]]
    more = count - len(first)
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


class NameTally:
    """Counts names, and remembers the first few."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def __str__(self) -> str:
        return named(self.names, self.count)

    def add(self, name: str) -> None:
        """Count a name."""
        self.count += 1
        if self.count <= MOST_NAMED:
            self.names.append(name)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a remedy: the known word closest to `name`, or all of them."""
    name, words = name[:MOST_SHOWN_CHARACTERS], sorted(known)  # comparing long texts takes minutes
    lowered = {word.lower(): word for word in words}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{lowered[close[0]]}'?"
    return f"Known: {', '.join(words)}." if words else "There are none."
