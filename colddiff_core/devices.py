"""Choose the device and the precision."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import MutableMapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from colddiff_core.distributed import environment
from colddiff_core.errors import UsageError
from colddiff_core.paths import cache_folder
from colddiff_core.text import counted

NAMES = ("auto", "cpu", "cuda")
# mallopt's parameters and the largest MMAP_THRESHOLD it takes (glibc's malloc.h)
TRIM_THRESHOLD, MMAP_THRESHOLD, MOST_MMAP_THRESHOLD_BYTES = -1, -3, 2**25
CPU_INFO = Path("/proc/cpuinfo")
RESIDENT_SHARE = 0.5  # the part of a GPU's free memory that pixels may take; activations need the rest
# What torch's CPU kernels can be limited to by ONEDNN_MAX_CPU_ISA, and is slow with bfloat16.
ISA_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}


def choose(name: str) -> torch.device:
    """Return the device for a `--device` value, set up for exact and fast work.

    "auto" is a GPU if there is one. Each process of a job gets its own GPU.

    Raises:
        UsageError: the name is unknown, there is no such GPU, or torch's default is not float32.
    """
    if torch.get_default_dtype() != torch.float32:
        what = f"torch's default dtype is {torch.get_default_dtype()}, but networks and estimates are float32 here."
        raise UsageError(what, "Call torch.set_default_dtype(torch.float32) first.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    process = environment.process_info()
    # Some launchers show each process only its own GPU.
    if name == "cuda" and not process.is_alone and torch.cuda.device_count() != 1:
        name = f"cuda:{process.local}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in NAMES:
        raise UsageError(f"Unknown device '{name}'.", f"Use one of {', '.join(NAMES)}.")
    _limit_threads()
    _keep_compiled_code_private()
    if device.type == "cpu":
        _keep_memory()
    if device.type == "cuda":
        # Convolutions use TF32 by default, which keeps ten bits; the stem needs float32.
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
    """Return the dtype of the network's body; "auto" is bfloat16 if the device is fast at it."""
    if precision == "float32":
        return torch.float32
    if precision == "bf16" or _is_bf16_fast(device):
        return torch.bfloat16
    return torch.float32


def _is_bf16_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ISA_WITHOUT_BF16:
        return False
    try:  # Without these instructions torch emulates bfloat16, slower than float32.
        flags = CPU_INFO.read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of any shape and dtype on `device`; uploads do not wait for a GPU's pending work."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


_COPIES: MutableMapping[Tensor, dict[torch.device, Tensor]] = WeakTensorKeyDictionary()


def on_device(table: Tensor, device: torch.device) -> Tensor:
    """Return a constant table on a device; it is copied once, because each copy makes the CPU wait for a GPU."""
    if table.device == device:
        return table
    copies = _COPIES.setdefault(table, {})
    if device not in copies:
        copies[device] = table.to(device)
    return copies[device]


def can_read(tensor: Tensor) -> bool:
    """Return whether the CPU can read the values of a tensor without waiting for a GPU's pending work."""
    return tensor.device.type != "cuda"


def fits(pixels: Tensor, device: torch.device) -> bool:
    """Return whether the pixels of a data set can be kept on a device; on the CPU they always can."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes <= RESIDENT_SHARE * free


def describe(device: torch.device) -> str:
    """Return the device's name for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({counted(torch.get_num_threads(), 'thread')})"


def _limit_threads() -> None:
    """Limit torch to as many threads as a container has processors.

    Threads that share a processor wait for each other at every operation: that is ten times slower, not just
    twice. OMP_NUM_THREADS takes precedence.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    if torch.get_num_threads() > environment.processors():
        torch.set_num_threads(environment.processors())


def _keep_compiled_code_private() -> None:
    """Have torch.compile keep its code in the user's cache, unless TORCHINDUCTOR_CACHE_DIR says where.

    torch's default is a folder in /tmp with a predictable name. On a shared machine, another user could create it first
    and put code there for us to run. If the user's cache cannot be written, that is left as it is.
    """
    folder = cache_folder("compiled")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def units(name: str) -> tuple[int, str]:
    """Return how many processes a `--device` value has room for on this machine, and the unit: "GPU" or "processor"."""
    gpus = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    return (gpus, "GPU") if gpus or name == "cuda" else (environment.processors(), "processor")


def _keep_memory() -> None:
    """Keep freed memory in the process, if the C library is glibc.

    By default large blocks go back to the system, which clears them page by page when the next step asks for
    them: up to a tenth of a training step, and several times a convolution's own work on a virtual machine
    that returns its memory in turn (docs/performance.md).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library
        return
    mallopt(MMAP_THRESHOLD, MOST_MMAP_THRESHOLD_BYTES)
    mallopt(TRIM_THRESHOLD, -1)
