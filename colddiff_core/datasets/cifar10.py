"""CIFAR-10, from its binary version or from image folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from colddiff_core.datasets.base import DatasetRequest, ImageSet, crop_unsupported, fit, register
from colddiff_core.datasets.damage import kind_of
from colddiff_core.datasets.layouts import data_root, load_split
from colddiff_core.errors import UsageError
from colddiff_core.files import read_ordinary
from colddiff_core.images import LUMA

CIFAR_SIDE = 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
MAX_FILE_BYTES = 1 << 28
CIFAR_RECORD_BYTES = 1 + 3 * CIFAR_SIDE**2  # a label, then three channels


@register("cifar10", has_crops=True)
def load_cifar10(request: DatasetRequest) -> ImageSet:
    """Return CIFAR-10 as (N, C, H, W) uint8 with labels 0 to 9.

    Reads the binary version or image folders. The Python version is a pickle and is not read.

    Source: Krizhevsky 2009.

    Raises:
        UsageError: The data set is not in the data folder, cannot be read, or is binary and a crop is requested.
    """
    root = data_root(request)
    binary = root / "cifar-10-batches-bin"
    if binary.is_dir():
        if request.crop:
            raise crop_unsupported("the CIFAR-10 binary version")
        return _read_binary(binary, request)
    remedy = (
        "Unpack cifar-10-binary.tar.gz from www.cs.toronto.edu/~kriz/cifar.html there, put images in "
        f"{root / 'cifar10'}/train and /test, or name another folder with --data-dir."
    )
    images = load_split("CIFAR-10", root, ("cifar10", "cifar-10", "cifar10-jpeg"), request, remedy)
    # CIFAR-10 was published lossless, so results on a JPEG copy are not comparable.
    return dataclasses.replace(images, note="JPEG") if images.suffixes & LOSSY else images


def _content(path: Path) -> bytes:
    """Return the records of a file. Raises UsageError if it is missing or damaged."""
    remedy = "Delete it and unpack the archive again."
    try:
        content = read_ordinary(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.", "Unpack the archive again.") from None
    if kind := kind_of(content) or ("cut short" if len(content) % CIFAR_RECORD_BYTES else ""):
        raise UsageError(f"CIFAR-10 cannot be read: {path} is {kind}.", remedy)
    return content


def _read_binary(folder: Path, request: DatasetRequest) -> ImageSet:
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] if request.split == "train" else ["test_batch.bin"]
    records = np.frombuffer(b"".join(_content(folder / name) for name in files), np.uint8).copy()
    table = torch.from_numpy(records).view(-1, CIFAR_RECORD_BYTES)
    pixels = table[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    if request.channels == 1:
        pixels = (pixels * LUMA.view(1, 3, 1, 1)).sum(1, keepdim=True).round().to(torch.uint8)
    return ImageSet(fit(pixels, dataclasses.replace(request, channels=0)), table[:, 0].long(), CLASSES)
