"""A disk that takes checkpoints only once a test lets it."""

from __future__ import annotations

import threading
import time

from colddiff_core.runs import checkpoint


class SlowDisk:
    """A disk that writes no checkpoint until it is released; `log` has the calls."""

    def __init__(self, monkeypatch):
        self.open, self.log, self.refused = threading.Event(), [], {}
        save = checkpoint.save

        def wait_and_save(folder, step, *rest, **options):
            self.log.append(f"begin {step}")
            assert self.open.wait(30)
            if step in self.refused:
                raise self.refused[step]
            made = save(folder, step, *rest, **options)
            self.log.append(f"end {step}")
            return made

        monkeypatch.setattr(checkpoint, "save", wait_and_save)

    def await_log(self, *entries):
        end = time.monotonic() + 30
        while self.log != list(entries) and time.monotonic() < end:
            time.sleep(0.001)
        assert self.log == list(entries)

    def release(self, after=0.1):
        threading.Timer(after, self.open.set).start()
