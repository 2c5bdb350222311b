"""Open image files: which formats, how many pixels, and what of a file is not read."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from colddiff_core import files
from colddiff_core.errors import UsageError, is_out_of_memory

# Pillow detects the format from the content, whatever the suffix. Others, such as PostScript, are programs.
FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")
if importlib.util.find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    FORMATS += ("AVIF",)
MOST_PIXELS = 500_000_000  # of a user's own picture, if memory has room for it; phones take 200 million
MOST_DATASET_PIXELS = 89_478_485  # of one of a data set's, where many threads decode: 256 MiB; Pillow's own limit
# Above MOST_DATASET_PIXELS, a file with more is taken for a bomb: deflate packs 8,256 pixels of one bit into a byte.
MOST_PIXELS_PER_BYTE = 10_000
# What Pillow raises on a damaged file; IndexError comes from a GIF whose further frames are.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, LookupError, ArithmeticError, struct.error)
ANIMATIONS = frozenset({"GIF", "PNG", "WEBP", "AVIF"})  # formats in which several images are frames
SUBFILE_TYPE, REDUCED = 254, 1  # TIFF tag, and its bit that marks a smaller copy of another image
MPF_ENTRIES = 0xB002  # of an MPO
# An MPO's further images that are views of their own, not a preview or a gain map: panorama, disparity, multi-angle.
VIEWS = frozenset(f"Multi-Frame Image: ({kind})" for kind in ("Panorama", "Disparity", "Multi-angle"))
MOST_PAGES = 64  # looked at for smaller copies
MEGA, GIGA = 10**6, 10**9
# What Pillow logs about a damaged file would be printed beside our own two lines, if the user's program logs nothing.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_LOCK = threading.Lock()  # Pillow's limit and Python's warning filters are the process's; data sets have many threads
_opened = 0  # images opened here and not closed yet
_usual_limit: int | None = None  # Pillow's, from before the first of them


@dataclasses.dataclass(frozen=True)
class Work:
    """The memory that working on an image takes: `pixel_bytes` for each of its pixels, and `base_bytes` besides."""

    pixel_bytes: int
    base_bytes: int = 0


@contextlib.contextmanager
def open_image(
    path: Path, content: bytes | None = None, *, most_pixels: int = MOST_DATASET_PIXELS, work: Work | None = None
) -> Iterator[Image.Image]:
    """Yield an image file, not decoded yet.

    Errors of decoding it inside the `with` block are reported too.

    Args:
        path: The file.
        content: Replaces the bytes of the file, for a member of an archive; `path` then only names it in errors.
        most_pixels: Refuse larger images.
        work: Refuse an image if free memory has no room for this work on it.

    Raises:
        UsageError: The file is missing, not an image, truncated, or has too many pixels.
    """
    if content is None and path.exists() and not path.is_file():  # opening a pipe would block
        raise UsageError(f"Cannot read {path}: it is not an ordinary file.", "Check the path.")
    try:
        with _limit(), _open(path if content is None else io.BytesIO(content)) as picture:
            _check_pixels(path, picture.width * picture.height, most_pixels, work)
            _check_density(path, picture, len(content) if content is not None else path.stat().st_size)
            yield picture
    except FileNotFoundError:
        raise UsageError(f"No such file: {path}.", "Check the path.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        stated = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_many(path, int(stated[1]) if stated else 0, most_pixels) from None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image that can be read.", f"Known formats: {', '.join(FORMATS)}.") from None
    except DAMAGED as error:
        if is_out_of_memory(error):  # not the file's fault
            raise
        raise UsageError(f"Cannot read {path}: {error}.", "The file may be truncated or damaged.") from None


def _check_pixels(path: Path, count: int, most_pixels: int, work: Work | None) -> None:
    if count > most_pixels:
        raise _too_many(path, count, most_pixels)
    needed = work.base_bytes + count * work.pixel_bytes if work else 0
    if work is None or count * work.pixel_bytes < GIGA:  # small ones always fit
        return
    free = files.free_bytes()
    if needed > free:
        what = f"{path}: {count / MEGA:,.0f} megapixels take about {needed / GIGA:,.1f} GB of memory"
        room = max(1, (free - work.base_bytes) // work.pixel_bytes // MEGA)
        remedy = f"Scale it down to {room:,} megapixels, or cut it into parts."
        raise UsageError(f"{what}, and {free / GIGA:,.1f} GB are free.", remedy)


def note_on_frames(picture: Image.Image) -> str:
    """Return a note if an image file holds other images, which are not read; call it before decoding.

    Previews are no loss and give no note: a TIFF's smaller copies, and a phone's gain maps and thumbnails in an MPO.
    """
    if not getattr(picture, "is_animated", False):
        return ""
    if picture.format in ANIMATIONS:
        return "animation: first frame only"
    if picture.format == "MPO" and not _has_views(picture):
        return ""
    if picture.format == "TIFF" and not _has_pages(picture):
        return ""
    return "several images in the file: first one only"


def packing(picture: Image.Image) -> str:
    """Return how an image's samples lie in its file, such as "RGB;16B", while it is not decoded yet."""
    return " ".join(str(tile[3]) for tile in getattr(picture, "tile", ()))


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """Let Pillow open and decode up to MOST_PIXELS in the context; everything else keeps its usual limit."""
    global _opened, _usual_limit  # noqa: PLW0603 - Pillow's limit is one of the process
    with _LOCK:
        if not _opened:
            _usual_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS
        _opened += 1
    try:
        yield
    finally:
        with _LOCK:
            _opened -= 1
            if not _opened:
                Image.MAX_IMAGE_PIXELS = _usual_limit


def _open(source: Path | io.BytesIO) -> Image.Image:
    """Open an image without decoding it; Pillow's warning of a decompression bomb is an error here."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = Image.open(source, formats=FORMATS)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        # Pillow memory-maps a TIFF that has a file name, and garbles its pixels if the image is rotated.
        picture.filename = ""
    return picture


def _check_density(path: Path, picture: Image.Image, size_bytes: int) -> None:
    count = picture.width * picture.height
    if count > MOST_DATASET_PIXELS and count > MOST_PIXELS_PER_BYTE * size_bytes:
        what = f"{path} has too many pixels for {size_bytes:,} bytes: {count / MEGA:,.0f} megapixels."
        raise UsageError(what, "It looks like a decompression bomb. If it is none, save it in another format.")


def _too_many(path: Path, count: int, most_pixels: int) -> UsageError:
    stated = f": {count / MEGA:,.0f} megapixels" if count else ""
    remedy = f"Scale it down to at most {most_pixels // MEGA} megapixels."
    return UsageError(f"{path} has too many pixels{stated}.", remedy)


def _has_views(picture: Image.Image) -> bool:
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        entries = picture.mpinfo[MPF_ENTRIES]  # type: ignore[attr-defined]
        return any(entry["Attribute"]["MPType"] in VIEWS for entry in entries[1:])
    return False


def _has_pages(picture: Image.Image) -> bool:
    """Return whether a TIFF has further images that are no smaller copies of the first."""
    try:
        for page in range(1, min(picture.n_frames, MOST_PAGES)):  # type: ignore[attr-defined]
            picture.seek(page)
            if not int(picture.tag_v2.get(SUBFILE_TYPE, 0)) & REDUCED:  # type: ignore[attr-defined]
                return True
    except (*DAMAGED, TypeError):
        return True
    finally:
        picture.seek(0)
    return picture.n_frames > MOST_PAGES  # type: ignore[attr-defined]
