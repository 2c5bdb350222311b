"""Pictures: files to tensors and back, contact sheets, animations.

In memory a picture is float32 (C, H, W) in [-1, 1]; on disk it is 8 bits.
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

from colddiff_core.errors import UsageError, is_out_of_memory
from colddiff_core.files import whole
from colddiff_core.images.pixels import covering, to_floats

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
ANIMATED = frozenset({".gif", ".webp", ".png"})
# Of the formats that Pillow knows; it tells them by their content, and among the others are programs (PostScript).
FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")
if importlib.util.find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    FORMATS += ("AVIF",)
_WARNING_FILTERS = threading.Lock()  # they belong to the process, and data sets are decoded by many threads
MOST_PIXELS = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".gif": 65_535}  # of a side


def read(path: Path, *, size: int = 0, channels: int = 0) -> Tensor:
    """Return a picture file as (C, H, W) float32 in [-1, 1], upright.

    `size` > 0 scales the shorter side to it and crops the center to a square; `channels` is 1, 3, or
    0 for what the file has. Transparency is laid on white; 16-bit gray is scaled.

    Raises UsageError where the file is missing, not an image, truncated, or beyond Pillow's limit of pixels.
    """
    return to_floats(torch.from_numpy(read_bytes(path, size=size, channels=channels)))


def read_as(path: Path, like: Tensor) -> Tensor:
    """Return a picture file scaled and cropped to the size and channels of another picture (C, H, W)."""
    channels, height, width = like.shape
    return covering(read(path, channels=channels), height, width)


def read_bytes(path: Path, *, size: int = 0, channels: int = 0, content: bytes | None = None) -> np.ndarray:
    """Return a picture file as (C, H, W) uint8; arguments and errors as in `read`.

    `content` is the file's own where it lies in an archive; `path` then only names it.
    """
    with opened(path, content) as stored:
        stored.load()
        picture = _plain(in_srgb(ImageOps.exif_transpose(stored)), channels)
    if size:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    pixels = np.array(picture)  # a copy: Pillow's own buffer cannot be written to
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def channels_of(path: Path) -> int:
    """Return how many channels `read` makes of a picture file that are its own: 1 or 3; 0 where it is no picture."""
    try:
        with opened(path) as picture:
            return 1 if is_gray(picture) else 3
    except UsageError:
        return 0


def pixels_of(path: Path, content: bytes | None = None) -> int:
    """Return how many pixels a picture file says it has, without decoding it; 0 where it is no picture.

    `content` as in `read_bytes`.
    """
    try:
        with opened(path, content) as picture:
            return picture.width * picture.height
    except UsageError:
        return 0


@contextlib.contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Yield a picture file that is not decoded yet; arguments and errors as in `read_bytes`, decoding included."""
    if content is None and path.exists() and not path.is_file():  # a pipe would be waited for
        raise UsageError(f"Cannot read {path}: it is not an ordinary file.", "Check the path.")
    try:
        with _opened(path if content is None else io.BytesIO(content)) as picture:
            yield picture
    except FileNotFoundError:
        raise UsageError(f"No such file: {path}.", "Check the path.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UsageError(
            f"{path} has too many pixels.", f"The limit is {Image.MAX_IMAGE_PIXELS:,}; scale it down first."
        ) from None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image that can be read.", f"Known formats: {', '.join(FORMATS)}.") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:
        if is_out_of_memory(error):  # that is not the file's fault
            raise
        raise UsageError(f"Cannot read {path}: {error}.", "The file may be truncated or damaged.") from None


def is_gray(picture: Image.Image) -> bool:
    """Return whether a picture has shades and no colors."""
    return picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")


def _opened(source: Path | io.BytesIO) -> Image.Image:
    """Open a picture without decoding it; what Pillow only warns of as a decompression bomb is an error."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = Image.open(source, formats=FORMATS)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        # Of a file that it can name Pillow maps the pixels, and garbles those of one that lies sideways.
        picture.filename = ""
    return picture


def in_srgb(picture: Image.Image) -> Image.Image:
    """Return a picture with an embedded color profile, or in Lab, in sRGB; any other as it is."""
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
        converted_rgba = in_srgb(opaque).convert("RGBA")
        converted_rgba.putalpha(picture.getchannel("A"))
        return converted_rgba
    if not profile or picture.mode not in ("RGB", "CMYK", "L"):
        return picture
    target = "L" if picture.mode == "L" else "RGB"
    with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a damaged profile says nothing: ignore it
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode=target)
        if converted is not None:
            return converted
    return picture


def _plain(picture: Image.Image, channels: int) -> Image.Image:
    """Return the picture as 8-bit gray or RGB."""
    if is_deep(picture):
        values = np.asarray(picture)
        picture = Image.fromarray((shares_of(values, white_of(values)) * 255).round().astype(np.uint8))
    has_shades = is_gray(picture)
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return picture.convert("L" if channels == 1 or (channels == 0 and has_shades) else "RGB")


def is_deep(picture: Image.Image) -> bool:
    """Return whether a picture is gray with more than 8 bits."""
    return picture.mode.startswith("I") or picture.mode == "F"


def white_of(values: np.ndarray) -> float:
    """Return what stands for white among the values (H, W) of a deep gray picture: the least scale that holds them."""
    scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    most = float(values.max(initial=0, where=np.isfinite(values)))
    return next((scale for scale in scales if most <= scale), most)


def shares_of(values: np.ndarray, white: float) -> np.ndarray:
    """Return the values of a deep gray picture as shares of white, float64 in [0, 1]; what is not finite is black."""
    with np.errstate(invalid="ignore"):  # a NaN among them
        finite = np.nan_to_num(values.astype(np.float64), copy=False, posinf=0.0, neginf=0.0)
    return (finite / white).clip(0, 1)


def write(picture: Image.Image, path: Path) -> None:
    """Write a picture whole; raises UsageError for an unknown suffix, MachineError where the disk refuses."""
    check_suffix(path, SUFFIXES)
    check_sides(picture.size, path)
    with whole(path) as draft:
        picture.save(draft)


def check_sides(size: tuple[int, int], path: Path) -> None:
    """Raise UsageError where the format of an output has no room for width x height pixels."""
    most = MOST_PIXELS.get(path.suffix.lower())
    if most is not None and max(size) > most:
        what = f"{path}: {size[0]} x {size[1]} pixels are more than {path.suffix} holds ({most} a side)"
        raise UsageError(f"{what}.", "Write a .png, or make it smaller with --size or fewer severities.")


def check_suffix(path: Path, known: frozenset[str]) -> None:
    """Raise UsageError where the suffix of an output is not one of `known`."""
    if path.suffix.lower() not in known:
        raise UsageError(f"Cannot tell the format of {path}.", f"End the name in one of {', '.join(sorted(known))}.")


def write_animation(frames: Sequence[Image.Image], path: Path, *, milliseconds: int = 80, hold: int = 1500) -> None:
    """Write frames as an animated GIF, WebP or PNG that loops and holds its last frame.

    Raises UsageError for fewer than two frames or an unknown suffix.
    """
    check_suffix(path, ANIMATED)
    if len(frames) < 2:
        raise UsageError("An animation of one frame is a picture.", "Ask for at least two steps.")
    check_sides(frames[0].size, path)
    durations = [milliseconds] * (len(frames) - 1) + [hold]
    with whole(path) as draft:
        frames[0].save(draft, save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
