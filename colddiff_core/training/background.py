"""Run one piece of work in a background thread."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable


class BackgroundWork:
    """A function call in a background thread.

    At exit, Python waits until it ends, unless it was abandoned. A forked child does not have the thread, so the work
    is lost there.

    Attributes:
        error: What the work raised.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.error: BaseException | None = None
        self._ended = threading.Event()
        self._process = os.getpid()
        self._is_abandoned = False

    def start(self) -> None:
        """Start the thread; if no thread can be started, do the work in this one.

        The system may limit threads, and Python starts none while it exits.
        """
        # A daemon thread, so that Ctrl-C can end the process even if the disk does not respond.
        thread = threading.Thread(target=self.do, name="colddiff-checkpoint", daemon=True)
        atexit.register(self._wait_at_exit)
        try:
            thread.start()
        except RuntimeError:
            self.do()
        except BaseException:  # Ctrl-C; the thread may have started
            self.abandon()
            raise

    def do(self) -> None:
        """Do the work in this thread and keep its exception."""
        try:
            if not self._is_abandoned:
                self._work()
        except BaseException as error:
            self.error = error
        finally:
            self._ended.set()

    @property
    def is_lost(self) -> bool:
        """Whether this is a forked child of the process that does the work."""
        return os.getpid() != self._process

    @property
    def has_ended(self) -> bool:
        """Whether the work is done, failed or lost."""
        return self._ended.is_set() or self.is_lost

    def wait(self, seconds: float | None = None) -> bool:
        """Wait up to `seconds`, or without limit; return whether the work has ended."""
        return self.is_lost or self._ended.wait(seconds)

    def abandon(self) -> None:
        """Skip the work if it has not started yet, and let Python exit without waiting."""
        self._is_abandoned = True
        self.forget()

    def forget(self) -> None:
        """Let Python exit without waiting."""
        atexit.unregister(self._wait_at_exit)

    def _wait_at_exit(self) -> None:
        self.wait()
