"""Find the records of a tar archive by its headers, each of which is read once.

As in webdataset, consecutive files with the same path up to the first dot of the file name form one record: `a/7.png`
and `a/7.cls`. Names are compared but never used as paths. Only images and classes are read; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Self

import numpy as np

from colddiff_core.datasets.archives import MAX_HEADER_BYTES, UNREADABLE
from colddiff_core.datasets.damage import kind_of
from colddiff_core.datasets.decoding import MAX_MEMBER_BYTES
from colddiff_core.datasets.picture_files import is_companion
from colddiff_core.images import HEAD_BYTES, READABLE, SUFFIXES, suffix_of

MAX_CLASS_BYTES = 64  # of a .cls file
NO_IMAGE = -1  # the size of a missing image, or of one too large to read
NO_LABEL = -1
CUT = "cut short"
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
        damage: What is wrong with the archive, such as "cut short"; empty if nothing is. Some writers leave out the
            end, so an archive that lacks only that is not damaged.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    suffixes: frozenset[str]
    is_truncated: bool
    damage: str = ""

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def class_count(self) -> int:
        """The highest label plus 1; 0 if an image has no label."""
        labels = self.labels[self.sizes != NO_IMAGE]
        return 0 if not len(labels) or labels.min() == NO_LABEL else int(labels.max()) + 1


def scan(descriptor: int) -> ShardIndex:
    """Index the records of an archive, as far as it can be read."""
    rows: list[tuple[int, int, int, str]] = []
    empty = (0, NO_IMAGE, NO_LABEL, "")
    key, row, rank = None, empty, -1
    reader = _Reader(descriptor)
    for member in _members(reader):
        is_truncated = reader.lacks(member)
        match = _KEY.fullmatch(member.name)
        if match is None and not _is_bare_image(reader, member):
            continue
        own_key, is_inner, suffix = member.name, False, ""
        if match is not None:
            own_key, is_inner, suffix = match[1], match[2] is not None, f".{match[3].lower()}"
        if own_key != key:
            if key is not None:
                rows.append(row)
            key, row, rank = None if is_truncated else own_key, empty, -1
        if is_truncated:
            break
        # Take the first image, but prefer 7.png to 7.input.png, and both to formats that are rare.
        image, own_rank = _image_suffix(reader, member, suffix), 2 * (suffix in SUFFIXES) + (not is_inner)
        if image and own_rank > rank:
            size = member.size if member.size <= MAX_MEMBER_BYTES else NO_IMAGE
            row, rank = (member.offset_data, size, row[2], image), own_rank
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
    suffixes = frozenset(row[3] for row in rows) - {""}
    return ShardIndex(offsets, sizes, labels, suffixes, is_truncated, reader.damage())


def _image_suffix(reader: _Reader, member: tarfile.TarInfo, suffix: str) -> str:
    """Return the suffix of an image, by its first bytes if `suffix` is unknown; empty for another file."""
    if suffix in READABLE:
        return suffix
    if is_companion(f"a{suffix}"):
        return ""
    return suffix_of(reader.peek(min(member.size, HEAD_BYTES), member.offset_data))


def _is_bare_image(reader: _Reader, member: tarfile.TarInfo) -> bool:
    """Return whether a member is an image whose name has no suffix."""
    return "." not in member.name.rpartition("/")[2] and bool(_image_suffix(reader, member, ""))


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
        has_members: Whether a regular file was found.
        is_cut: Whether the last one ends beyond the end of the file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._length = os.fstat(descriptor).st_size
        self._position = 0
        self.left = MAX_HEADER_BYTES
        self.last = b""
        self.has_members = self.is_cut = False

    def damage(self) -> str:
        """Return what is wrong with the archive once it was read as far as possible; empty if nothing is."""
        if not self._length or not self.peek(1, 0):
            return "empty"
        first = self.peek(HEAD_BYTES, 0)
        if kind := kind_of(first):
            return kind
        if not self.has_members and self.last.strip(b"\0"):
            return "not a tar archive"
        is_odd = not self.last and self._length % tarfile.BLOCKSIZE  # cut in the zeros after the last image
        if self.is_cut or is_odd or 0 < len(self.last) < tarfile.BLOCKSIZE:
            return CUT
        return "damaged" if self.last.strip(b"\0") else ""

    def peek(self, size: int, offset: int) -> bytes:
        """Return bytes from elsewhere in the file; fewer, or none, if they cannot be read."""
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError:
            return b""

    def lacks(self, member: tarfile.TarInfo) -> bool:
        """Return whether a member ends beyond the end of the file."""
        self.has_members = True
        self.is_cut = member.offset_data + member.size > self._length
        return self.is_cut

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
