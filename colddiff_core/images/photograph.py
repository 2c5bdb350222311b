"""A user's own photograph: its pixels as stored, and everything to write back beside them.

`images.read` normalizes images for training: upright, in sRGB. Here only the pixels change: size, orientation, color
profile, transparency and metadata go out as they came in.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from colddiff_core import images
from colddiff_core.files import whole
from colddiff_core.images import sheets
from colddiff_core.images.codec import READING, to_srgb
from colddiff_core.images.depth import GrayDepth, decode, is_deep, is_gray
from colddiff_core.images.encoding import JPEG
from colddiff_core.images.opening import MOST_PIXELS, Work, note_on_frames, open_image, packing
from colddiff_core.images.photograph_metadata import (
    JPEG_ROOM_BYTES,
    read_metadata,
    save_options,
    upright_exif,
    upright_xmp,
)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
STRIP_PIXELS = 1 << 20  # converted at a time, so that no second copy of a photograph is held
WIDTHS_PER_GAP = 200  # the gap between two images is their width / 200
_ROTATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x: x.flip(-1),
    3: lambda x: x.flip(-2, -1),
    4: lambda x: x.flip(-2),
    5: lambda x: x.mT,
    6: lambda x: x.mT.flip(-1),
    7: lambda x: x.mT.flip(-2, -1),
    8: lambda x: x.mT.flip(-2),
}
_UNDO_ROTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Photograph:
    """The pixels of an image file and the metadata to write back beside them.

    Attributes:
        pixels: (C, H, W) float32 in [-1, 1], C = 1 or 3, as stored: not rotated, in the profile's colors.
        alpha: (H, W) uint8; None if the image is opaque.
        orientation: EXIF orientation, 1 to 8.
        exif: The bytes of the file, empty if it has none; the same for `icc_profile`, `xmp` and `comment`.
        dpi: Dots per inch, horizontal and vertical.
        texts: Text chunks of a PNG.
        photoshop: A JPEG's Photoshop block, which holds its captions (IPTC).
        notes: What could not be kept, in words.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    orientation: int = 1
    exif: bytes = b""
    icc_profile: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    comment: bytes = b""
    photoshop: bytes = b""
    notes: tuple[str, ...] = ()


def read(path: Path, *, work: Work = READING) -> Photograph:
    """Return a photograph as stored in its file; CMYK and Lab, which few programs write, are converted to sRGB.

    Damaged metadata is left out or kept unchanged. `work` as for `images.read`.

    Raises:
        UsageError: As `images.read`.
    """
    with open_image(path, most_pixels=MOST_PIXELS, work=work) as picture:
        notes, depth = _notes(picture), GrayDepth.of(picture)
        # Decoding rotates a TIFF and drops its orientation.
        metadata = read_metadata(picture) if picture.format == "TIFF" else {}
        decode(picture)
        metadata = metadata or read_metadata(picture)
        plain = _to_gray_or_rgb(_as_stored(picture, metadata["orientation"]))
        profile = picture.info.get("icc_profile")
        if plain.mode != picture.mode and picture.mode in ("CMYK", "LAB"):
            notes.append(f"{'Lab' if picture.mode == 'LAB' else 'CMYK'}: written as RGB")
            profile = None
        alpha = np.array(plain.getchannel("A")) if "A" in plain.getbands() else None
        return Photograph(
            pixels=_deep_floats(plain, depth) if is_deep(plain) else _floats(plain),
            alpha=None if alpha is None else torch.from_numpy(alpha),
            icc_profile=profile if isinstance(profile, bytes) else b"",
            notes=tuple(notes),
            **metadata,
        )


def write(photograph: Photograph, pixels: Tensor, path: Path) -> tuple[str, ...]:
    """Write new pixels with a photograph's transparency and metadata; return notes on what was left out.

    PNG, TIFF and WebP are lossless; JPEG has quality 95 and no chroma subsampling. There is a note for transparency
    that a JPEG cannot hold and for metadata that is damaged or too large, none for metadata that the format does not
    have at all.

    Shapes: pixels (C', H, W) in [-1, 1], H and W the photograph's, C' = 1 or 3, which may differ from its C.

    Raises:
        UsageError: The suffix is unknown, or the format cannot hold so many pixels.
        MachineError: The disk refuses.
    """
    images.check_suffix(path, SUFFIXES)
    height, width = pixels.shape[-2:]
    images.check_sides((width, height), path)
    suffix, notes = path.suffix.lower(), []
    is_on_white = photograph.alpha is not None and suffix in JPEG
    if is_on_white:
        notes.append("transparency: laid on white, a JPEG has none")
    kept = {name: getattr(photograph, name) for name in ("exif", "icc_profile", "xmp", "comment", "photoshop")}
    colors = 3 if suffix == ".webp" else len(pixels)
    if colors != len(photograph.pixels) and kept["icc_profile"][16:20] == (b"GRAY" if colors == 3 else b"RGB "):
        kept["icc_profile"] = b""
        notes.append("color profile: left out, it is for other channels")
    for name, room in JPEG_ROOM_BYTES.items() if suffix in JPEG else ():
        if len(kept[name]) > room:
            notes.append(f"{name} of {len(kept[name]):,} bytes: left out, a JPEG holds at most {room:,}")
            kept[name] = b""
    picture = _picture(pixels, photograph.alpha, is_on_white)
    with whole(path) as draft:
        try:
            picture.save(draft, **save_options(kept, photograph.dpi, photograph.texts, suffix))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, SyntaxError, struct.error):
            undamaged = kept | {"exif": b"", "xmp": b""}
            picture.save(draft, **save_options(undamaged, photograph.dpi, photograph.texts, suffix))
            notes.append("EXIF and XMP: left out, they are damaged")
    return tuple(notes)


def upright(photograph: Photograph, pixels: Tensor) -> Tensor:
    """Rotate or mirror pixels (..., H, W) by a photograph's orientation, so that they are upright."""
    turn = _ROTATIONS.get(photograph.orientation)
    return pixels if turn is None else turn(pixels)


def side_by_side_size(photograph: Photograph) -> tuple[int, int]:
    """Return the width and height of the image that `side_by_side` makes, in pixels."""
    height, width = upright(photograph, photograph.pixels[:1]).shape[-2:]
    return 2 * width + max(sheets.GAP_PIXELS, width // WIDTHS_PER_GAP), height


def side_by_side(photograph: Photograph, before: Tensor, after: Tensor) -> Photograph:
    """Return a photograph of two images side by side, upright and at full size, with a thin gap between them.

    Shapes: before (left) and after (right) (C, H, W) in [-1, 1], H and W the photograph's, each with 1 or 3 channels.
    """
    channels = max(len(before), len(after))
    left, right = (upright(photograph, x).expand(channels, -1, -1) for x in (before, after))
    _, height, width = left.shape
    gap = side_by_side_size(photograph)[0] - 2 * width
    ground = images.to_floats(torch.tensor(sheets.BACKGROUND[:channels], dtype=torch.uint8)).view(-1, 1, 1)
    pixels = ground.repeat(1, height, 2 * width + gap)
    pixels[..., :width], pixels[..., width + gap :] = left, right
    alpha = None
    if photograph.alpha is not None:
        turned = upright(photograph, photograph.alpha)
        alpha = torch.cat([turned, turned.new_full((height, gap), 255), turned], dim=1)
    exif, xmp = upright_exif(photograph.exif), upright_xmp(photograph.xmp)
    profile = photograph.icc_profile
    if channels != len(photograph.pixels) and profile[16:20] == b"GRAY":
        profile = b""
    changes: dict[str, Any] = {"exif": exif, "xmp": xmp, "orientation": 1, "icc_profile": profile}
    return dataclasses.replace(photograph, pixels=pixels, alpha=alpha, **changes)


def _notes(picture: Image.Image) -> list[str]:
    """Return notes on what of a file is lost; call it before decoding, while Pillow still knows the bit depth."""
    lost = note_on_frames(picture)
    notes = [lost] if lost else []
    if is_deep(picture) or ";16" in packing(picture):
        notes.append(f"{32 if picture.mode in ('I', 'F') else 16} bits a channel: written with 8")
    return notes


def _as_stored(picture: Image.Image, orientation: int) -> Image.Image:
    """Undo the rotation that Pillow applies when it decodes a TIFF."""
    if picture.format != "TIFF" or orientation == 1:
        return picture
    stored = picture.transpose(_UNDO_ROTATION[orientation])
    stored.info = picture.info
    return stored


def _to_gray_or_rgb(picture: Image.Image) -> Image.Image:
    """Convert to L, LA, RGB or RGBA, CMYK and Lab by way of sRGB; return deep gray unchanged."""
    is_clear = "transparency" in picture.info
    if is_deep(picture) or picture.mode in ("LA", "RGBA") or (picture.mode in ("L", "RGB") and not is_clear):
        return picture  # converting to the same mode would copy
    if picture.mode in ("La", "RGBa"):
        return picture.convert(picture.mode.upper())
    if picture.mode == "PA" or is_clear:
        return picture.convert("LA" if is_gray(picture) else "RGBA")
    if is_gray(picture):
        return picture.convert("L")
    return (to_srgb(picture) if picture.mode in ("CMYK", "LAB") else picture).convert("RGB")


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip of an image and the row after its last."""
    rows = max(1, STRIP_PIXELS // max(width, 1))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _floats(picture: Image.Image) -> Tensor:
    """Return the colors of an 8-bit image as (C, H, W) float32 in [-1, 1]."""
    channels = 1 if is_gray(picture) else 3
    floats = torch.empty(channels, picture.height, picture.width)
    for top, bottom in _strips(picture.height, picture.width):
        strip = np.array(picture.crop((0, top, picture.width, bottom)))
        levels = torch.from_numpy(strip).view(bottom - top, picture.width, -1)[..., :channels]
        floats[:, top:bottom] = images.to_floats(levels.permute(2, 0, 1))
    return floats


def _deep_floats(picture: Image.Image, depth: GrayDepth) -> Tensor:
    """Return a deep gray image as (1, H, W) float32 in [-1, 1], at full precision."""
    values = np.asarray(picture)
    white = depth.white(values)
    floats = torch.empty(1, *values.shape)
    for top, bottom in _strips(*values.shape):
        floats[0, top:bottom] = torch.from_numpy(depth.shades(values[top:bottom], white) * 2 - 1)
    return floats


def _picture(pixels: Tensor, alpha: Tensor | None, is_on_white: bool) -> Image.Image:
    """Return pixels (C, H, W) as a Pillow image, with alpha (H, W) as a channel or composited on white."""
    channels, height, width = pixels.shape
    mode = ("L" if channels == 1 else "RGB") + ("" if alpha is None or is_on_white else "A")
    canvas = Image.new(mode, (width, height))
    for top, bottom in _strips(height, width):
        levels = images.to_bytes(pixels[:, top:bottom]).cpu()
        if alpha is not None:
            opacity = alpha[None, top:bottom].cpu()
            if is_on_white:
                on_white = levels.int() * opacity + 255 * (255 - opacity.int())
                levels = ((on_white + 127) // 255).to(torch.uint8)
            else:
                levels = torch.cat([levels, opacity])
        strip = levels[0] if len(levels) == 1 else levels.permute(1, 2, 0).contiguous()
        canvas.paste(Image.fromarray(strip.numpy()), (0, top))
    return canvas
