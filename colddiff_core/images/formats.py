"""Which files are pictures: those of a known suffix, and others by their first bytes."""

from __future__ import annotations

import re

from colddiff_core.images.encoding import SUFFIXES
from colddiff_core.images.opening import FORMATS

HEAD_BYTES = 64  # enough to know a format
_SUFFIXES = {
    "PNG": (".apng",),
    "JPEG": (".jpe", ".jfif"),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
}
# Suffixes of the files that can be read; those that can also be written are SUFFIXES.
READABLE = SUFFIXES.union(*(_SUFFIXES.get(name, ()) for name in FORMATS))
_SIGNATURES = (
    ("PNG", ".png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", ".jpg", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", ".webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", ".gif", re.compile(rb"GIF8[79]a")),
    ("TIFF", ".tif", re.compile(rb"II[*+]\0|MM\0[*+]")),
    # Two letters are too few: a text may begin with them. The sizes of the headers that exist follow.
    ("BMP", ".bmp", re.compile(rb"BM.{4}.{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
    ("PPM", ".ppm", re.compile(rb"P[1-6fF](?:\s+|\s*#[^\n]*\n)\d")),
    ("JPEG2000", ".jp2", re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n")),
    ("AVIF", ".avif", re.compile(rb"....ftyp(?:avif|avis|.{4}.{4}(?:.{4})*?avif)", re.DOTALL)),
)


def suffix_of(head: bytes) -> str:
    """Return the suffix that suits a file by its first HEAD_BYTES bytes; empty if it is no picture that can be read."""
    return next((suffix for name, suffix, sign in _SIGNATURES if name in FORMATS and sign.match(head)), "")
