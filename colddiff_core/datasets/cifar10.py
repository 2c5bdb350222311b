"""CIFAR-10, CelebA and AFHQ cats: sets that a user fetches, in any of the layouts they come in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from colddiff_core.datasets.base import DatasetRequest, ImageSet, fit, register, uncropped
from colddiff_core.datasets.layouts import _root, _split
from colddiff_core.errors import UsageError
from colddiff_core.images import LUMA

CIFAR_SIDE = 32
LOSSY = frozenset({".jpg", ".jpeg"})
CIFAR_RECORD = 1 + 3 * CIFAR_SIDE**2  # a label, then the three channels


@register("cifar10", has_crops=True)
def load_cifar10(request: DatasetRequest) -> ImageSet:
    """Return CIFAR-10, from its binary version or from folders of images (10 classes, 32 x 32).

    The version for Python is a pickle and is not read. Source: Krizhevsky 2009.
    """
    root = _root(request)
    binary = root / "cifar-10-batches-bin"
    if binary.is_dir():
        if request.crop:
            raise uncropped("CIFAR-10's binary version")
        return _read_binary(binary, request)
    remedy = (
        "Unpack cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html there, or put images in "
        f"{root / 'cifar10'}/train and /test; or name another folder with --data-dir."
    )
    found = _split("CIFAR-10", root, ("cifar10", "cifar-10", "cifar10-jpeg"), request, remedy)
    # Published without losses: encoded again, its figures are others'.
    return dataclasses.replace(found, note="JPEG") if found.suffixes & LOSSY else found


def _read_binary(folder: Path, request: DatasetRequest) -> ImageSet:
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] if request.split == "train" else ["test_batch.bin"]
    try:
        records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in files])
    except OSError as error:
        raise UsageError(f"Cannot read {error.filename}: {error.strerror}.", "Unpack the archive again.") from None
    if not len(records) or len(records) % CIFAR_RECORD:
        raise UsageError(f"The CIFAR-10 files in {folder} are cut short.", "Unpack the archive again.")
    table = torch.from_numpy(records).view(-1, CIFAR_RECORD)
    pixels = table[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    if request.channels == 1:
        pixels = (pixels * LUMA.view(1, 3, 1, 1)).sum(1, keepdim=True).round().to(torch.uint8)
    return ImageSet(fit(pixels, dataclasses.replace(request, channels=0)), table[:, 0].long())
