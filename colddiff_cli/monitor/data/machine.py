"""CPU, memory and GPU use of the machine that the dashboard runs on."""

from __future__ import annotations

import contextlib
from typing import Any

from colddiff_core.runs import LockHolder

FIRST_INTERVAL = 0.02  # seconds measured by the first reading; later ones cover the time since the last


class MachineReadings:
    """Readings of this machine; devices it does not have are left out."""

    def __init__(self) -> None:
        self._process: Any = None
        self._gpus: list[tuple[str, Any]] | None = None

    def read(self, holder: LockHolder | None) -> list[tuple[str, str]]:
        """Return pairs of label and reading; `holder` is the training process."""
        import psutil  # imported late here and below, so the dashboard opens faster

        interval = FIRST_INTERVAL if self._gpus is None else None
        if self._gpus is None:
            self._gpus = _gpus()
        memory = psutil.virtual_memory()
        lines = [
            ("CPU", f"{psutil.cpu_percent(interval):.0f} % of {psutil.cpu_count()} cores"),
            ("memory", f"{gigabytes(memory.total - memory.available)} of {gigabytes(memory.total)} GB"),
        ]
        lines += self._trainer(holder)
        for name, handle in self._gpus:
            with contextlib.suppress(Exception):  # a driver that fails costs only its own line
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
                interval = FIRST_INTERVAL
            share, used = self._process.cpu_percent(interval), self._process.memory_info().rss
            return [("trainer", f"{share:.0f} % CPU, {gigabytes(used)} GB"), ("process", f"{holder.pid}")]
        except psutil.Error:
            return []


def gigabytes(count: int) -> str:
    """Format bytes as gigabytes."""
    return f"{count / 1e9:.1f}"


def _gpus() -> list[tuple[str, Any]]:
    """Return label and NVML handle of each NVIDIA GPU; empty without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [(f"GPU {index}" if len(handles) > 1 else "GPU", handle) for index, handle in enumerate(handles)]
    except Exception:  # no driver library, or one that does not answer
        return []
