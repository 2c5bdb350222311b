"""MNIST: its idx files, downloaded by torchvision."""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colddiff_core.datasets.base import DatasetRequest, ImageSet, fit, register
from colddiff_core.datasets.damage import kind_of
from colddiff_core.datasets.layouts import data_root
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import read_ordinary
from colddiff_core.text import beginning, harmless

PREFIXES = {"train": "train", "test": "t10k"}
KINDS = {"images-idx3-ubyte": 3, "labels-idx1-ubyte": 1}  # files of a split, and the dimensions of their arrays
MAX_FILE_BYTES = 1 << 28
_UNSIGNED_BYTES = 8  # the type of the numbers, in the third byte of an idx file

CLASSES = tuple("0123456789")


@register("mnist")
def load(request: DatasetRequest) -> ImageSet:
    """Return 60,000 training or 10,000 test digits as (N, C, H, W) uint8, scaled from 28 x 28.

    Raises:
        UsageError: The files are damaged, or missing while downloads are off.
        MachineError: The files are missing and the download failed.
    """
    directory = data_root(request)
    raw = directory / "MNIST" / "raw"
    stems = [f"{PREFIXES[request.split]}-{kind}" for kind in KINDS]
    remedy = f"Put its four idx files in {raw}, or name the folder above MNIST with --data-dir."
    missing = [why for stem in stems if (why := _missing(raw / stem, directory))]
    if missing:
        if not request.download:
            raise UsageError(f"{missing[0]}.", remedy)
        _download(directory, missing[0], remedy)
    pixels, labels = (
        _read(raw / stem, dimensions, request) for stem, dimensions in zip(stems, KINDS.values(), strict=True)
    )
    if len(pixels) != len(labels):
        raise UsageError(f"{raw / stems[0]} has {len(pixels)} images, and {stems[1]} {len(labels)} labels.", remedy)
    return ImageSet(fit(pixels.unsqueeze(1), request), labels.long(), CLASSES)


class _DamagedError(ValueError):
    """An idx file cannot be used; the message says what it is instead."""


def _missing(path: Path, directory: Path) -> str:
    """Return why a file has to be downloaded: it is absent, or compressed and damaged; empty if it is there."""
    if path.exists():
        return ""
    compressed = path.with_name(f"{path.name}.gz")
    if not compressed.exists():
        return f"MNIST is not in {directory}"
    try:
        _content(compressed)
    except _DamagedError as error:
        return f"MNIST cannot be read: {compressed} is {error}"
    return ""


def _read(path: Path, dimensions: int, request: DatasetRequest) -> Tensor:
    """Return the uint8 array of an idx file, or of a gzipped one beside it."""
    path = path if path.exists() else path.with_name(f"{path.name}.gz")
    try:
        content = _content(path)
        shape = struct.unpack_from(f">{dimensions}i", content, 4)
        if content[:4] != bytes((0, 0, _UNSIGNED_BYTES, dimensions)) or min(shape) < 1:
            raise _DamagedError("no idx file of MNIST")
        start = 4 + 4 * dimensions
        if len(content) != start + math.prod(shape):
            raise _DamagedError("cut short" if len(content) < start + math.prod(shape) else "damaged")
    except struct.error:
        what = "cut short"
    except _DamagedError as error:
        what = str(error)
    else:
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
    remedy = "Delete it and run the command again: MNIST is downloaded then."
    if not request.download:
        remedy = f"Delete it, and put MNIST's own {path.name} there."
    raise UsageError(f"MNIST cannot be read: {path} is {what}.", remedy)


def _content(path: Path) -> bytes:
    """Return the content of a file, decompressed if it ends in .gz. Raises _DamagedError."""
    try:
        content = read_ordinary(path, MAX_FILE_BYTES)
    except OSError as error:
        raise _DamagedError(f"unreadable ({error.strerror or error})") from None
    if kind := kind_of(content):
        raise _DamagedError(kind)
    if path.suffix != ".gz":
        return content
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_FILE_BYTES)
    except EOFError:
        raise _DamagedError("cut short") from None
    except (OSError, zlib.error):
        raise _DamagedError("not gzip, or damaged") from None
    if kind := kind_of(content):
        raise _DamagedError(kind)
    return content


def _download(directory: Path, what: str, remedy: str) -> None:
    """Download the files that are missing, and replace damaged ones."""
    from torchvision.datasets import MNIST  # noqa: PLC0415 - a second that nobody pays who has the files

    try:
        MNIST(str(directory), download=True)
    except (RuntimeError, OSError, AssertionError, ValueError) as error:
        raise MachineError(f"{what}, and could not be downloaded: {_reason(error)}.", remedy) from None


def _reason(error: Exception) -> str:
    """Return why a download failed, in a few words: torchvision's message names every address that it tried."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Error downloading", "Tried "))] or [type(error).__name__]
    text = re.sub(r"^<urlopen error (?:\[Errno -?\d+\] )?(.*)>$", r"\1", lines[0])
    return beginning(harmless(text)).rstrip(".")
