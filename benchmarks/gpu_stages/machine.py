"""Stage `setup`: the machine, its packages, its peak rates, and whether everything can be imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import subprocess
import time

import torch

from gpu_stages.bench import GpuBench, Result

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "pillow", "typer", "rich", "textual", "textual-image", "platformdirs",
    "tomli-w", "safetensors", "scikit-learn", "torchmetrics", "psutil", "nvidia-ml-py", "scikit-image",
)  # fmt: skip
MODULES = (
    "colddiff_core.training.trainer",
    "colddiff_core.inference.generate",
    "colddiff_core.evaluation.evaluate",
    "colddiff_cli.commands.train",
    "colddiff_cli.commands.generate",
    "colddiff_cli.commands.evaluate",
    "colddiff_cli.console.terminal_images",
    "colddiff_cli.monitor.app",
)


def run(bench: GpuBench) -> None:
    bench.attempt("setup", "versions", versions)
    if bench.is_cuda:
        bench.attempt("setup", "device", device)
    bench.attempt("setup", "at most", lambda: at_most(bench))
    for module in MODULES:
        bench.attempt("setup", f"import {module}", lambda name=module: imported(name))
    bench.attempt("setup", "chosen", lambda: chosen(bench))


def versions() -> Result:
    found: Result = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def device() -> Result:
    if shutil.which("nvidia-smi"):
        print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout, flush=True)
    found = torch.cuda.get_device_properties(0)
    return {
        "device": found.name,
        "memory_gib": found.total_memory / 2**30,
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def at_most(bench: GpuBench) -> Result:
    """Return the rates of matrix products, in TFLOP/s, and of a copy, in TB/s."""
    found = {"bf16_tflops": bench.product_flops(torch.bfloat16) / 1e12}
    found["float32_tflops"] = bench.product_flops(torch.float32) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = True
    found["tf32_tflops"] = bench.product_flops(torch.float32) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    block = torch.empty(2**28 if bench.is_cuda and not bench.is_quick else 2**10, device=bench.device)
    copied = torch.empty_like(block)
    seconds = bench.kernel_ms(lambda: copied.copy_(block)) / 1e3
    return found | {"copy_tbs": 2 * block.nbytes / seconds / 1e12}


def imported(name: str) -> Result:
    began = time.perf_counter()
    importlib.import_module(name)
    return {"seconds": round(time.perf_counter() - began, 2)}


def chosen(bench: GpuBench) -> Result:
    """Return the device and dtype that the commands choose here."""
    from colddiff_core import devices

    place = devices.choose("auto")
    return {
        "auto": str(place),
        "body": str(devices.body_dtype("auto", place)),
        "named": devices.describe(devices.choose(bench.device)),
    }
