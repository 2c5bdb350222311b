"""Where the work runs, and in what precision."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch
from torch import Tensor

from colddiff_core.distributed import environment
from colddiff_core.errors import UsageError

NAMES = ("auto", "cpu", "cuda")
# mallopt's names for what it sets, and the most that the first one takes (malloc.h of glibc)
TRIM_THRESHOLD, MMAP_THRESHOLD, MOST_MMAP_THRESHOLD = -1, -3, 2**25
CGROUP = Path("/sys/fs/cgroup")


def choose(name: str) -> torch.device:
    """Return the device of a `--device` value, set up for exact and fast work; "auto" is a GPU where there is one.

    Of the processes of a job on one machine each has a GPU of its own. Raises UsageError for an unknown name and for a
    GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    here = environment.process_info()
    if (
        name == "cuda" and not here.is_alone and torch.cuda.device_count() != 1
    ):  # some launchers show each its own alone
        name = f"cuda:{here.local}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in NAMES:
        raise UsageError(f"Unknown device '{name}'.", f"Use one of {', '.join(NAMES)}.")
    _share_out_threads()
    if device.type == "cpu":
        _keep_memory()
    if device.type == "cuda":
        # TF32 keeps ten bits, and convolutions run in it unless told otherwise: the stem is to see float32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            remedy = (
                f"This machine has {count}." if count else "Use --device cpu, or check the driver and the torch build."
            )
            raise UsageError(f"There is no CUDA device '{name}' here.", remedy)
        if device.index is not None:
            torch.cuda.set_device(device)
    return device


def body_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the network's body: bfloat16 where asked for, or where it is fast under "auto"."""
    if precision == "float32":
        return torch.float32
    if precision == "bf16" or _is_bf16_fast(device):
        return torch.bfloat16
    return torch.float32


def _is_bf16_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:  # Without the instructions torch emulates bfloat16, slower than float32.
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`, without waiting for what a GPU is at."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def describe(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def _share_out_threads() -> None:
    """Have no more threads than processors to run them, where a container has fewer than the machine.

    Threads that take turns on a processor wait for each other at every operation: ten times as slow, not half.
    OMP_NUM_THREADS, where it is set, is taken at its word.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    if torch.get_num_threads() > processors():
        torch.set_num_threads(processors())


def units(name: str) -> tuple[int, str]:
    """Return how many processes of a `--device` value can each have a part of this machine, and what a part is."""
    gpus = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    return (gpus, "GPU") if gpus or name == "cuda" else (processors(), "processor")


def processors() -> int:
    """Return how many processors this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _quota(CGROUP))


def _quota(cgroup: Path) -> int:
    """Return how many processors' worth of time this container is given, at least one; a large number for no limit."""
    unlimited = 2**16
    try:
        limit, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        return unlimited if limit == "max" else max(1, -(-int(limit) // int(period)))
    except (OSError, ValueError):
        return unlimited


def _keep_memory() -> None:
    """Have freed memory stay with the process, where the C library is glibc.

    It gives large blocks back to the system, which clears them page by page when the next step asks for them again: up
    to a tenth of a training step, and on a virtual machine that hands its memory back in turn, several times a
    convolution's own work (docs/performance.md).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library
        return
    mallopt(MMAP_THRESHOLD, MOST_MMAP_THRESHOLD)
    mallopt(TRIM_THRESHOLD, -1)
