"""Write images and animations, in the best quality that each format has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from colddiff_core.errors import UsageError
from colddiff_core.files import whole

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
JPEG = frozenset({".jpg", ".jpeg"})
ANIMATED = frozenset({".gif", ".webp", ".png"})
MAX_SIDE_PIXELS = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".gif": 65_535}


def pixel_options(suffix: str) -> dict[str, Any]:
    """Return the arguments of Pillow's `save` that say how pixels are compressed in files with this suffix.

    JPEG has quality 95 and no chroma subsampling, WebP is lossless; the others are as Pillow writes them.
    """
    if suffix.lower() in JPEG:
        return {"quality": 95, "subsampling": 0}
    if suffix.lower() == ".webp":
        return {"lossless": True, "exact": True}  # exact: keep colors under full transparency
    return {}


def write(picture: Image.Image, path: Path) -> None:
    """Write an image file atomically, with `pixel_options`.

    Raises:
        UsageError: The suffix is unknown, or the format cannot hold so many pixels.
        MachineError: The disk refuses.
    """
    check_suffix(path, SUFFIXES)
    check_sides(picture.size, path)
    with whole(path) as draft:
        picture.save(draft, **pixel_options(path.suffix))


def check_sides(size: tuple[int, int], path: Path) -> None:
    """Check that the format of an output file holds an image of (width, height) pixels.

    Raises:
        UsageError: A side is too long for the format.
    """
    limit = MAX_SIDE_PIXELS.get(path.suffix.lower())
    if limit is not None and max(size) > limit:
        what = f"{path}: {size[0]} x {size[1]} pixels are more than {path.suffix} holds ({limit} a side)"
        raise UsageError(f"{what}.", "Write a .png, or one with fewer or smaller pictures in it.")


def check_suffix(path: Path, known: frozenset[str]) -> None:
    """Check that the suffix of an output file is one of `known`.

    Raises:
        UsageError: It is not.
    """
    if path.suffix.lower() not in known:
        raise UsageError(f"Unknown image format: {path}.", f"Use one of {', '.join(sorted(known))}.")


def write_animation(frames: Sequence[Image.Image], path: Path, *, milliseconds: int = 80, hold: int = 1500) -> None:
    """Write an animated GIF, WebP or PNG that loops; each frame lasts `milliseconds`, the last one `hold`.

    WebP and PNG are lossless.

    Raises:
        UsageError: There are fewer than two frames, the suffix is unknown, or the format cannot hold so many pixels.
        MachineError: The disk refuses.
    """
    check_suffix(path, ANIMATED)
    if len(frames) < 2:
        raise UsageError("An animation needs more than one frame.", "Use at least two steps.")
    check_sides(frames[0].size, path)
    durations = [milliseconds] * (len(frames) - 1) + [hold]
    picture, others = frames[0], list(frames[1:])
    with whole(path) as draft:
        picture.save(
            draft, save_all=True, append_images=others, duration=durations, loop=0, **pixel_options(path.suffix)
        )
