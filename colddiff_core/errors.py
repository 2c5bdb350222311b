"""What went wrong in the user's words, and what to do about it.

The floor below everything: no imports, so that any module may raise these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ColddiffError(Exception):
    """A failure told in one or two lines: what happened and where, then what to do.

    `exit_code` is what the command line ends with: 1 where the machine failed.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n{self.remedy}" if self.remedy else self.what


class UsageError(ColddiffError):
    """The request itself cannot be met: a wrong name, value, path or combination."""

    exit_code = 2


class MachineError(ColddiffError):
    """The request was sound and the machine could not serve it: disk, network, driver."""


class ColddiffWarning(UserWarning):
    """What work goes on in spite of, told in a line."""


OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "bad_alloc", "STATUS_ALLOC_FAILED")  # of torch's plain errors


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the CPU or on a GPU."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def reason(error: BaseException) -> str:
    """Return what went wrong, for a record: the user's words where there are some."""
    return error.what if isinstance(error, ColddiffError) else f"{type(error).__name__}: {error}"


def counted(number: int, thing: str) -> str:
    """Return a count in words: "1 image", "2 images"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a remedy that names the known word closest to `name`, else all of them."""
    words = sorted(known)
    lowered = {word.lower(): word for word in words}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{lowered[close[0]]}'?"
    return f"Known: {', '.join(words)}." if words else "There are none."
