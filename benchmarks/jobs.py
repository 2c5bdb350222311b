"""The input and output of one measurement: one side of a case, in its own process."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Rows = dict[str, dict[str, Any]]
# Dense bf16 FLOP/s on the tensor cores, from NVIDIA's data sheets. The first match with a name counts.
PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A10G", 70e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


@dataclasses.dataclass(frozen=True)
class BenchmarkJob:
    """The input of one side.

    settings: a resolved preset as plain tables; directory: the data sets, None for the built-in ones; compile: the
    compile mode of our network for sampling, as in `colddiff_core.models.compiling.mode`.
    """

    settings: Mapping[str, Any]
    device: torch.device
    is_quick: bool = False
    directory: Path | None = None
    compile: str = "auto"

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def channels(self) -> int:
        """Return the number of image channels: the preset's, or the data set's."""
        data = self.settings["data"]
        return data["channels"] or (1 if data["dataset"] in ("mnist", "digits") else 3)

    def pick(self, quick: int, cpu: int, cuda: int) -> int:
        """Return the count for this kind of job and device."""
        return quick if self.is_quick else cuda if self.is_cuda else cpu

    def now(self) -> float:
        """Return the time in seconds, after the device has finished its work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, work: Callable[[], object], repeats: int) -> list[float]:
        """Return the seconds of each repeat."""
        times = []
        for _ in range(repeats):
            start = self.now()
            work()
            times.append(self.now() - start)
        return times

    def memory(self) -> int:
        """Return the peak memory of this process in bytes: resident, or the allocator's on a GPU."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def row(values: list[float], unit: str = "s", images: int = 0, **more: Any) -> dict[str, Any]:
    """Return a measured row: a value per repeat, lower is better.

    With `images` per repeat, seconds are shown as images per second.
    """
    return {"values": values, "unit": unit, "images": images} | more


def machine(job: BenchmarkJob) -> dict[str, Any]:
    """Return the device name, its threads, its bf16 peak in FLOP/s (0 if unknown) and the source of that."""
    if job.is_cuda:
        name = torch.cuda.get_device_name(job.device)
        peak, source = next((flops for part, flops in PEAKS if part in name), 0.0), "published, dense"
    else:
        name, source = _processor(), "measured: the faster of a matrix product and a 3x3 convolution"
        peak = _measured_peak(job)
    info = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    return info | {"peak": peak, "peak_source": source}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def _measured_peak(job: BenchmarkJob) -> float:
    side, count, channels = job.pick(64, 2048, 2048), job.pick(1, 32, 32), job.pick(8, 256, 256)
    a, b = torch.randn(2, side, side, dtype=torch.bfloat16)
    x = torch.randn(count, channels, 32, 32, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, dtype=torch.bfloat16).to(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        product, convolution = (min(job.seconds(work, job.pick(1, 6, 6))) for work in (lambda: a @ b, lambda: layer(x)))
    return max(2 * side**3 / product, 2 * 9 * count * channels**2 * 32 * 32 / convolution)
