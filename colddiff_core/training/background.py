"""Do one piece of work in a thread, where there can be one."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable


class BackgroundWork:
    """One piece of work, done in a thread of its own.

    Python waits for it at exit, unless it was abandoned. A forked child has no such thread, so there it is lost.

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
        """Start the thread; if the system or a Python that is exiting allows no more threads, do the work now."""
        # A daemon, so that Ctrl-C can end a process although its disk does not answer.
        thread = threading.Thread(target=self.do, name="colddiff-checkpoint", daemon=True)
        atexit.register(self._wait_at_exit)
        try:
            thread.start()
        except RuntimeError:
            self.do()
        except BaseException:  # Ctrl-C: it may have started
            self.abandon()
            raise

    def do(self) -> None:
        """Do the work in this thread and keep what it raises."""
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
        """Whether the work is done, has failed, or is lost."""
        return self._ended.is_set() or self.is_lost

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end, at most `seconds`; return whether it has ended."""
        return self.is_lost or self._ended.wait(seconds)

    def abandon(self) -> None:
        """Do not begin with the work if it has not begun, and do not wait for it at exit."""
        self._is_abandoned = True
        self.forget()

    def forget(self) -> None:
        """Drop what Python would wait for at exit."""
        atexit.unregister(self._wait_at_exit)

    def _wait_at_exit(self) -> None:
        self.wait()
