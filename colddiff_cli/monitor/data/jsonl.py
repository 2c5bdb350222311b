"""Files of JSON lines that another process writes, read as they grow."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from colddiff_core.files import parse_json

MOST = 1 << 20  # bytes taken at a time, so that a reader stays responsive


def parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the objects of whole lines, and how many lines are none."""
    rows, bad = [], 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = parse_json(line, constant=lambda _: None)  # NaN and the infinities are no numbers
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    return rows, bad


class GrowingFile:
    """A file that grows by whole lines: what came since the last look, and whether it began anew.

    A file that was replaced or became shorter is read again from its start: a resumed trainer writes
    metrics.jsonl anew. A line without its newline is left until it has one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self._identity: tuple[int, int] | None = None

    def look(self) -> tuple[bool, int]:
        """Return whether the file began anew since the last look, and its size in bytes; 0 where it is absent."""
        try:
            found = os.stat(self.path)
        except OSError:  # deleted, or a network that is slow: what was read stays
            return False, 0
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            return False, 0
        identity, size = (found.st_dev, found.st_ino), found.st_size
        is_new = self._identity is not None and (identity != self._identity or size < self.offset)
        self._identity = identity
        if is_new:
            self.offset = 0
        return is_new, size

    def more(self, most: int = MOST) -> bytes:
        """Return the whole lines that came since, of at most that many bytes, and go on behind them."""
        data = b""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(most)
        except OSError:
            return b""
        if len(data) < most or b"\n" in data:
            data = data[: data.rfind(b"\n") + 1]
        # Else a line longer than all that are written: it is taken in pieces, which are no lines to anyone.
        self.offset += len(data)
        return data


class JsonLines:
    """The lines of a small file such as events.jsonl, all kept."""

    def __init__(self, path: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self.bad = 0
        self._file = GrowingFile(path)

    def poll(self) -> int:
        """Read what came; returns how many lines are new, all of them where the file began anew."""
        is_new, size = self._file.look()
        if is_new:
            self.rows, self.bad = [], 0
        before = len(self.rows)
        while self._file.offset < size:
            data = self._file.more()
            if not data:
                break
            rows, bad = parse(data)
            self.rows += rows
            self.bad += bad
        return len(self.rows) - before


def newest(path: Path, most: int = 8192) -> list[dict[str, Any]]:
    """Return the last few lines of a file, oldest first, without reading the rest."""
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            data = file.read(most)
    except OSError:
        return []
    if size > most:
        data = data[data.find(b"\n") + 1 :]
    return parse(data[: data.rfind(b"\n") + 1])[0]
