"""Follow the load of this machine: fewer threads while other programs use its processors.

The threads of an operation spin until the slowest one is done. If one of them has to wait for a processor, training can
become a hundred times slower, not twice. With no more threads than free processors this does not happen
(`python benchmarks/busy.py`). Sleeping threads (OMP_WAIT_POLICY=passive) do not solve it: waking one takes longer than
an operation of a small network.
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

    The command line calls this. A library should not: the number applies to the whole process, and the last digits of
    a result depend on it. Does nothing if OMP_NUM_THREADS is set or the job has several processes (`--nproc`).
    """
    global _is_allowed  # noqa: PLW0603 - torch's number of threads is the process's too
    _is_allowed = "OMP_NUM_THREADS" not in os.environ and environment.process_info().is_alone


def adapt() -> None:
    """Set torch's threads to the number of free processors. Cheap enough to call before every network evaluation."""
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
