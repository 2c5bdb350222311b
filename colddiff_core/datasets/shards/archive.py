"""Read one shard: a tar archive whose headers are scanned once, and whose images are then read by offset."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import stat
import subprocess
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from colddiff_core.datasets import cache
from colddiff_core.datasets.shards.listing import ShardLocation
from colddiff_core.datasets.shards.tar_index import CUT, NO_IMAGE, scan
from colddiff_core.distributed import environment
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import refusals
from colddiff_core.paths import cache_folder
from colddiff_core.text import beginning, harmless

CHUNK_BYTES = 1 << 20  # read from a pipe or a compressed file at a time
SPACE_CHECK_BYTES = 64 * CHUNK_BYTES  # written between two checks of the free space
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
GZIP = b"\x1f\x8b"
GZIP_BITS = zlib.MAX_WBITS | 16


class Shard:
    """An open shard. Its file is closed when the object is garbage collected."""

    def __init__(self, descriptor: int, damage: str = "") -> None:
        """Take ownership of an uncompressed archive and scan its headers; `damage` is that of its compression."""
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        index = scan(descriptor)
        self.index = dataclasses.replace(index, damage=damage) if damage else index

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
            damage = ""
            try:
                for chunk in _decompressed(compressed):
                    write(chunk)
            except EOFError:  # keep the beginning of a truncated file
                damage = CUT
            except zlib.error:
                damage = "damaged gzip"
            return Shard(os.dup(spool.fileno()), damage)

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
    """Yield the content of a gzip file in chunks of bounded size, however well it is compressed.

    Raises:
        EOFError: The file ends too early.
        zlib.error: The file is damaged.
    """
    decompressor = zlib.decompressobj(wbits=GZIP_BITS)
    is_inside = False  # a gzip member
    while data := compressed.read(CHUNK_BYTES):
        while data:
            is_inside = True
            yield decompressor.decompress(data, CHUNK_BYTES)
            data = decompressor.unconsumed_tail
            if decompressor.eof:  # another gzip member may follow, or zeros
                data, decompressor = decompressor.unused_data.lstrip(b"\0"), zlib.decompressobj(wbits=GZIP_BITS)
                is_inside = False
    yield decompressor.flush()
    if is_inside:
        raise EOFError("the gzip file is cut short")


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
