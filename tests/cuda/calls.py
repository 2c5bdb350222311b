"""Count the calls of the null CUDA runtime, and find where the CPU waits."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

runtime = ctypes.CDLL(os.environ["NULL_CUDA"])
runtime.null_memory.argtypes = [ctypes.c_size_t]
HOOK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_longlong)
MOST_DUMPED_BYTES = 1 << 22
_watching: list[Calls] = []


@dataclasses.dataclass
class Calls:
    """What was called while a block ran.

    Attributes:
        counts: Calls by name: "KERNEL ...", "WAIT ...", "COPY H2D pinned async" and so on.
        places: Waits, copies from or to the CPU and errors, each with the line of the project that caused it.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    places: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)

    def total(self, start: str) -> int:
        """Return the number of calls whose names begin with `start`."""
        return sum(count for name, count in self.counts.items() if name.startswith(start))

    def where(self, start: str) -> list[str]:
        """Return the places of calls whose names begin with `start`, as "N x name: place", the most frequent first."""
        return [f"{n} x {name}: {place}" for (name, place), n in self.places.most_common() if name.startswith(start)]

    def summary(self) -> dict[str, Any]:
        """Return the counts that a test looks at."""
        return {
            "launches": self.total("KERNEL"),
            "graphs": self.total("LAUNCH graph"),
            "waits": self.total("WAIT"),
            "pageable": self.total("COPY H2D pageable") + self.total("COPY D2H pageable"),
            "errors": self.total("ERROR"),
            "where": self.where("WAIT") + self.where("COPY H2D pageable") + self.where("ERROR"),
        }


@contextlib.contextmanager
def watched() -> Iterator[Calls]:
    """Count the calls of a block."""
    calls = Calls()
    runtime.null_reset()
    _watching.append(calls)
    try:
        yield calls
    finally:
        _watching.pop()
        calls.counts = _dump()


def _dump() -> dict[str, int]:
    buffer = ctypes.create_string_buffer(MOST_DUMPED_BYTES)
    runtime.null_dump(buffer, MOST_DUMPED_BYTES)
    lines = (line.split("\t", 2) for line in buffer.value.decode().splitlines())
    return {name: int(calls) for calls, _, name in lines}


def leave() -> NoReturn:
    """End the process without cleanup: torch's shutdown on the null runtime aborts in one process of ten."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@HOOK
def _see(name: bytes, size: int) -> None:
    if _watching:
        _watching[-1].places[name.decode(), _place()] += 1


def _place() -> str:
    """Return the innermost line of the project on the stack, and the three above it."""
    own = [f for f in traceback.extract_stack()[:-2] if "/colddiff_" in f.filename]
    if not own:
        return "outside the project"
    lines = [f"{f.filename.rpartition('/colddiff_')[2]}:{f.lineno}" for f in own[-4:]]
    return f"{own[-1].line} ({' > '.join(lines)})"


runtime.null_hook(_see)
