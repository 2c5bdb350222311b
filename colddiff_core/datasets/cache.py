"""A disk cache of decoded images: a memory-mapped array of pixels, with metadata in a JSON file next to it.

An entry is keyed by folder, split, size, channels and crop. It is valid while the source files keep their names, sizes
and modification times. A damaged entry is rebuilt; if the cache cannot be written, images stay in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
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
from colddiff_core.files import FileLock, drafted, parse_json, read_ordinary, whole
from colddiff_core.paths import cache_folder

DECODING = 1  # increase when the same file decodes to different pixels
ENTRY = re.compile(r"[0-9a-f]{32}\.(npy|json)")  # a file of an entry
CHUNK_IMAGES = 256  # decoded at a time; a set of one chunk decodes quickly and is not cached
RESERVE_BYTES = 2**30  # left free on the disk
MOST_METADATA_BYTES = 1 << 30  # a label takes a few bytes; a hundred million images
STALE_SECONDS = 3600.0  # after which a draft counts as abandoned


@dataclasses.dataclass(frozen=True)
class CacheKey:
    """A cache entry.

    Attributes:
        pixels: Path of the array, (N, C, H, W) uint8.
        signature: Hash of the source files and the decoder.
        shape: Shape of one image, (C, H, W).
    """

    pixels: Path
    signature: str
    shape: tuple[int, int, int]

    @property
    def metadata(self) -> Path:
        """Path of the JSON file with everything but the pixels."""
        return self.pixels.with_suffix(".json")


def key(source: Path, request: DatasetRequest, channels: int, stamps: Sequence[object]) -> CacheKey:
    """Return the cache key for a split of the images at `source`.

    `stamps` holds the stamps of the source files and anything else that the pixels depend on.
    """
    identity: tuple[object, ...] = (os.path.abspath(source), request.split, request.size, channels)
    if request.crop:  # without a crop, the margin is already part of the size
        identity += (request.crop, request.margin)
    path = cache_folder("decoded") / f"{_hash(identity, 16)}.npy"
    return CacheKey(path, _hash((DECODING, PIL.__version__, stamps), 32), (channels, *request.sides))


def stamp(path: Path) -> tuple[int, int] | None:
    """Return the size and modification time (ns) of a file, or None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def load(key: CacheKey) -> ImageSet | None:
    """Return the cached images with memory-mapped pixels, or None if the entry is missing, outdated or damaged."""
    try:
        metadata = parse_json(read_ordinary(key.metadata, MOST_METADATA_BYTES))
        if metadata["signature"] != key.signature:
            return None
        pixels = _mapped(key.pixels)
        # Checked last, because another process may be replacing the two files one after the other.
        if metadata["pixels"] != _identity(key.pixels) or tuple(pixels.shape[1:]) != key.shape:
            return None
        labels = None if metadata["labels"] is None else torch.tensor(metadata["labels"], dtype=torch.int64)
        if labels is not None and len(labels) != len(pixels):
            return None
        skipped = int(metadata["skipped"])
        return ImageSet(
            pixels,
            labels,
            tuple(metadata["classes"]),
            skipped,
            frozenset(metadata["suffixes"]),
            # Entries of earlier versions lack the names: one with files left out is made again.
            skipped_files=tuple(map(str, metadata["skipped_files"])) if skipped else (),
            remarks=tuple(map(str, metadata.get("remarks", ()))),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


class CacheDraft:
    """Collect images chunk by chunk and store them under a key; there may be more of them than fit in memory.

    The first chunk stays in memory, and nothing is written unless a second one follows. Chunks then go to an unnamed
    file, which disappears even if the process is killed. Chunks that cannot be written stay in memory.
    """

    def __init__(self, key: CacheKey | None) -> None:
        self._key = key
        self._chunks: list[np.ndarray] = []  # not written yet
        self._file: IO[bytes] | None = None
        self._written = 0  # images in the file
        self._is_memory_only = key is None

    def __enter__(self) -> CacheDraft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def add(self, pixels: np.ndarray) -> None:
        """Append images (B, C, H, W) uint8."""
        self._chunks.append(pixels)
        if len(self._chunks) == 1 and self._file is None:
            return
        while self._chunks and not self._is_memory_only:
            try:
                self._write(self._chunks[0])
            except OSError:
                self._is_memory_only = True
            else:
                del self._chunks[0]

    def skip_cache(self) -> None:
        """Keep the images in memory and do not store them, because some are missing."""
        self._is_memory_only = True

    def finish(self, order: Sequence[int] | None, metadata: ImageSet) -> ImageSet:
        """Store the images and return them.

        Args:
            order: Indices of the images in their final order; None to keep the order in which they were added.
            metadata: A set with everything but the pixels, in the final order.
        """
        stack = self._stack()
        rows = np.arange(len(stack)) if order is None else np.asarray(order)
        if self._key is not None and self._file is not None and not self._is_memory_only:
            with contextlib.suppress(OSError, MachineError), lock(self._key.pixels.parent):
                # Processes that start together finish together, and one of them writes.
                return load(self._key) or dataclasses.replace(metadata, pixels=_store(self._key, stack, rows, metadata))
        return dataclasses.replace(metadata, pixels=torch.from_numpy(stack[rows]))

    def _write(self, pixels: np.ndarray) -> None:
        assert self._key is not None
        if self._file is None:
            parent = self._key.pixels.parent
            parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_drafts(parent)
            self._file = tempfile.TemporaryFile(dir=parent, buffering=0)  # noqa: SIM115 - closed on leaving
        check_free_space(self._key.pixels.parent, pixels.nbytes)
        _write(self._file, pixels)
        self._written += len(pixels)

    def _stack(self) -> np.ndarray:
        if self._file is None or not self._written:
            return np.concatenate(self._chunks)
        assert self._key is not None
        # Mapped only now: on a full disk, a plain write raises an error, but a write to a map kills the process.
        shape = (self._written, *self._key.shape)
        written: np.ndarray = np.memmap(self._file, np.uint8, "r", shape=shape)
        return np.concatenate([written, *self._chunks]) if self._chunks else written


def _store(key: CacheKey, stack: np.ndarray, rows: np.ndarray, metadata: ImageSet) -> Tensor:
    """Write rows of a stack under a key and return them memory-mapped. Raises OSError or MachineError on failure."""
    check_free_space(key.pixels.parent, stack.nbytes)
    with whole(key.pixels) as draft:
        with draft.open("wb") as file:
            shape = (len(rows), *key.shape)
            header = {"descr": np.lib.format.dtype_to_descr(stack.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(rows), CHUNK_IMAGES):
                _write(file, stack[rows[start : start + CHUNK_IMAGES]])
        identity = _identity(draft)
        pixels = _mapped(draft)  # before the rename, after which another process may replace it
    described: dict[str, Any] = {
        "signature": key.signature,
        "pixels": identity,
        "labels": None if metadata.labels is None else metadata.labels.tolist(),
        "classes": list(metadata.classes),
        "skipped": metadata.skipped,
        "suffixes": sorted(metadata.suffixes),
        "skipped_files": list(metadata.skipped_files),
        "remarks": list(metadata.remarks),
    }
    with contextlib.suppress(MachineError), whole(key.metadata) as draft:
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
    """Return a uint8 .npy file as a memory-mapped tensor. Raises OSError or ValueError for anything else."""
    if not path.is_file():  # opening a pipe would block
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
    try:
        array = np.lib.format.open_memmap(path, mode="c")  # never unpickles
    except OSError:  # a writable map, even a private one, must fit in memory
        array = np.lib.format.open_memmap(path, mode="r")
    if array.dtype != np.uint8:
        raise ValueError(f"{path} holds {array.dtype}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _identity(path: Path) -> list[int]:
    """Return the size and time of a file, which tie it to its metadata; a rename keeps them."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _write(file: IO[bytes], pixels: np.ndarray) -> None:
    left = np.ascontiguousarray(pixels).data.cast("B")
    while left:
        left = left[file.write(left) :]


def check_free_space(directory: Path, size: int) -> None:
    """Check that a disk keeps its reserve after `size` more bytes.

    Raises:
        OSError: Too little space would be left.
    """
    if shutil.disk_usage(directory).free < size + RESERVE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def _remove_stale_drafts(parent: Path) -> None:
    """Remove drafts left behind by killed processes, and no other hidden file: the folder may be a link to anywhere."""
    for draft in parent.glob(".*"):
        with contextlib.suppress(OSError):
            if ENTRY.fullmatch(drafted(draft.name) or "") and time.time() - draft.stat().st_mtime > STALE_SECONDS:
                draft.unlink()


def _hash(parts: Iterable[object], size: int) -> str:
    # repr, because file names may contain any separator.
    return hashlib.blake2b(repr(parts).encode(), digest_size=size).hexdigest()
