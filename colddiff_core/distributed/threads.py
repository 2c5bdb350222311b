"""Follow the load of this machine: fewer threads while other programs use its processors.

The threads of one operation wait for each other. Where one of them has no processor, the others spin until it gets
one, and a training beside other work becomes a hundred times slower, not twice. With as many threads as there are free
processors it does not (`python benchmarks/busy.py`). Sleeping in place of spinning (OMP_WAIT_POLICY=passive) is no way
out: waking a thread takes longer than an operation of a small network.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

from colddiff_core.distributed import environment

CHECK_SECONDS = 1.0
LACKING = 0.05  # share of this process's threads without a processor, for another look at their number
PATIENCE_CHECKS = 3  # that processors must stay free, for more threads


@dataclasses.dataclass(frozen=True)
class ProcessorTimes:
    """Seconds so far on the processors that this process may use.

    Attributes:
        clock: By the clock.
        idle: In which the processors had nothing to do, summed over them.
        own: That this process has used, summed over its threads.
        count: How many processors there are.
    """

    clock: float
    idle: float
    own: float
    count: int


def measured_times() -> ProcessorTimes:
    """Return the processors' times until now."""
    import psutil  # noqa: PLC0415 - 20 ms, which `--help` need not pay

    each = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    ours = [times for number, times in enumerate(each) if number in usable]
    idle = sum(times.idle + getattr(times, "iowait", 0.0) for times in ours)
    own = psutil.Process().cpu_times()
    return ProcessorTimes(time.monotonic(), idle, own.user + own.system, len(ours))


class ThreadShare:
    """Decides how many threads to use, once a second at most.

    Attributes:
        most: How many to use on an idle machine.
        current: How many to use now.
    """

    def __init__(self, most: int, measure: Callable[[], ProcessorTimes] = measured_times) -> None:
        self.most = self.current = most
        self._measure, self._last = measure, measure()
        self._free_checks = 0

    def is_due(self, now: float) -> bool:
        """Return whether the last look is long enough ago, by time.monotonic()."""
        return now - self._last.clock >= CHECK_SECONDS

    def decide(self) -> int:
        """Look at what was used since the last look; return how many threads to use."""
        now, before = self._measure(), self._last
        seconds = max(now.clock - before.clock, 1e-3)
        self._last = now
        own, idle = (now.own - before.own) / seconds, (now.idle - before.idle) / seconds  # in processors
        free = own + idle
        more = min(self.most, max(self.current + 1, round(free)))
        if free < self.current * (1 - LACKING):
            # Others would use more if our threads did not: they wait as long as ours.
            asked_by_others = (now.count - free) * self.current / max(own, 0.1)
            left = int(now.count - asked_by_others + 0.5)
            self.current, self._free_checks = max(1, min(self.current, left)), 0
        elif free < more - 0.25 or self.current == self.most:
            self._free_checks = 0
        else:
            self._free_checks += 1
            if self._free_checks >= PATIENCE_CHECKS:
                self.current, self._free_checks = more, 0
        return self.current


_is_allowed = False
_share: ThreadShare | None = None
_has_varied = False


def follow_load() -> None:
    """Let `adapt` change torch's number of threads from now on.

    For a program of its own, as the command line is: the number is the process's, and the last digits of a result
    depend on it. It stays as it is where it was set (OMP_NUM_THREADS), and where processes share a machine (`--nproc`).
    """
    global _is_allowed  # noqa: PLW0603 - torch's number of threads is the process's too
    _is_allowed = "OMP_NUM_THREADS" not in os.environ and environment.process_info().is_alone


def adapt() -> None:
    """Use as many threads as there are free processors; cheap, so call it before any work of milliseconds."""
    global _share, _has_varied, _is_allowed  # noqa: PLW0603
    if not _is_allowed:
        return
    import torch  # noqa: PLC0415 - the command line imports this module before it knows that it needs torch

    if _share is None:
        _is_allowed = torch.get_num_threads() > 1
        _share = ThreadShare(torch.get_num_threads())
    elif _share.is_due(time.monotonic()):
        before = _share.current
        if _share.decide() != before:
            torch.set_num_threads(_share.current)
            _has_varied = True


def has_varied() -> bool:
    """Return whether `adapt` has changed the number of threads in this process."""
    return _has_varied
