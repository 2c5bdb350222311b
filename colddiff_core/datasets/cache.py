"""Decoded images kept between launches: one array of pixels, memory-mapped, and a JSON of all the rest beside it.

An entry belongs to a place, a split, a size, a number of channels and what is cropped; it is good for as long as the
files are the ones it was decoded from, by name, size and time of change. It is a cache: whatever is wrong with it, it
is built anew, and where it cannot be written, images are held in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import PIL
import torch
from torch import Tensor

from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.errors import MachineError
from colddiff_core.files import FileLock, parse_json, whole
from colddiff_core.paths import cache_folder

DECODING = 1  # to be raised where the same file comes to other pixels
CHUNK_IMAGES = 256  # decoded at a time; a set of one chunk decodes so fast that it is not kept
RESERVE_BYTES = 2**30  # of the disk, left free
STALE_SECONDS = 3600.0  # age of a draft that nobody writes to any more


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """Where decoded images (N, C, H, W) are kept, what they were decoded from, and (C, H, W) of each."""

    pixels: Path
    signature: str
    shape: tuple[int, int, int]

    @property
    def rest(self) -> Path:
        return self.pixels.with_suffix(".json")


def key(where: Path, request: DatasetRequest, channels: int, stamps: Sequence[object]) -> CacheKey:
    """Return the key of a split of the images at `where`; `stamps` are its files' and whatever else it depends on."""
    named: tuple[object, ...] = (os.path.abspath(where), request.split, request.size, channels)
    if request.crop:  # a margin alone makes no other pixels: it is part of the size
        named += (request.crop, request.margin)
    path = cache_folder("decoded") / f"{_hash(named, 16)}.npy"
    return CacheKey(path, _hash((DECODING, PIL.__version__, stamps), 32), (channels, request.size, request.size))


def stamp(path: Path) -> tuple[int, int] | None:
    """Return the size of a file and when it was changed, None where it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def load(key: CacheKey) -> ImageSet | None:
    """Return the images kept under a key, their pixels memory-mapped; None where there are none as they should be."""
    try:
        told = parse_json(key.rest.read_bytes())
        if told["signature"] != key.signature:
            return None
        pixels = _mapped(key.pixels)
        # Looked at last: another process may replace the two files, one after the other.
        if told["pixels"] != _identity(key.pixels) or tuple(pixels.shape[1:]) != key.shape:
            return None
        labels = None if told["labels"] is None else torch.tensor(told["labels"], dtype=torch.int64)
        if labels is not None and len(labels) != len(pixels):
            return None
        return ImageSet(pixels, labels, tuple(told["classes"]), int(told["skipped"]), frozenset(told["suffixes"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


class CacheDraft:
    """Images on their way to the disk, chunk by chunk, so that there may be more of them than memory.

    The first chunk stays in memory: where no second one follows, nothing is written. From then on they go to a file
    without a name, which no kill can leave behind. What the disk refuses stays in memory.
    """

    def __init__(self, key: CacheKey | None) -> None:
        self._key = key
        self._held: list[np.ndarray] = []
        self._file: IO[bytes] | None = None
        self._written = 0  # images in the file
        self._is_refused = key is None

    def __enter__(self) -> CacheDraft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def add(self, pixels: np.ndarray) -> None:
        """Take in further images (B, C, H, W) uint8."""
        self._held.append(pixels)
        if len(self._held) == 1 and self._file is None:
            return
        while self._held and not self._is_refused:
            try:
                self._write(self._held[0])
            except OSError:
                self._is_refused = True
            else:
                del self._held[0]

    def refuse(self) -> None:
        """Hold the images for this process alone: they are not all that there are."""
        self._is_refused = True

    def keep(self, order: Sequence[int] | None, rest: ImageSet) -> ImageSet:
        """Return the images in an order, None for the one they came in, with everything but the pixels from `rest`."""
        stack = self._stack()
        rows = np.arange(len(stack)) if order is None else np.asarray(order)
        if self._key is not None and self._file is not None and not self._is_refused:
            with contextlib.suppress(OSError, MachineError), lock(self._key.pixels.parent):
                # Processes that begin together finish together: one of them writes.
                return load(self._key) or dataclasses.replace(rest, pixels=_store(self._key, stack, rows, rest))
        return dataclasses.replace(rest, pixels=torch.from_numpy(stack[rows]))

    def _write(self, pixels: np.ndarray) -> None:
        assert self._key is not None
        if self._file is None:
            place = self._key.pixels.parent
            place.mkdir(parents=True, exist_ok=True)
            _sweep(place)
            self._file = tempfile.TemporaryFile(dir=place, buffering=0)  # noqa: SIM115 - closed on leaving
        check_room(self._key.pixels.parent, pixels.nbytes)
        _write(self._file, pixels)
        self._written += len(pixels)

    def _stack(self) -> np.ndarray:
        if self._file is None or not self._written:
            return np.concatenate(self._held)
        assert self._key is not None
        # Mapped only now, after plain writes: on a full disk those are an error, a write to a map is the end.
        shape = (self._written, *self._key.shape)
        written: np.ndarray = np.memmap(self._file, np.uint8, "r", shape=shape)
        return np.concatenate([written, *self._held]) if self._held else written


def _store(key: CacheKey, stack: np.ndarray, rows: np.ndarray, rest: ImageSet) -> Tensor:
    """Keep rows of a stack under a key; return them memory-mapped. Raises OSError, MachineError where it cannot be."""
    check_room(key.pixels.parent, stack.nbytes)
    with whole(key.pixels) as draft:
        with draft.open("wb") as file:
            shape = (len(rows), *key.shape)
            header = {"descr": np.lib.format.dtype_to_descr(stack.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(rows), CHUNK_IMAGES):
                _write(file, stack[rows[start : start + CHUNK_IMAGES]])
        identity = _identity(draft)
        pixels = _mapped(draft)  # before it has the name: another process may have given that to its own
    described: dict[str, Any] = {
        "signature": key.signature,
        "pixels": identity,
        "labels": None if rest.labels is None else rest.labels.tolist(),
        "classes": list(rest.classes),
        "skipped": rest.skipped,
        "suffixes": sorted(rest.suffixes),
    }
    with contextlib.suppress(MachineError), whole(key.rest) as draft:
        draft.write_text(json.dumps(described) + "\n", encoding="utf-8")
    return pixels


def lock(place: Path) -> FileLock:
    """Wait until no other process stores in a folder or file, and lock it.

    Raises:
        OSError: the lock file cannot be opened, or its file system has no locks.
        MachineError: Python has no file locks here.
    """
    return FileLock.wait(place.with_suffix(".lock"))  # a file beside it: on NFS a folder cannot be locked


def _mapped(path: Path) -> Tensor:
    """Return an .npy file of uint8 as a tensor on its map; raises OSError, ValueError for what is no such file."""
    try:
        array = np.lib.format.open_memmap(path, mode="c")  # it never unpickles
    except OSError:  # a map that may be written to, even a private one, must fit into memory
        array = np.lib.format.open_memmap(path, mode="r")
    if array.dtype != np.uint8:
        raise ValueError(f"{path} holds {array.dtype}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _identity(path: Path) -> list[int]:
    """Return what ties a file to the JSON beside it, whichever of two processes wrote which; a rename keeps it."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _write(file: IO[bytes], pixels: np.ndarray) -> None:
    left = np.ascontiguousarray(pixels).data.cast("B")
    while left:
        left = left[file.write(left) :]


def check_room(place: Path, size: int) -> None:
    """Raise OSError where a disk would be all but full after `size` more bytes."""
    if shutil.disk_usage(place).free < size + RESERVE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))


def _sweep(place: Path) -> None:
    """Remove the drafts that killed processes left behind."""
    for draft in place.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE_SECONDS:
                draft.unlink()


def _hash(parts: Iterable[object], size: int) -> str:
    # repr tells apart what a separator could not: a file's name may hold any character.
    return hashlib.blake2b(repr(parts).encode(), digest_size=size).hexdigest()
