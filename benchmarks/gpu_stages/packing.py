"""A folder for a GPU machine without a network: MNIST, and packages that it may lack."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

MOST_BYTES = 64 * 2**20  # what such a machine accepts
PYTHON = "3.12"
PLATFORMS = ("any", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux2010_x86_64")
# What `colddiff` imports, with dependencies, except torch, torchvision, numpy, Pillow and scikit-learn, which are too
# large to pack. Later releases of typer need pydantic.
PACKAGES = (
    "platformdirs", "tomli-w", "safetensors", "psutil", "nvidia-ml-py",
    "typer==0.28.0", "annotated-doc", "shellingham", "click<9", "typing-extensions",
    "rich<16", "markdown-it-py", "mdurl", "pygments",
    "textual>=8,<9", "mdit-py-plugins", "linkify-it-py", "uc-micro-py", "textual-image>=0.8,<0.13",
    "torchmetrics<2", "lightning-utilities", "packaging",
)  # fmt: skip
WHEELS, PICTURES = "wheels", "mnist.tar.gz"


def pack(folder: Path, data: Path | None) -> str:
    """Fill a folder and return a description of its contents.

    Raises:
        RuntimeError: A package cannot be downloaded, or the folder is larger than MOST_BYTES.
    """
    wheels = folder / WHEELS
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(wheels)]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise RuntimeError(f"pip download: {errors[-1] if errors else done.stderr[-500:]}")
    if data is not None:
        with tarfile.open(folder / PICTURES, "w:gz") as archive:
            archive.add(data / "MNIST" / "raw", "MNIST/raw")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise RuntimeError(f"{folder} has {size / 2**20:.0f} MiB, more than {MOST_BYTES // 2**20}")
    return f"{folder}: {len(list(wheels.glob('*.whl')))} packages, {'MNIST, ' if data else ''}{size / 2**20:.0f} MiB"


def unpack(folder: Path, work: Path) -> tuple[Path | None, Path]:
    """Unpack into `work`; return the folder above MNIST/raw, None if it was not packed, and that of the packages.

    Pure Python packages take precedence over installed ones, so that their versions fit together. Platform wheels are
    only unpacked if the package is not installed.
    """
    site = work / "site"
    site.mkdir(parents=True, exist_ok=True)
    for wheel in sorted((folder / WHEELS).glob("*.whl")):
        if wheel.stem.endswith("-none-any") or not is_installed(wheel.name.split("-")[0]):
            with zipfile.ZipFile(wheel) as archive:  # a wheel's contents belong in site-packages
                archive.extractall(site)
    if not (folder / PICTURES).exists():
        return None, site
    with tarfile.open(folder / PICTURES) as archive:
        archive.extractall(work / "data", filter="data")
    return work / "data", site


def is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
