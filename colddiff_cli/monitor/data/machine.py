"""The machine under the training: processor, memory, GPU. Read where the dashboard runs."""

from __future__ import annotations

import contextlib
from typing import Any

from colddiff_core.runs import LockHolder

FIRST = 0.02  # seconds that the first reading looks at; later ones are of the time since the one before


class MachineReadings:
    """Readings of this machine; what it does not have is left out."""

    def __init__(self) -> None:
        self._process: Any = None
        self._gpus: list[tuple[str, Any]] | None = None

    def read(self, holder: LockHolder | None) -> list[tuple[str, str]]:
        """Return (what, reading) pairs; `holder` is the process that trains."""
        import psutil  # here and below: the dashboard is on the screen by now

        interval = FIRST if self._gpus is None else None
        if self._gpus is None:
            self._gpus = _gpus()
        memory = psutil.virtual_memory()
        lines = [
            ("CPU", f"{psutil.cpu_percent(interval):.0f} % of {psutil.cpu_count()} cores"),
            ("memory", f"{gigabytes(memory.total - memory.available)} of {gigabytes(memory.total)} GB"),
        ]
        lines += self._trainer(holder)
        for name, handle in self._gpus:
            with contextlib.suppress(Exception):  # a driver that goes away takes its reading along, nothing else
                import pynvml

                used, use = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetUtilizationRates(handle)
                lines.append((name, f"{use.gpu} %, {gigabytes(used.used)} of {gigabytes(used.total)} GB"))
        return lines

    def _trainer(self, holder: LockHolder | None) -> list[tuple[str, str]]:
        if holder is None or not holder.is_here or holder.is_gone:
            return []
        import psutil

        interval = None
        try:
            if self._process is None or self._process.pid != holder.pid:
                self._process = psutil.Process(holder.pid)
                interval = FIRST
            share, used = self._process.cpu_percent(interval), self._process.memory_info().rss
            return [("trainer", f"{share:.0f} % CPU, {gigabytes(used)} GB"), ("process", f"{holder.pid}")]
        except psutil.Error:
            return []


def gigabytes(count: int) -> str:
    """Return bytes as gigabytes."""
    return f"{count / 1e9:.1f}"


def _gpus() -> list[tuple[str, Any]]:
    """Return the NVIDIA GPUs, by name; none where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
        return [(f"GPU {place}" if len(handles) > 1 else "GPU", handle) for place, handle in enumerate(handles)]
    except Exception:  # no library of the driver, or one that does not answer
        return []
