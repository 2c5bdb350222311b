"""Errors in the user's words: what happened, and what to do next.

Imports nothing, so that every module may raise them.
"""

from __future__ import annotations


class ColddiffError(Exception):
    """A failure in one or two lines: what happened and where, then what to do.

    `exit_code` is the exit code of the command line: 1 if the machine failed, 2 for wrong use.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n{self.remedy}" if self.remedy else self.what


class UsageError(ColddiffError):
    """The request is wrong: a name, value, path or combination."""

    exit_code = 2


class MachineError(ColddiffError):
    """The request was fine, but the machine failed: disk, network, driver."""


class LostError(MachineError):
    """Another process of the job has ended or cannot be reached."""


class ColddiffWarning(UserWarning):
    """A one-line warning; the work continues."""


OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "bad_alloc", "STATUS_ALLOC_FAILED")  # in torch's RuntimeErrors

# oneDNN's whole message if it cannot allocate its code; "could not create a descriptor" means something else.
ONEDNN_FAILED = ("could not create a primitive", "could not execute a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the CPU or on a GPU."""
    text = str(error)
    return isinstance(error, MemoryError) or text in ONEDNN_FAILED or any(sign in text for sign in OUT_OF_MEMORY)


def reason(error: BaseException) -> str:
    """Return an error's message for a log, without the remedy."""
    return error.what if isinstance(error, ColddiffError) else f"{type(error).__name__}: {error}"
