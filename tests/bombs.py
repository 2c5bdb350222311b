"""Files whose headers claim more data than fits in memory."""

from __future__ import annotations

import struct
import zlib


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims this size and holds almost nothing."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0")]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


BOMB = png_header(100_000, 100_000)
