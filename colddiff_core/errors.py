"""What went wrong in the user's words, and what to do about it.

The floor below everything: no imports, so that any module may raise these.
"""

from __future__ import annotations


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


class LostError(MachineError):
    """Another process of the job has ended, or cannot be reached any more."""


class ColddiffWarning(UserWarning):
    """What work goes on in spite of, told in a line."""


OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "bad_alloc", "STATUS_ALLOC_FAILED")  # of torch's plain errors

# All that oneDNN says where it cannot have the memory for its code; a descriptor that it cannot make is something else.
ONEDNN_FAILED = ("could not create a primitive", "could not execute a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the CPU or on a GPU."""
    told = str(error)
    return isinstance(error, MemoryError) or told in ONEDNN_FAILED or any(sign in told for sign in OUT_OF_MEMORY)


def reason(error: BaseException) -> str:
    """Return what went wrong, for a record: the user's words where there are some."""
    return error.what if isinstance(error, ColddiffError) else f"{type(error).__name__}: {error}"
