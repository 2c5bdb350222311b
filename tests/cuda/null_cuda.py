"""Build the null CUDA runtime (null/), and run Python processes on it."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "null"
LIBRARIES = ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_python.so", "libc10_cuda.so")
CUDA_VERSION = "13"  # major version that null/runtime.c is written for; earlier headers have other signatures


class UnavailableError(Exception):
    """The null runtime cannot be built here; the message says why."""


def build(folder: Path) -> dict[str, str]:
    """Compile the runtime into `folder` and return the environment variables of a process that uses it.

    Raises:
        UnavailableError: This is not Linux, gcc, nm or the CUDA headers are missing, or torch is not built for
            CUDA_VERSION.
    """
    compiler, symbol_lister = (shutil.which(name) for name in ("gcc", "nm"))
    if sys.platform != "linux":
        raise UnavailableError("the null CUDA runtime needs Linux")
    if compiler is None or symbol_lister is None:
        raise UnavailableError("gcc and nm are not installed")
    headers = _headers()
    stubs = folder / "stubs.c"
    stubs.write_text(_stubs(symbol_lister))
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    shared = (compiler, "-O2", "-shared", "-fPIC", f"-I{headers}", "-o")
    driver, runtime = folder / "libcuda.so.1", folder / "libnullcuda.so"
    run([*shared, driver, SOURCES / "driver.c", "-ldl"])
    sources = [SOURCES / "runtime.c", SOURCES / "libraries.c", stubs]
    run([*shared, runtime, *sources, driver, "-Wl,-rpath,$ORIGIN", "-lpthread"])
    return {
        "NULL_CUDA": str(runtime),
        "LD_PRELOAD": str(runtime),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "1",
    }


def _torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _headers() -> Path:
    """Return the folder of the CUDA headers: Triton's, or else a CUDA toolkit's."""
    version = re.search(r"cuda: \S+ = '(\d+)", (_torch_folder() / "version.py").read_text())
    if version is None or not (_torch_folder() / "lib" / LIBRARIES[0]).exists():
        raise UnavailableError("torch is installed without CUDA")
    if version[1] != CUDA_VERSION:
        raise UnavailableError(f"torch is built for CUDA {version[1]}, the null runtime for {CUDA_VERSION}")
    packages = _torch_folder().parent
    for folder in (packages / "triton" / "backends" / "nvidia" / "include", Path("/usr/local/cuda/include")):
        header = folder / "cuda_runtime_api.h"
        if header.exists() and f"define CUDART_VERSION  {CUDA_VERSION}" in header.read_text():
            return folder
    raise UnavailableError(f"the headers of CUDA {CUDA_VERSION} are not installed")


def _stubs(symbol_lister: str) -> str:
    """Return C code for functions that torch's libraries call and null/ does not define; calls count as launches."""
    libraries = [str(_torch_folder() / "lib" / name) for name in LIBRARIES]
    command = [symbol_lister, "-D", "--undefined-only", *libraries]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"U (cublas\w+|cudnn\w+|cufft\w+)", listed))
    text = "".join((SOURCES / name).read_text() for name in ("runtime.c", "libraries.c"))
    defined = set(re.findall(r"\b(cu(?:blas|dnn|fft)\w+)\(", text)) | set(
        re.findall(r"^(?:CREATE|FREE)\((\w+)", text, re.M)
    )
    lines = ["#include <stdlib.h>", "extern void null_count(const char *name);"]
    for name in sorted(needed - defined):
        if name.startswith("cudnnCreate"):
            lines.append(f"int {name}(void **h) {{ *h = calloc(1, 64); return 0; }}")
        else:
            lines.append(f'int {name}() {{ null_count("KERNEL {name}"); return 0; }}')
    return "\n".join(lines) + "\n"


def environment(variables: dict[str, str], root: Path = ROOT) -> dict[str, str]:
    """Return this process's environment with the runtime's variables, and `root` and this folder as import paths."""
    return os.environ | variables | {"PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}


def run_worker(variables: dict[str, str], name: str, *arguments: object, folder: Path | None = None) -> str:
    """Run a script of this folder on the runtime and return what it printed; fail with its stderr if it failed."""
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment(variables), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr}"
    return done.stdout
