"""Load a split from a folder or a tar archive of pictures."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, cast

from colddiff_core.datasets import cache
from colddiff_core.datasets.base import DatasetRequest, ImageSet
from colddiff_core.datasets.damage import kind_of
from colddiff_core.datasets.decoding import (
    MAX_MEMBER_BYTES,
    Entry,
    EntrySource,
    decode,
    decode_entries,
    relative_folders,
)
from colddiff_core.datasets.picture_files import find_pictures, head_of, is_companion, is_picture_name
from colddiff_core.errors import UsageError
from colddiff_core.images import HEAD_BYTES, suffix_of
from colddiff_core.text import NameTally, counted

MAX_HEADER_BYTES = 1 << 20  # of all headers of a member, including long names and sparse maps
UNREADABLE = (
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    RecursionError,
)
_OPENERS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": lambda path: cast(IO[bytes], gzip.GzipFile(path)),
    b"BZ": lambda path: cast(IO[bytes], bz2.BZ2File(path)),
    b"\xfd7": lambda path: cast(IO[bytes], lzma.LZMAFile(path)),  # noqa: SIM115 - the caller closes it
}


def load_place(place: Path, request: DatasetRequest, places: Sequence[Path] = ()) -> ImageSet:
    """Return the images of a folder, or of a tar archive, as (N, C, H, W) uint8.

    Args:
        place: The folder or archive.
        request: Size, channels and crop of the images.
        places: Those of all splits: a class that one folder lacks counts there too, so that the numbers agree.

    Raises:
        UsageError: None of the images can be read, or the archive is damaged.
    """
    if not place.is_dir():
        return decode_archive(place, request)
    found = find_pictures(place)
    others = [other for other in places if other != place and other.is_dir()]
    folders = {name for other in others for name in relative_folders(find_pictures(other).paths, other)}
    if "." in folders:  # the other split is not sorted into classes
        folders = set()
    images = decode(found.paths, request, place, folders)
    return dataclasses.replace(images, remarks=(*found.remarks, *images.remarks))


def decode_archive(archive: Path, request: DatasetRequest) -> ImageSet:
    """Return the images of a tar archive, whose folders are the classes, as (N, C, H, W) uint8.

    Raises:
        UsageError: None of the images can be read, or the archive is damaged.
    """
    others = NameTally()

    def remarks() -> tuple[str, ...]:
        left_out = f"{archive}: left out {counted(others.count, 'file')} in no known picture format ({others})"
        return (left_out,) if others.count else ()

    source = EntrySource(_members(archive, others), _without_split_folder, remarks=remarks)
    return decode_entries(source, request, archive, (cache.stamp(archive),))


def _without_split_folder(folders: set[str]) -> dict[str, str]:
    """Map the folders of an archive to class names, dropping a single outer folder if there is one."""
    outer = {PurePosixPath(folder).parts[:1] for folder in folders}
    if len(outer) != 1 or outer == {()}:
        return {folder: folder for folder in folders}
    return {folder: PurePosixPath(*PurePosixPath(folder).parts[1:]).as_posix() for folder in folders}


def _members(archive: Path, others: NameTally) -> Iterator[Entry]:
    """Yield the images of an archive, read into memory: nothing is unpacked, so no name in it can do harm.

    Links, devices and other special members are passed over; files in no known picture format are added to `others`.
    """
    try:
        with contextlib.ExitStack() as stack:
            reader = _BoundedReader(stack.enter_context(_uncompressed(archive)))
            opened = stack.enter_context(tarfile.open(fileobj=reader, mode="r:"))  # type: ignore[call-overload]
            while (member := opened.next()) is not None:
                reader.left = MAX_HEADER_BYTES
                opened.members.clear()  # tarfile would keep them all
                if opened.offset < member.offset_data or member.size < 0:  # would loop forever
                    raise tarfile.ReadError("bad size in a header")
                if member.isreg() and not member.issparse():
                    yield from _entry(archive, opened, member, reader, others)
                    reader.left = MAX_HEADER_BYTES
            if reader.last.strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("damaged or cut after its first members")
    except UNREADABLE as error:
        kind = kind_of(head_of(archive))
        why = f"it is {kind}, not an archive" if kind else str(error)
        raise UsageError(
            f"Cannot read {archive}: {why}.",
            "Delete it and download it again." if kind else "It may be truncated: download it again.",
        ) from None


def _entry(
    archive: Path, opened: tarfile.TarFile, member: tarfile.TarInfo, reader: _BoundedReader, others: NameTally
) -> Iterator[Entry]:
    """Yield a member as an entry, if it is a picture by its suffix or, if that is unknown, by its first bytes."""
    inner = PurePosixPath(member.name)
    is_named = is_picture_name(inner.name)
    if not is_named and is_companion(inner.name):
        return
    reader.left = HEAD_BYTES + MAX_MEMBER_BYTES
    stream = opened.extractfile(member)
    head = stream.read(HEAD_BYTES) if stream else b""
    if not is_named and not suffix_of(head):
        others.add(member.name)
        return
    # A larger file may be a decompression bomb, so it counts as unreadable.
    refusal = f"larger than {MAX_MEMBER_BYTES >> 20} MiB" if member.size > MAX_MEMBER_BYTES else ""
    content = b"" if refusal or stream is None else head + stream.read()
    yield Entry(archive / inner.name, inner.parent.as_posix(), content, member.name, refusal)


def _uncompressed(archive: Path) -> IO[bytes]:
    opener = _OPENERS.get(head_of(archive)[:2])
    return opener(archive) if opener else archive.open("rb")


class _BoundedReader:
    """A file for tarfile that limits how much one header, or one member, can make it read.

    Attributes:
        left: Bytes that it may still read.
        last: What it read last; an archive ends with empty blocks, or where the file ends.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = MAX_HEADER_BYTES
        self.last = b""

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("header too large")
        self.last = self._file.read(size)
        return self.last

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()
