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
from pathlib import Path
from typing import IO, Self

import numpy as np

from colddiff_core.datasets import cache
from colddiff_core.datasets.decoding import LARGEST_MEMBER
from colddiff_core.datasets.shards.listing import ShardLocation
from colddiff_core.distributed import environment
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import refusals
from colddiff_core.images import SUFFIXES
from colddiff_core.paths import cache_folder
from colddiff_core.text import beginning, harmless

PART = 1 << 20  # bytes read from a pipe or a compressed file at a time
LARGEST_CLASS = 64  # bytes of a .cls file
LARGEST_HEADER = 1 << 20  # bytes of all headers of a member: long names, and where a sparse file has data
ROOM_EVERY = 64 * PART  # bytes written after which the disk is asked again
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
GZIP = b"\x1f\x8b"
NO_IMAGE = -1  # in place of a size: the record has none, or one too large to be held
NO_LABEL = -1
# What tarfile raises of files that are none, or were cut short.
UNREADABLE = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError, RecursionError)
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.(?:([^/]*)\.)?([^./]*)", re.DOTALL)  # of a/7.input.png: a/7, input, png
# Name, size, checksum and prefix of a header (POSIX.1-1988) of an ordinary file; numbers as Python and GNU write them.
_PLAIN = re.compile(
    rb"(?=([^\0]{1,100})).{124}([0-7]{11})[\0 ].{12}([0-7]{6})\0 0.{100}ustar.{83}(?=([^\0]{0,155})).{167}",
    re.DOTALL,
)
_LABEL = re.compile(rb"\s*(\d{1,9})\s*")


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """Where the records of a shard lie: offset, size and label of each image, (N,) int64.

    A size is NO_IMAGE where there is none to read, a label NO_LABEL where it is not told. suffixes: of the images.
    is_cut: the archive does not end as it should.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    suffixes: frozenset[str]
    is_cut: bool

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


class ShardOpener:
    """Opens shards, from several threads if need be, and ends the commands that are at it when it is closed."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def open(self, place: ShardLocation) -> Shard:
        """Return a shard; one cut short has the records that are whole.

        What a command prints, and what is compressed, goes to a file without a name in the user's cache folder first.
        Raises UsageError naming it where it is absent and where its command fails, MachineError where the disk is full
        or refuses, or too many files are open.
        """
        try:
            return self._unpacked(self._printed(place) if place.path is None else self._found(place.path), place)
        except OSError as error:  # that is not the shard's fault
            what = f"Cannot read {place.path or beginning(place.name)}: {error.strerror or error}."
            remedy = "Check how many processes and how much memory the machine has left."
            if error.errno in TOO_MANY_FILES:
                remedy = "Use fewer data.lanes, or raise the limit by ulimit -n."
            raise MachineError(what, remedy) from None

    @staticmethod
    def _found(path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                raise
            raise UsageError(f"Cannot read {path}: {error.strerror or error}.", "Check the path.") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe would be waited for
            os.close(descriptor)
            raise UsageError(f"Cannot read {path}: it is not an ordinary file.", "Check the path.")
        return descriptor

    def close(self) -> None:
        """End the commands that are running; what is opened from now on fails."""
        with self._lock:
            self._is_closed = True
            for process in self._running:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _unpacked(self, descriptor: int, place: ShardLocation) -> Shard:
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

    def _printed(self, place: ShardLocation) -> int:
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
    def _started(self, place: ShardLocation, said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._is_closed:
                raise UsageError(f"{place.name} is not read: the shards are closed.", "Open them again.")
            process = subprocess.Popen(
                ["/bin/sh", "-c", place.command],
                cwd=place.folder,
                env=environment.outside(),
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
def _spool(place: ShardLocation) -> Iterator[tuple[IO[bytes], Callable[[bytes], None]]]:
    """Yield a file without a name, which no kill can leave behind, and what writes to it as long as there is room."""
    folder = cache_folder("spool")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        spool = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed on leaving
    except OSError as error:
        if error.errno in TOO_MANY_FILES:
            raise
        with refusals(folder):
            raise
    with spool as file:
        written = ask_at = 0

        def keep(part: bytes) -> None:
            nonlocal written, ask_at
            with refusals(folder / place.file_name):
                if written >= ask_at:
                    cache.check_room(folder, len(part))
                    ask_at = written + ROOM_EVERY
                written += len(part)
                left = memoryview(part)
                while left:
                    left = left[file.write(left) :]

        yield file, keep


def _scan(descriptor: int) -> ShardIndex:
    """Return where the records of an archive are, as far as it can be read."""
    rows: list[tuple[int, int, int, str]] = []
    nothing = (0, NO_IMAGE, NO_LABEL, "")
    key, row, is_loose = None, nothing, False
    reader = _Reader(descriptor)
    for member in _members(reader):
        found = _KEY.fullmatch(member.name)
        if found is None:
            continue
        is_cut = reader.lacks(member)
        if found[1] != key:
            if key is not None:
                rows.append(row)
            key, row = None if is_cut else found[1], nothing
        if is_cut:
            break
        is_inner, suffix = found[2] is not None, f".{found[3].lower()}"
        # The first of several, rather 7.png than 7.input.png; none begins at 0, where a header is.
        if suffix in SUFFIXES and (not row[0] or (is_loose and not is_inner)):
            size = member.size if member.size <= LARGEST_MEMBER else NO_IMAGE
            row, is_loose = (member.offset_data, size, row[2], suffix), is_inner
        elif suffix == ".cls" and member.size <= LARGEST_CLASS and (row[2] == NO_LABEL or not is_inner):
            number = _LABEL.fullmatch(os.pread(descriptor, member.size, member.offset_data))
            row = (*row[:2], int(number[1]) if number else NO_LABEL, row[3])
    is_cut = reader.last != bytes(tarfile.BLOCKSIZE)  # where a header would be
    # Of the last record of an archive that was cut the class may be gone.
    has_lost = is_cut and row[2] == NO_LABEL and (not rows or rows[-1][2] != NO_LABEL)
    if key is not None and not has_lost:
        rows.append(row)
    table = np.array([row[:3] for row in rows], np.int64).reshape(-1, 3).T
    offsets, sizes, labels = np.ascontiguousarray(table)
    return ShardIndex(offsets, sizes, labels, frozenset(row[3] for row in rows) - {""}, is_cut)


def _members(reader: _Reader) -> Iterator[tarfile.TarInfo]:
    """Yield the ordinary files of an archive until it ends or cannot be read on; of the last one a part may be gone."""
    with contextlib.suppress(*UNREADABLE), tarfile.open(fileobj=reader, mode="r:", tarinfo=_Member) as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would remember them all
            reader.left = LARGEST_HEADER
            if archive.offset < member.offset_data or member.size < 0:  # it would be read for ever
                return
            if member.isreg() and not member.issparse():  # of any other the size is not that of what follows
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
    """A file for tarfile that reads no more than there is, and than headers need, whatever one says.

    left: bytes that it reads before it refuses; last: what it has read last.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._length = os.fstat(descriptor).st_size
        self._position = 0
        self.left = LARGEST_HEADER
        self.last = b""

    def lacks(self, member: tarfile.TarInfo) -> bool:
        """Tell whether the end of a member is beyond that of the file."""
        return member.offset_data + member.size > self._length

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("a header that is too large")
        self.last = os.pread(self._descriptor, size, self._position)
        self._position += len(self.last)
        return self.last

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position
