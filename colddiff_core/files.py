"""Files written whole or not at all, the one file lock, files read if memory has room, and JSON from anywhere."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

from colddiff_core.errors import MachineError, UsageError

CGROUP = Path("/sys/fs/cgroup")  # of a container, version 2
LARGE_BYTES, COPIES = 1 << 28, 2  # smaller files always fit; the bytes, and what is made of them
NAME_BYTES = 255  # the longest file name that file systems take
_DRAFT_BYTES = 10  # by how much a draft's name is longer
_DRAFT = re.compile(r"\.(.+)-[0-9a-f]{8}(\.[^.]+)?")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a draft path to write to; it is flushed and renamed to `path` at the end.

    Nothing half-written stays behind. A file that is replaced keeps its permissions; a link is replaced, not followed.

    Raises:
        MachineError: the file system refused.
    """
    draft = beside(path)
    try:
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            _keep_permissions(path, draft)
            flush(draft)
            os.replace(draft, path)
            flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _keep_permissions(old: Path, draft: Path) -> None:
    """Give a draft the permissions of the file that it replaces: what its owner made private stays private."""
    with contextlib.suppress(FileNotFoundError):
        status = old.lstat()
        if stat.S_ISREG(status.st_mode):
            draft.chmod(stat.S_IMODE(status.st_mode))


def beside(path: Path) -> Path:
    """Return a hidden, unique draft name in the same folder, with the same suffix."""
    # Image writers choose their format by the suffix.
    stem = draft_name(path.name).removesuffix(path.suffix)
    return path.with_name(f".{stem}-{uuid.uuid4().hex[:8]}{path.suffix}")


def draft_name(name: str) -> str:
    """Return what `drafted` says of a file's drafts: its name, shortened if a draft's would be too long."""
    path = PurePath(name)
    return fitted(path.stem, path.suffix, NAME_BYTES - _DRAFT_BYTES)


def fitted(stem: str, ending: str, most: int = NAME_BYTES) -> str:
    """Return a file name, stem + ending, of at most `most` bytes.

    A stem that is too long is cut and gets a hash, so that different ones still give different names.
    """
    room = most - len(os.fsencode(ending))
    encoded = os.fsencode(stem)
    if len(encoded) <= room:
        return stem + ending
    mark = f"~{hashlib.blake2b(encoded, digest_size=4).hexdigest()}"
    end = room - len(mark)
    while end > 0 and encoded[end] & 0xC0 == 0x80:  # inside a character of UTF-8
        end -= 1
    return os.fsdecode(encoded[: max(0, end)]) + mark + ending


def drafted(name: str) -> str | None:
    """Return the `draft_name` of the file that a draft made by `beside` is for, or None for any other file."""
    match = _DRAFT.fullmatch(name)
    return match[1] + (match[2] or "") if match else None


def sweep(folder: Path) -> None:
    """Remove drafts left by killed processes; call it only when no other process writes there."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if drafted(name):
                with contextlib.suppress(OSError):
                    (folder / name).unlink()


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into a MachineError with a remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "Check free disk space and the folder's permissions."
        if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
            remedy = "A file is where a folder should be, or the reverse: move it, or choose another path."
        raise MachineError(f"Cannot write {path}: {reason}.", remedy) from error


class FileLock:
    """An exclusive lock on a file, held until `release` or until this process ends, however it ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Wrap a descriptor that is already locked; use `take` or `wait` to lock a file."""
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, flags: int = os.O_CREAT, about: Path | None = None) -> Self:
        """Lock a file now. A file system without locks grants every request.

        A link is not followed: in a folder from someone else it may lead to any file of the user's.

        Args:
            path: the file to lock.
            flags: `os.open` flags added to O_RDWR; without O_CREAT the file must exist.
            about: the path that errors name, if not `path`.

        Raises:
            BlockingIOError: another process holds the lock.
            MachineError: the file cannot be opened, or Python has no file locks here.
            UsageError: it is a link.
        """
        fcntl = _fcntl()

        def lock(descriptor: int) -> None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass  # a file system without locks

        def opened() -> int:
            with refusals(about or path):
                if path.is_symlink():
                    raise UsageError(f"{path} is a link, perhaps someone else's.", "Remove it, or use another folder.")
                # The umask decides who else may train the run.
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o666)

        return cls(path, _locked(path, opened, lock))

    @classmethod
    def wait(cls, path: Path) -> Self:
        """Lock a file, created private to this user, once no other process holds it.

        Raises:
            OSError: the file cannot be opened or is a link, or its file system has no locks.
            MachineError: Python has no file locks here.
        """
        fcntl = _fcntl()
        return cls(
            path,
            _locked(
                path,
                lambda: os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600),
                lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        """Whether the lock is held, and not released yet."""
        return self._descriptor >= 0

    @property
    def is_shared(self) -> bool:
        """Whether the file has other names too (hard links), or is not an ordinary one: `write` would change more."""
        status = os.fstat(self._descriptor)
        return status.st_nlink > 1 or not stat.S_ISREG(status.st_mode)

    @property
    def size(self) -> int:
        """The size of the locked file in bytes."""
        return os.fstat(self._descriptor).st_size

    def fileno(self) -> int:
        """Return the file descriptor that holds the lock."""
        return self._descriptor

    def write(self, content: bytes) -> None:
        """Replace the content in place: a renamed draft would be another file, without the lock."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with open(self._descriptor, "wb", closefd=False) as file:
            file.write(content)

    def touch(self) -> None:
        """Set the file's modification time to now."""
        os.utime(self._descriptor)

    def release(self) -> None:
        """Release the lock and keep the file; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1  # the number may soon belong to another file
        if descriptor >= 0:
            os.close(descriptor)


def _fcntl() -> Any:
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows, where everything that takes no lock still works
    except ImportError:
        what = "This needs file locks, and Python's fcntl module is missing on this system."
        raise MachineError(what, "Use Linux, macOS or WSL.") from None
    return fcntl


def _locked(path: Path, opened: Callable[[], int], lock: Callable[[int], None]) -> int:
    """Return a locked descriptor of the file that has the name `path` now."""
    while True:
        descriptor = opened()
        try:
            lock(descriptor)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed or replaced before it was locked


def read_ordinary(path: Path, most: int | None = None) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes, if memory has room for them twice.

    Reading a pipe or a device that someone put into a run would never end, and a file with holes may be larger than
    its disk.

    Raises:
        OSError: the file is missing, not a regular file, or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", str(path))
        if most is not None and status.st_size > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        if status.st_size > LARGE_BYTES and COPIES * status.st_size > free_bytes():
            raise OSError(errno.EFBIG, "larger than memory has room for", str(path))
        return file.read()


def free_bytes() -> int:
    """Return how much of the machine's memory, or of the container's, is free for this process, in bytes.

    Caches of files count as free.
    """
    import psutil  # noqa: PLC0415 - 20 ms, and only large files need it

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        caches = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return min(free, max(0, int(limit) - int(used) + caches))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def parse_json(text: str | bytes, *, constant: Callable[[str], Any] = float) -> Any:
    """Parse JSON; `constant` converts the words NaN, Infinity and -Infinity.

    Raises:
        ValueError: the text is not JSON, or nested too deep.
    """
    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
