"""Image files: read to tensors, write images and animations.

In memory an image is float32 (C, H, W) in [-1, 1]; on disk it has 8 bits.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from colddiff_core.config.sizes import Size, sides
from colddiff_core.errors import UsageError, is_out_of_memory
from colddiff_core.files import whole
from colddiff_core.images.pixels import resize_and_crop, to_floats

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
ANIMATED = frozenset({".gif", ".webp", ".png"})
# Pillow detects the format from the content, whatever the suffix. Others, such as PostScript, are programs.
FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")
if importlib.util.find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    FORMATS += ("AVIF",)
_WARNING_FILTERS = threading.Lock()  # process-wide, while data sets are decoded by many threads
MAX_SIDE_PIXELS = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".gif": 65_535}


def read(path: Path, *, size: Size = 0, channels: int = 0) -> Tensor:
    """Return an image file as (C, H, W) float32 in [-1, 1], upright and in sRGB.

    Transparency is laid on white; 16-bit gray is scaled.

    Args:
        path: The file.
        size: Scale the picture to cover a square of this side, or (height, width), and crop its center; 0 keeps the
            file's size.
        channels: 1 or 3; 0 keeps the file's.

    Raises:
        UsageError: The file is missing, not an image, truncated, or has more pixels than Pillow allows.
    """
    return to_floats(torch.from_numpy(read_bytes(path, size=size, channels=channels)))


def read_like(path: Path, like: Tensor) -> Tensor:
    """Return an image file at the size and channels of another image, scaled and cropped to its center.

    Shapes: `like` and the result (C, H, W), float32 in [-1, 1].

    Raises:
        UsageError: As `read`.
    """
    channels, height, width = like.shape
    return resize_and_crop(read(path, channels=channels), height, width)


def read_bytes(path: Path, *, size: Size = 0, channels: int = 0, content: bytes | None = None) -> np.ndarray:
    """Return an image file as (C, H, W) uint8; otherwise as `read`.

    `content` replaces the bytes of the file, for a member of an archive; `path` then only names it in errors.

    Raises:
        UsageError: As `read`.
    """
    with open_image(path, content) as stored:
        stored.load()
        picture = _plain(to_srgb(ImageOps.exif_transpose(stored)), channels)
    if size:
        height, width = sides(size)
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    pixels = np.array(picture)  # a copy: Pillow's own buffer is read-only
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def count_channels(path: Path) -> int:
    """Return how many channels `read` gives an image file by default: 1 or 3; 0 if it is not an image."""
    try:
        with open_image(path) as picture:
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


@contextlib.contextmanager
def open_image(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Yield an image file, not decoded yet; `content` as in `read_bytes`.

    Errors of decoding it inside the `with` block are reported too.

    Raises:
        UsageError: As `read`.
    """
    if content is None and path.exists() and not path.is_file():  # opening a pipe would block
        raise UsageError(f"Cannot read {path}: it is not an ordinary file.", "Check the path.")
    try:
        with _open(path if content is None else io.BytesIO(content)) as picture:
            yield picture
    except FileNotFoundError:
        raise UsageError(f"No such file: {path}.", "Check the path.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UsageError(
            f"{path} has too many pixels.", f"Scale it down to at most {Image.MAX_IMAGE_PIXELS:,} first."
        ) from None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image that can be read.", f"Known formats: {', '.join(FORMATS)}.") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
        if is_out_of_memory(error):  # not the file's fault
            raise
        raise UsageError(f"Cannot read {path}: {error}.", "The file may be truncated or damaged.") from None


def is_gray(picture: Image.Image) -> bool:
    """Return whether an image has one channel of shades and no color."""
    return picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")


def _open(source: Path | io.BytesIO) -> Image.Image:
    """Open an image without decoding it; Pillow's warning of a decompression bomb is an error here."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = Image.open(source, formats=FORMATS)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        # Pillow memory-maps a TIFF that has a file name, and garbles its pixels if the image is rotated.
        picture.filename = ""
    return picture


def to_srgb(picture: Image.Image) -> Image.Image:
    """Convert an image with a color profile, or in Lab, to sRGB; return any other unchanged."""
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        with contextlib.suppress(ImageCms.PyCMSError):
            return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB") or picture
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if "transparency" in picture.info or picture.mode == "PA" else "RGB")
    if profile and picture.mode == "RGBA":
        opaque = picture.convert("RGB")
        opaque.info["icc_profile"] = profile
        converted_rgba = to_srgb(opaque).convert("RGBA")
        converted_rgba.putalpha(picture.getchannel("A"))
        return converted_rgba
    if not profile or picture.mode not in ("RGB", "CMYK", "L"):
        return picture
    target = "L" if picture.mode == "L" else "RGB"
    with contextlib.suppress(ImageCms.PyCMSError, OSError):  # ignore a damaged profile
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode=target)
        if converted is not None:
            return converted
    return picture


def _plain(picture: Image.Image, channels: int) -> Image.Image:
    """Return an image as 8-bit gray or RGB."""
    if is_deep(picture):
        values = np.asarray(picture)
        picture = Image.fromarray((scale_to_white(values, white_level(values)) * 255).round().astype(np.uint8))
    has_shades = is_gray(picture)
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return picture.convert("L" if channels == 1 or (channels == 0 and has_shades) else "RGB")


def is_deep(picture: Image.Image) -> bool:
    """Return whether an image is gray with more than 8 bits."""
    return picture.mode.startswith("I") or picture.mode == "F"


def white_level(values: np.ndarray) -> float:
    """Return the value of white in a deep gray image (H, W): the smallest common scale that holds its values."""
    scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    largest = float(values.max(initial=0, where=np.isfinite(values)))
    return next((scale for scale in scales if largest <= scale), largest)


def scale_to_white(values: np.ndarray, white: float) -> np.ndarray:
    """Divide deep gray values (H, W) by white: float64 in [0, 1]; values that are not finite become black."""
    with np.errstate(invalid="ignore"):  # casting a NaN
        finite = np.nan_to_num(values.astype(np.float64), copy=False, posinf=0.0, neginf=0.0)
    return (finite / white).clip(0, 1)


def write(picture: Image.Image, path: Path) -> None:
    """Write an image file atomically.

    Raises:
        UsageError: The suffix is unknown, or the format cannot hold so many pixels.
        MachineError: The disk refuses.
    """
    check_suffix(path, SUFFIXES)
    check_sides(picture.size, path)
    with whole(path) as draft:
        picture.save(draft)


def check_sides(size: tuple[int, int], path: Path) -> None:
    """Check that the format of an output file holds an image of (width, height) pixels.

    Raises:
        UsageError: A side is too long for the format.
    """
    limit = MAX_SIDE_PIXELS.get(path.suffix.lower())
    if limit is not None and max(size) > limit:
        what = f"{path}: {size[0]} x {size[1]} pixels are more than {path.suffix} holds ({limit} a side)"
        raise UsageError(f"{what}.", "Write a .png, or use a smaller --size or fewer severities.")


def check_suffix(path: Path, known: frozenset[str]) -> None:
    """Check that the suffix of an output file is one of `known`.

    Raises:
        UsageError: It is not.
    """
    if path.suffix.lower() not in known:
        raise UsageError(f"Unknown image format: {path}.", f"Use one of {', '.join(sorted(known))}.")


def write_animation(frames: Sequence[Image.Image], path: Path, *, milliseconds: int = 80, hold: int = 1500) -> None:
    """Write an animated GIF, WebP or PNG that loops; each frame lasts `milliseconds`, the last one `hold`.

    Raises:
        UsageError: There are fewer than two frames, the suffix is unknown, or the format cannot hold so many pixels.
        MachineError: The disk refuses.
    """
    check_suffix(path, ANIMATED)
    if len(frames) < 2:
        raise UsageError("An animation needs more than one frame.", "Use at least two steps.")
    check_sides(frames[0].size, path)
    durations = [milliseconds] * (len(frames) - 1) + [hold]
    with whole(path) as draft:
        frames[0].save(draft, save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
