"""Files written whole or not at all, and JSON that may be anything."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from colddiff_core.errors import MachineError

_DRAFT = re.compile(r"\.(.+)-[0-9a-f]{8}(\.[^.]+)?")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the name of `path` once written and flushed.

    Raises MachineError where the file system refuses; nothing half-written stays behind.
    """
    draft = beside(path)
    try:
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            flush(draft)
            os.replace(draft, path)
            flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """Return a hidden name beside `path`, of its suffix, for what is to take its name when it is whole."""
    # The suffix is kept: writers of images choose their format by it.
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")


def drafted(name: str) -> str | None:
    """Return the name that a file is a draft for, as `beside` names them; None for one that is no draft."""
    found = _DRAFT.fullmatch(name)
    return found[1] + (found[2] or "") if found else None


def sweep(folder: Path) -> None:
    """Remove the drafts of files that killed processes left in a folder which no living one writes to."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if drafted(name):
                with contextlib.suppress(OSError):
                    (folder / name).unlink()


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Tell an OSError about `path` in the user's words."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "Check the disk's room and the folder's permissions."
        if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
            remedy = "A file is in the way of a folder, or a folder of the file: move it, or name another place."
        raise MachineError(f"Cannot write {path}: {reason}.", remedy) from error


def locked(path: Path) -> int:
    """Lock a file, made empty where it is absent, for this process; return its descriptor, which holds the lock.

    The lock goes with the process, however that ends. Where the file system has no locks, nothing is locked. Raises
    BlockingIOError where another process holds it, MachineError where the file cannot be made.
    """
    while True:
        with refusals(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            pass  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # it was removed before it was locked


def read_ordinary(path: Path, most: int | None = None) -> bytes:
    """Return the bytes of an ordinary file; raises OSError for any other kind, and above `most` bytes.

    A pipe among the files of someone's run would be waited for, and a device read, without end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", str(path))
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read()


def parse_json(text: str | bytes, *, constant: Callable[[str], Any] = float) -> Any:
    """Return what a JSON text says; `constant` is given the words NaN, Infinity and -Infinity.

    Raises ValueError where it is none, tables within tables beyond all use among it.
    """
    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names, before anything that relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
