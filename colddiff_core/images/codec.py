"""Read image files to tensors, upright, in sRGB, as 8-bit gray or RGB.

In memory an image is float32 (C, H, W) in [-1, 1]; on disk it has 8 bits.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from colddiff_core.config.sizes import Size, sides
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.images.depth import GrayDepth, decode, is_deep, is_gray
from colddiff_core.images.opening import MOST_DATASET_PIXELS, MOST_PIXELS, Work, note_on_frames, open_image
from colddiff_core.images.pixels import resize_and_crop, to_floats

# What decoding takes, Pillow's copy, its sRGB version and the array; and with the floats: upper bounds, measured
# (docs/decisions/012-memory.md).
DECODING, READING = Work(pixel_bytes=12), Work(pixel_bytes=36)
STRIP_PIXELS = 1 << 20  # of a deep image, converted at a time
Note = Callable[[str], None]  # is given what was lost of a file, in words


def read(path: Path, *, size: Size = 0, channels: int = 0, note: Note | None = None, work: Work = READING) -> Tensor:
    """Return an image file of a user as (C, H, W) float32 in [-1, 1], upright and in sRGB.

    Transparency is laid on white; gray of more than 8 bits is scaled as `GrayDepth` says.

    Args:
        path: The file.
        size: Scale the picture to cover a square of this side, or (height, width), and crop its center; 0 keeps the
            file's size.
        channels: 1 or 3; 0 keeps the file's.
        note: Called with a few words if the file holds further images; None to issue a ColddiffWarning.
        work: Memory that is needed for the image; with `size`, only decoding counts.

    Raises:
        UsageError: The file is missing, not an image, truncated, or has more than `opening.MOST_PIXELS`, or memory
            has no room for it.
    """
    with open_image(path, most_pixels=MOST_PIXELS, work=DECODING if size else work) as stored:
        if lost := note_on_frames(stored):
            (note or _warner(path))(lost)
        return to_floats(torch.from_numpy(_to_array(stored, size, channels)))


def read_like(path: Path, like: Tensor, *, note: Note | None = None) -> Tensor:
    """Return an image file at the size and channels of another image, scaled and cropped to its center.

    `note` as for `read`. Shapes: `like` and the result (C, H, W), float32 in [-1, 1].

    Raises:
        UsageError: As `read`.
    """
    channels, height, width = like.shape
    return resize_and_crop(read(path, channels=channels, note=note), height, width)


def read_bytes(
    path: Path, *, size: Size = 0, channels: int = 0, content: bytes | None = None, note: Note | None = None
) -> np.ndarray:
    """Return an image file as (C, H, W) uint8; otherwise as `read`.

    `content` replaces the bytes of the file, for a member of an archive; `path` then only names it in errors. This is
    for data sets: the limit is `opening.MOST_DATASET_PIXELS`, and without `note` further images in a file are ignored.

    Raises:
        UsageError: As `read`.
    """
    with open_image(path, content, most_pixels=MOST_DATASET_PIXELS) as stored:
        if note and (lost := note_on_frames(stored)):
            note(lost)
        return _to_array(stored, size, channels)


def _warner(path: Path) -> Note:
    return lambda text: warnings.warn(ColddiffWarning(f"{path}: {text}"), stacklevel=4)


def _to_array(stored: Image.Image, size: Size, channels: int) -> np.ndarray:
    """Decode an image that was just opened: (C, H, W) uint8, as `read_bytes` returns it."""
    has_shades, depth = is_gray(stored), GrayDepth.of(stored)
    picture = _plain(to_srgb(ImageOps.exif_transpose(decode(stored))), depth, channels or (1 if has_shades else 3))
    if size:
        height, width = sides(size)
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    pixels = np.array(picture)  # a copy: Pillow's own buffer is read-only
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def count_channels(path: Path) -> int:
    """Return how many channels `read` gives an image file by default: 1 or 3; 0 if it is not an image."""
    try:
        with open_image(path, most_pixels=MOST_PIXELS) as picture:
            return 1 if is_gray(picture) else 3
    except UsageError:
        return 0


def count_pixels(path: Path, content: bytes | None = None) -> int:
    """Return the pixel count in an image file's header, without decoding it; 0 if it is not an image.

    `content` as in `read_bytes`.
    """
    try:
        with open_image(path, content) as picture:
            return picture.width * picture.height
    except UsageError:
        return 0


def to_srgb(picture: Image.Image) -> Image.Image:
    """Convert an image with a color profile, or in Lab, to sRGB; return any other unchanged."""
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError):
            return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB") or picture
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if "transparency" in picture.info or picture.mode == "PA" else "RGB")
    if profile and picture.mode in ("RGBA", "LA"):
        opaque = picture.convert(picture.mode.removesuffix("A"))
        opaque.info["icc_profile"] = profile
        converted_layer = to_srgb(opaque).convert(picture.mode)
        converted_layer.putalpha(picture.getchannel("A"))
        return converted_layer
    if not profile or picture.mode not in ("RGB", "CMYK", "L"):
        return picture
    target = "L" if picture.mode == "L" else "RGB"
    with contextlib.suppress(ImageCms.PyCMSError, OSError):  # ignore a damaged profile
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode=target)
        if converted is not None:
            return converted
    return picture


def _plain(picture: Image.Image, depth: GrayDepth, channels: int) -> Image.Image:
    """Return an image of any mode as 8-bit gray (1 channel) or RGB (3), with transparency laid on white."""
    if is_deep(picture):
        picture = _to_eight_bits(picture, depth)
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert(picture.mode.upper())
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return picture.convert("L" if channels == 1 else "RGB")


def _to_eight_bits(picture: Image.Image, depth: GrayDepth) -> Image.Image:
    values = np.asarray(picture)
    white, levels = depth.white(values), np.empty(values.shape, np.uint8)
    rows = max(1, STRIP_PIXELS // max(1, picture.width))
    for top in range(0, picture.height, rows):
        levels[top : top + rows] = (depth.shades(values[top : top + rows], white) * 255).round()
    return Image.fromarray(levels)
