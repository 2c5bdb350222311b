"""Read one shard: a tar archive whose headers are scanned once, and whose images are then read by offset.

As in webdataset, consecutive files with the same path up to the first dot of the file name form one record: `a/7.png`
and `a/7.cls`. Names are compared but never used as paths. Only images and classes are read; nothing is unpickled.
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
from colddiff_core.datasets.decoding import MAX_MEMBER_BYTES
from colddiff_core.datasets.shards.listing import ShardLocation
from colddiff_core.distributed import environment
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import refusals
from colddiff_core.images import SUFFIXES
from colddiff_core.paths import cache_folder
from colddiff_core.text import beginning, harmless

CHUNK_BYTES = 1 << 20  # read from a pipe or a compressed file at a time
MAX_CLASS_BYTES = 64  # of a .cls file
MAX_HEADER_BYTES = 1 << 20  # of all headers of a member, including long names and sparse maps
SPACE_CHECK_BYTES = 64 * CHUNK_BYTES  # written between two checks of the free space
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
GZIP = b"\x1f\x8b"
NO_IMAGE = -1  # the size of a missing image, or of one too large to read
NO_LABEL = -1
# Raised by tarfile on truncated files and on files that are not archives.
UNREADABLE = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError, RecursionError)
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.(?:([^/]*)\.)?([^./]*)", re.DOTALL)  # a/7.input.png gives a/7, input, png
# Name, size, checksum and prefix in the header of a regular file (POSIX.1-1988), numbers as Python and GNU write them.
_PLAIN = re.compile(
    rb"(?=([^\0]{1,100})).{124}([0-7]{11})[\0 ].{12}([0-7]{6})\0 0.{100}ustar.{83}(?=([^\0]{0,155})).{167}",
    re.DOTALL,
)
_LABEL = re.compile(rb"\s*(\d{1,9})\s*")


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """Where the records of a shard are.

    Attributes:
        offsets: Offset of each image in bytes, (N,) int64.
        sizes: Size of each image in bytes, (N,) int64; NO_IMAGE if it cannot be read.
        labels: Label of each image, (N,) int64; NO_LABEL if it has none.
        suffixes: Suffixes of the images.
        is_truncated: Whether the archive lacks a proper end.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    suffixes: frozenset[str]
    is_truncated: bool

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def class_count(self) -> int:
        """The highest label plus 1; 0 if an image has no label."""
        labels = self.labels[self.sizes != NO_IMAGE]
        return 0 if not len(labels) or labels.min() == NO_LABEL else int(labels.max()) + 1


class Shard:
    """An open shard. Its file is closed when the object is garbage collected."""

    def __init__(self, descriptor: int) -> None:
        """Take ownership of an uncompressed archive and scan its headers."""
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.index = _scan(descriptor)

    def read(self, record: int) -> bytes:
        """Return the encoded image of a record; truncated or empty if it cannot be read."""
        size = int(self.index.sizes[record])
        if size == NO_IMAGE:
            return b""
        try:
            return os.pread(self._descriptor, size, int(self.index.offsets[record]))
        except OSError:
            return b""


class ShardOpener:
    """Opens shards, from any thread. Closing it kills the commands that are still running."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def open(self, location: ShardLocation) -> Shard:
        """Open a shard; if it is truncated, it has the complete records.

        The output of a command, and the content of a compressed file, is first written to an unnamed file in the user's
        cache folder.

        Raises:
            UsageError: The shard is missing or its command fails.
            MachineError: The disk is full, a write fails, or too many files are open.
        """
        try:
            descriptor = self._run(location) if location.path is None else self._open_file(location.path)
            return self._uncompressed(descriptor, location)
        except OSError as error:  # not the fault of the shard
            what = f"Cannot read {location.path or beginning(location.name)}: {error.strerror or error}."
            remedy = "Check that the machine has memory left and can start more processes."
            if error.errno in TOO_MANY_FILES:
                remedy = "Lower data.lanes, or raise the limit with ulimit -n."
            raise MachineError(what, remedy) from None

    @staticmethod
    def _open_file(path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                raise
            raise UsageError(f"Cannot read {path}: {error.strerror or error}.", "Check the path.") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # opening a pipe would block
            os.close(descriptor)
            raise UsageError(f"Cannot read {path}: it is not a regular file.", "Check the path.")
        return descriptor

    def close(self) -> None:
        """Kill the running commands; no command can be started afterwards."""
        with self._lock:
            self._is_closed = True
            for process in self._running:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _uncompressed(self, descriptor: int, location: ShardLocation) -> Shard:
        try:
            if os.pread(descriptor, len(GZIP), 0) != GZIP:
                return Shard(descriptor)
        except OSError as error:  # a bad block
            os.close(descriptor)
            raise UsageError(f"Cannot read {location.name}: {error.strerror or error}.", "Check the disk.") from None
        with open(descriptor, "rb") as compressed, _spool(location) as (spool, write):
            compressed.seek(0)
            with contextlib.suppress(zlib.error):  # keep the beginning of a truncated file
                for chunk in _decompressed(compressed):
                    write(chunk)
            return Shard(os.dup(spool.fileno()))

    def _run(self, location: ShardLocation) -> int:
        """Run a command and return the descriptor of a file with its output."""
        with _spool(location) as (spool, write), tempfile.TemporaryFile() as errors:
            with self._process(location, errors) as process:
                assert process.stdout is not None
                while chunk := process.stdout.read(CHUNK_BYTES):
                    write(chunk)
            if process.returncode:
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4096))
                last = (errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]
                why = f"exit code {process.returncode}" + (f", {beginning(harmless(last))}" if last else "")
                what = f"The command {beginning(location.command)} failed: {why}."
                raise UsageError(what, "Run it in a shell to see why.")
            return os.dup(spool.fileno())

    @contextlib.contextmanager
    def _process(self, location: ShardLocation, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            if self._is_closed:
                raise UsageError(f"Cannot read {location.name}: the shards are closed.", "Open them again.")
            process = subprocess.Popen(
                ["/bin/sh", "-c", location.command],
                cwd=location.folder,
                env=environment.outside(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C must not reach it: the current step still needs its images
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


def _decompressed(compressed: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a gzip file in chunks of bounded size, however well it is compressed."""
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    while data := compressed.read(CHUNK_BYTES):
        while data:
            yield decompressor.decompress(data, CHUNK_BYTES)
            data = decompressor.unconsumed_tail
            if decompressor.eof:  # another gzip member may follow
                data, decompressor = decompressor.unused_data, zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    yield decompressor.flush()


@contextlib.contextmanager
def _spool(location: ShardLocation) -> Iterator[tuple[IO[bytes], Callable[[bytes], None]]]:
    """Yield an unnamed file, and a function that appends to it as long as the disk has space."""
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
        written = next_check = 0

        def write(chunk: bytes) -> None:
            nonlocal written, next_check
            with refusals(folder / location.file_name):
                if written >= next_check:
                    cache.check_free_space(folder, len(chunk))
                    next_check = written + SPACE_CHECK_BYTES
                written += len(chunk)
                left = memoryview(chunk)
                while left:
                    left = left[file.write(left) :]

        yield file, write


def _scan(descriptor: int) -> ShardIndex:
    """Index the records of an archive, as far as it can be read."""
    rows: list[tuple[int, int, int, str]] = []
    empty = (0, NO_IMAGE, NO_LABEL, "")
    key, row, has_inner_name = None, empty, False
    reader = _Reader(descriptor)
    for member in _members(reader):
        match = _KEY.fullmatch(member.name)
        if match is None:
            continue
        is_truncated = reader.lacks(member)
        if match[1] != key:
            if key is not None:
                rows.append(row)
            key, row = None if is_truncated else match[1], empty
        if is_truncated:
            break
        is_inner, suffix = match[2] is not None, f".{match[3].lower()}"
        # Take the first image, but prefer 7.png to 7.input.png. Offset 0 means none yet: a header is there.
        if suffix in SUFFIXES and (not row[0] or (has_inner_name and not is_inner)):
            size = member.size if member.size <= MAX_MEMBER_BYTES else NO_IMAGE
            row, has_inner_name = (member.offset_data, size, row[2], suffix), is_inner
        elif suffix == ".cls" and member.size <= MAX_CLASS_BYTES and (row[2] == NO_LABEL or not is_inner):
            number = _LABEL.fullmatch(os.pread(descriptor, member.size, member.offset_data))
            row = (*row[:2], int(number[1]) if number else NO_LABEL, row[3])
    is_truncated = reader.last != bytes(tarfile.BLOCKSIZE)  # an archive ends with empty blocks
    # A truncated archive may have lost the label of its last record, which is dropped then.
    has_lost_label = is_truncated and row[2] == NO_LABEL and (not rows or rows[-1][2] != NO_LABEL)
    if key is not None and not has_lost_label:
        rows.append(row)
    table = np.array([row[:3] for row in rows], np.int64).reshape(-1, 3).T
    offsets, sizes, labels = np.ascontiguousarray(table)
    return ShardIndex(offsets, sizes, labels, frozenset(row[3] for row in rows) - {""}, is_truncated)


def _members(reader: _Reader) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an archive until it ends or becomes unreadable; the last one may be truncated."""
    with contextlib.suppress(*UNREADABLE), tarfile.open(fileobj=reader, mode="r:", tarinfo=_Member) as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members.clear()  # tarfile would keep them all
            reader.left = MAX_HEADER_BYTES
            if archive.offset < member.offset_data or member.size < 0:  # would loop forever
                return
            if member.isreg() and not member.issparse():  # the size of others is not that of their data
                yield member


class _Member(tarfile.TarInfo):
    """A header with a fast path for regular files, because a shard has tens of thousands."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header; tarfile parses all but those of regular files in plain notation."""
        match = _PLAIN.fullmatch(buf)
        if match is None or int(match[3], 8) != sum(buf[:148]) + sum(b" " * 8) + sum(buf[156:]):
            return super().frombuf(buf, encoding, errors)
        name, size, _, prefix = match.groups()
        member = cls((prefix + b"/" + name if prefix else name).decode(encoding, errors))
        member.size = int(size, 8)
        return member


class _Reader:
    """A file for tarfile that limits how much a header can make it read.

    Attributes:
        left: Bytes that it may still read.
        last: What it read last.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._length = os.fstat(descriptor).st_size
        self._position = 0
        self.left = MAX_HEADER_BYTES
        self.last = b""

    def lacks(self, member: tarfile.TarInfo) -> bool:
        """Return whether a member ends beyond the end of the file."""
        return member.offset_data + member.size > self._length

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("header too large")
        self.last = os.pread(self._descriptor, size, self._position)
        self._position += len(self.last)
        return self.last

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position
