"""One shard: a tar archive whose headers are read once, and whose images are then read by their place in it.

Files of the same path up to the first dot of their name, one after the other, are one record, as webdataset has it:
`a/7.png` and `a/7.cls`. Names are compared and never used as paths; only images and classes are read, nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
import stat
import subprocess
import tarfile
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Self

import numpy as np

from colddiff_core import job
from colddiff_core.datasets import cache
from colddiff_core.datasets.files import LARGEST_MEMBER
from colddiff_core.datasets.shardlists import Place
from colddiff_core.errors import MachineError, UsageError, beginning, harmless
from colddiff_core.files import refusals
from colddiff_core.images import SUFFIXES

PART = 1 << 20  # bytes read from a pipe or a compressed file at a time
LARGEST_CLASS = 64  # bytes of a .cls file
GZIP = b"\x1f\x8b"
NO_IMAGE = -1  # in place of a size: the record has none, or one too large to be held
NO_LABEL = -1
# What tarfile raises of files that are none, or were cut short.
UNREADABLE = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError, RecursionError)
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
# Name, size, checksum and prefix of a header (POSIX.1-1988) of an ordinary file; numbers as Python and GNU write them.
_PLAIN = re.compile(
    rb"(?=([^\0]{1,100})).{124}([0-7]{11})[\0 ].{12}([0-7]{6})\0 0.{100}ustar.{83}(?=([^\0]{0,155})).{167}",
    re.DOTALL,
)
_LABEL = re.compile(rb"\s*(\d{1,9})\s*")


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the records of a shard lie: offset, size and label of each image, (N,) int64.

    A size is NO_IMAGE where there is none to read, a label NO_LABEL where it is not told. suffixes: of the images.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    suffixes: frozenset[str]

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def class_count(self) -> int:
        """Return how many classes the images are of, counted from 0; 0 where one of them tells none."""
        labels = self.labels[self.sizes != NO_IMAGE]
        return 0 if not len(labels) or labels.min() == NO_LABEL else int(labels.max()) + 1


class Shard:
    """An open shard; it is closed when nobody holds it any more."""

    def __init__(self, descriptor: int) -> None:
        """Take over a file of the archive itself, uncompressed, and read its headers."""
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.index = _scan(descriptor)

    def read(self, record: int) -> bytes:
        """Return an image's file; less of it where it can no longer be read, nothing where there is none."""
        size = int(self.index.sizes[record])
        if size == NO_IMAGE:
            return b""
        try:
            return os.pread(self._descriptor, size, int(self.index.offsets[record]))
        except OSError:
            return b""


class Opener:
    """Opens shards, from several threads if need be, and ends the commands that are at it when it is closed."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def open(self, place: Place) -> Shard:
        """Return a shard; one cut short has the records that are whole.

        What a command prints, and what is compressed, goes to a file without a name in the user's cache folder first.
        Raises UsageError naming it where it is absent and where its command fails, MachineError where the disk is full
        or too many files are open.
        """
        if place.path is None:
            return self._unpacked(self._printed(place), place)
        try:
            descriptor = os.open(place.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            what = f"Cannot read {place.path}: {error.strerror or error}."
            if error.errno in (errno.EMFILE, errno.ENFILE):  # that is not the shard's fault
                raise MachineError(what, "Use fewer data.lanes, or raise the limit by ulimit -n.") from None
            raise UsageError(what, "Check the path.") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe would be waited for
            os.close(descriptor)
            raise UsageError(f"Cannot read {place.path}: it is not an ordinary file.", "Check the path.")
        return self._unpacked(descriptor, place)

    def close(self) -> None:
        """End the commands that are running; what is opened from now on fails."""
        with self._lock:
            self._is_closed = True
            for process in self._running:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _unpacked(self, descriptor: int, place: Place) -> Shard:
        try:
            if os.pread(descriptor, len(GZIP), 0) != GZIP:
                return Shard(descriptor)
        except OSError as error:  # a block that the disk cannot read
            os.close(descriptor)
            raise UsageError(f"Cannot read {place.name}: {error.strerror or error}.", "Check the disk.") from None
        with open(descriptor, "rb") as packed, _spool(place) as (spool, keep):
            packed.seek(0)
            with contextlib.suppress(zlib.error):  # of what was cut short the beginning is kept
                for part in _decompressed(packed):
                    keep(part)
            return Shard(os.dup(spool.fileno()))

    def _printed(self, place: Place) -> int:
        """Run a command and return a file of what it prints."""
        with _spool(place) as (spool, keep), tempfile.TemporaryFile() as said:
            with self._started(place, said) as process:
                assert process.stdout is not None
                while part := process.stdout.read(PART):
                    keep(part)
            if process.returncode:
                said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
                last = (said.read().decode(errors="replace").strip().splitlines() or [""])[-1]
                why = f"exit code {process.returncode}" + (f", {beginning(harmless(last))}" if last else "")
                raise UsageError(f"The command {beginning(place.command)} failed: {why}.", "Try it in a shell.")
            return os.dup(spool.fileno())

    @contextlib.contextmanager
    def _started(self, place: Place, said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._is_closed:
                raise UsageError(f"{place.name} is not read: the shards are closed.", "Open them again.")
            process = subprocess.Popen(
                ["/bin/sh", "-c", place.command],
                cwd=place.folder,
                env=job.outside(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # Ctrl-C is ours to answer: the step that is being taken still needs its images
            )
            self._running.add(process)
        try:
            with process:
                try:
                    yield process
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.killpg(process.pid, signal.SIGKILL)
                    raise
        finally:
            with self._lock:
                self._running.discard(process)


def _decompressed(packed: IO[bytes]) -> Iterator[bytes]:
    """Yield what a file compressed by gzip holds, a little at a time however well it is compressed."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    while data := packed.read(PART):
        while data:
            yield unpacker.decompress(data, PART)
            data = unpacker.unconsumed_tail
            if unpacker.eof:  # another one may follow
                data, unpacker = unpacker.unused_data, zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    yield unpacker.flush()


@contextlib.contextmanager
def _spool(place: Place) -> Iterator[tuple[IO[bytes], Callable[[bytes], None]]]:
    """Yield a file without a name, which no kill can leave behind, and what writes to it as long as there is room."""
    folder = cache.folder().with_name("spool")
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        since = 0

        def keep(part: bytes) -> None:
            nonlocal since
            with refusals(folder / place.file_name):
                if since % (64 * PART) < len(part):
                    cache.check_room(folder, len(part))
                since += len(part)
                left = memoryview(part)
                while left:
                    left = left[file.write(left) :]

        yield file, keep


def _scan(descriptor: int) -> Index:
    """Return where the records of an archive are, as far as it can be read."""
    rows: list[tuple[int, int, int]] = []
    suffixes: set[str] = set()
    key, row, end = None, (0, NO_IMAGE, NO_LABEL), 0
    for member in _members(descriptor):
        end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        found = _KEY.fullmatch(member.name)
        if found is None:
            continue
        if found[1] != key:
            if key is not None:
                rows.append(row)
            key, row = found[1], (0, NO_IMAGE, NO_LABEL)
        suffix = f".{found[2].lower()}"
        if suffix in SUFFIXES and not row[0]:  # the first of several; none begins at 0, where a header is
            size = member.size if member.size <= LARGEST_MEMBER else NO_IMAGE
            row = (member.offset_data, size, row[2])
            suffixes.add(suffix)
        elif suffix == ".cls" and member.size <= LARGEST_CLASS:
            number = _LABEL.fullmatch(os.pread(descriptor, member.size, member.offset_data))
            row = (*row[:2], int(number[1]) if number else NO_LABEL)
    is_cut = os.pread(descriptor, tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE)
    # Of the last record of an archive that was cut the class may be gone.
    has_lost = is_cut and row[2] == NO_LABEL and (not rows or rows[-1][2] != NO_LABEL)
    if key is not None and not has_lost:
        rows.append(row)
    table = np.array(rows, np.int64).reshape(-1, 3).T
    offsets, sizes, labels = np.ascontiguousarray(table)
    return Index(offsets, sizes, labels, frozenset(suffixes))


def _members(descriptor: int) -> Iterator[tarfile.TarInfo]:
    """Yield the ordinary files of an archive that are all there, until it ends or cannot be read on."""
    reader = _Reader(descriptor)
    with contextlib.suppress(*UNREADABLE), tarfile.open(fileobj=reader, mode="r:", tarinfo=_Member) as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would remember them all
            if member.size < 0 or member.offset_data + member.size > reader.length:
                return
            if member.isreg() and not member.issparse():
                yield member


class _Member(tarfile.TarInfo):
    """A header of which only what is used is parsed, where it is a plain one: a shard has tens of thousands."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return what a header says; anything but an ordinary file in ordinary notation is left to tarfile."""
        found = _PLAIN.fullmatch(buf)
        if found is None or int(found[3], 8) != sum(buf[:148]) + sum(b" " * 8) + sum(buf[156:]):
            return super().frombuf(buf, encoding, errors)
        name, size, _, prefix = found.groups()
        made = cls((prefix + b"/" + name if prefix else name).decode(encoding, errors))
        made.size = int(size, 8)
        return made


class _Reader:
    """A file for tarfile that reads no more than there is, whatever a header says."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.length = os.fstat(descriptor).st_size
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.length - self._position)
        found = os.pread(self._descriptor, min(left, LARGEST_MEMBER if size < 0 else size), self._position)
        self._position += len(found)
        return found

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position
