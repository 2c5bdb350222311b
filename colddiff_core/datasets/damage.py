"""Say in a few words why a file cannot be read."""

from __future__ import annotations

import re
from pathlib import Path

from colddiff_core.datasets.picture_files import head_of
from colddiff_core.errors import ColddiffError
from colddiff_core.images import HEAD_BYTES
from colddiff_core.text import beginning, harmless

_WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|script|\?xml|error|!--)", re.IGNORECASE)
_LFS = b"version https://git-lfs"
_CUT = ("truncated", "broken PNG", "unrecognized data stream", "buffer overrun", "not enough", "EOF", "decoder")


def kind_of(head: bytes) -> str:
    """Return what a file really is, from its first bytes, such as "a web page"; an empty string if it may be right."""
    if not head:
        return "empty"
    if _WEB_PAGE.match(head):
        return "a web page"
    return "a Git LFS pointer" if head.startswith(_LFS) else ""


def reason_for(error: ColddiffError, path: Path, content: bytes | None = None) -> str:
    """Return why a picture cannot be read, such as "truncated".

    Args:
        error: What reading it raised.
        path: The file, which `error` may name.
        content: The bytes of the file if it is in an archive.
    """
    if kind := kind_of(head_of(path) if content is None else content[:HEAD_BYTES]):
        return kind
    text = harmless(error.what.replace(str(path), "")).removeprefix("Cannot read ").strip(" :.")
    if any(sign in text for sign in _CUT):
        return "truncated"
    text = re.sub(r"^(?:is|has) ", "", text).replace("not an image that can be read", "not an image")
    return beginning(text)
