"""A command's output and errors: what cannot be encoded or written stops no work, and is reported at its end."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast


class GuardedStream:
    """A text stream that drops what it cannot write: no terminal, a full disk, a reader that has stopped.

    Attributes:
        failure: The system's reason for lost output; empty if nobody was there to read it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure = ""
        if isinstance(stream, io.TextIOWrapper):  # others, in tests, take every character
            stream.reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it on failure."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop its output on failure."""
        self._try(self.stream.flush)

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            # With EPIPE the reader has stopped, as `| head` does; with EIO the terminal is gone, and so is the reader.
            if error.errno not in (errno.EPIPE, errno.EIO):
                self.failure = error.strerror or str(error)
            with contextlib.suppress(OSError, ValueError):  # streams in tests have no file descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # also for what is buffered


@contextlib.contextmanager
def guarded() -> Iterator[GuardedStream]:
    """Guard sys.stdout and sys.stderr during the context. Yields the guarded stdout, flushed at the end."""
    usual = sys.stdout, sys.stderr
    # sys.stdout is None if the command was started with it closed, as with `>&-`.
    output, errors = (GuardedStream(stream or open(os.devnull, "w", encoding="utf-8")) for stream in usual)  # noqa: SIM115
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    try:
        yield output
    finally:
        output.flush()
        sys.stdout, sys.stderr = usual
