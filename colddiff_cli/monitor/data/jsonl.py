"""Read JSON-lines files while another process writes them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from colddiff_core.files import parse_json
from colddiff_core.runs import MOST_LOG_BYTES

CHUNK_BYTES = 1 << 20  # read at a time, so the reader stays responsive


def parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON objects in whole lines, and the number of lines that hold none."""
    rows, bad = [], 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = parse_json(line, constant=lambda _: None)  # NaN and the infinities
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    return rows, bad


class GrowingFile:
    """A file that grows line by line; `offset` is where the next read starts.

    A file that was replaced or truncated is read from the start again, as when a resumed trainer rewrites
    metrics.jsonl. A line without its newline is left for a later read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._identity: tuple[int, int] | None = None

    def check(self) -> tuple[bool, int]:
        """Return whether the file was replaced since the last check, and its size in bytes (0 if it is missing)."""
        try:
            status = os.stat(self.path)
        except OSError:  # deleted, or a slow network: keep the data read so far
            return False, 0
        # Reading a pipe would block forever, and a file with holes may have a size beyond any disk.
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_LOG_BYTES:
            return False, 0
        identity, size = (status.st_dev, status.st_ino), status.st_size
        is_replaced = self._identity is not None and (identity != self._identity or size < self.offset)
        self._identity = identity
        if is_replaced:
            self.offset = 0
        return is_replaced, size

    def read(self, limit: int = CHUNK_BYTES) -> bytes:
        """Return the next whole lines, at most `limit` bytes, and advance the offset."""
        data = b""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(limit)
        except OSError:
            return b""
        if len(data) < limit or b"\n" in data:
            data = data[: data.rfind(b"\n") + 1]
        # Otherwise the line is too long to be one of ours: skip it piece by piece.
        self.offset += len(data)
        return data


class JsonLines:
    """All lines of a small file such as events.jsonl."""

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self.bad = 0
        self._file = GrowingFile(path)

    def poll(self) -> int:
        """Read new lines and return their number; a replaced file counts in full."""
        is_replaced, size = self._file.check()
        if is_replaced:
            self.rows, self.bad = [], 0
        count_before = len(self.rows)
        while self._file.offset < size:
            data = self._file.read()
            if not data:
                break
            rows, bad = parse(data)
            self.rows += rows
            self.bad += bad
        return len(self.rows) - count_before


def newest(path: Path, limit: int = 8192) -> list[dict[str, Any]]:
    """Return the objects in the last `limit` bytes of a file, oldest first."""
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            data = file.read(limit)
    except OSError:
        return []
    if size > limit:
        data = data[data.find(b"\n") + 1 :]
    return parse(data[: data.rfind(b"\n") + 1])[0]
