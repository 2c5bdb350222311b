"""A user's own photograph: pixels as they lie in the file, and all that is to be written again beside them.

`images` makes pictures alike, upright and in sRGB, to learn from. Here nothing of a picture is changed but its
pixels: size, orientation, color profile, transparency and metadata go out as they came in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from colddiff_core import images
from colddiff_core.files import whole

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
JPEG, TIFF = frozenset({".jpg", ".jpeg"}), frozenset({".tif", ".tiff"})
FILMS = frozenset({"GIF", "PNG", "WEBP", "AVIF"})  # formats whose further pictures are an animation's
STRIP = 1 << 20  # pixels that are converted at a time: a photograph is held once as floats and once by Pillow
GAP = 200  # of the pictures' width, how many times that of the gap between two
ORIENTATION = 0x0112
EXIF = b"Exif\0\0"
XMP = "XML:com.adobe.xmp"  # of a PNG's texts
RAW_EXIF = "Raw profile type exif"  # the same, as ImageMagick writes it
JPEG_ROOM = {"exif": 65_533, "xmp": 65_504, "comment": 65_533, "photoshop": 65_533, "icc_profile": 255 * 65_519}
# Of a TIFF's tags, those that tell of the photograph and not of how the file is laid out: titles, camera, software,
# dates, people, rights, ratings, and the tables of EXIF and GPS.
TELLING = frozenset(
    {269, 270, 271, 272, ORIENTATION, 285, 305, 306, 315, 316, 18246, 18249, 33432, 34665, 34853, *range(40091, 40096)}
)
# What Pillow raises for metadata that is not as it should be.
ODD = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, SyntaxError, OSError, struct.error)
_TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x: x.flip(-1),
    3: lambda x: x.flip(-2, -1),
    4: lambda x: x.flip(-2),
    5: lambda x: x.mT,
    6: lambda x: x.mT.flip(-1),
    7: lambda x: x.mT.flip(-2, -1),
    8: lambda x: x.mT.flip(-2),
}
_TURNED_BACK = {
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
    """A picture file's pixels and what is written again beside them.

    pixels: (C, H, W) float32 in [-1, 1], C = 1 or 3, not turned, in the profile's colors; alpha: (H, W) uint8, None
    where all is opaque; orientation: 1 to 8, as `exif` or `xmp` says. The rest is as the file has it, empty where it
    has none: `dpi` across and down, `texts` those of a PNG, `photoshop` a JPEG's captions (IPTC). `notes` says in
    words what could not be kept.
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


def read(path: Path) -> Photograph:
    """Return a photograph as it lies in its file; CMYK and Lab, which few programs restore, in sRGB.

    Raises UsageError as `images.read` does. Metadata that is damaged is left out or kept as it is.
    """
    with images.opened(path) as picture:
        notes = _notes(picture)
        told = _told(picture) if picture.format == "TIFF" else {}  # decoding turns a TIFF, and forgets that it did
        picture.load()
        told = told or _told(picture)
        own, profile = _in_three_colors(_as_stored(picture, told["orientation"])), picture.info.get("icc_profile")
        if own.mode != picture.mode and picture.mode in ("CMYK", "LAB"):
            notes.append(f"{'Lab' if picture.mode == 'LAB' else 'CMYK'}: written as RGB")
            profile = None
        alpha = np.array(own.getchannel("A")) if "A" in own.getbands() else None
        return Photograph(
            pixels=_deep_floats(own) if images.is_deep(own) else _floats(own),
            alpha=None if alpha is None else torch.from_numpy(alpha),
            icc_profile=profile if isinstance(profile, bytes) else b"",
            notes=tuple(notes),
            **told,
        )


def write(photograph: Photograph, pixels: Tensor, path: Path) -> tuple[str, ...]:
    """Write pixels in a photograph's place, with its transparency and metadata; return what had to be left out.

    PNG, TIFF and WebP are lossless, JPEG of quality 95 with colors of full size. The result is the words of `notes`
    that are new: transparency that JPEG has no room for, laid on white, and metadata. What a format has no place for
    at all is left out without a word.

    Shapes: pixels (C', H, W) in [-1, 1], H and W the photograph's, C' = 1 or 3 and not always its C.
    Raises UsageError for an unknown suffix or more pixels than the format holds, MachineError where the disk refuses.
    """
    images.check_suffix(path, SUFFIXES)
    height, width = pixels.shape[-2:]
    images.check_sides((width, height), path)
    suffix, notes = path.suffix.lower(), []
    is_on_white = photograph.alpha is not None and suffix in JPEG
    if is_on_white:
        notes.append("transparency: laid on white, for a JPEG has none")
    kept = {name: getattr(photograph, name) for name in ("exif", "icc_profile", "xmp", "comment", "photoshop")}
    colors = 3 if suffix == ".webp" else len(pixels)
    if colors != len(photograph.pixels) and kept["icc_profile"][16:20] == (b"GRAY" if colors == 3 else b"RGB "):
        kept["icc_profile"] = b""
        notes.append("the color profile: left out, for it is not of these colors")
    for name, room in JPEG_ROOM.items() if suffix in JPEG else ():
        if len(kept[name]) > room:
            notes.append(f"{name} of {len(kept[name]):,} bytes: left out, for a JPEG has room for {room:,}")
            kept[name] = b""
    picture = _picture(pixels, photograph.alpha, is_on_white)
    with whole(path) as draft:
        try:
            picture.save(draft, **_settings(photograph, kept, suffix))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, SyntaxError, struct.error):
            picture.save(draft, **_settings(photograph, kept | {"exif": b"", "xmp": b""}, suffix))
            notes.append("EXIF and XMP: left out, for they are damaged")
    return tuple(notes)


def upright(photograph: Photograph, pixels: Tensor) -> Tensor:
    """Return pixels (..., H, W), a photograph's or what was made of them, turned as its orientation says."""
    turn = _TURNS.get(photograph.orientation)
    return pixels if turn is None else turn(pixels)


def size_beside(photograph: Photograph) -> tuple[int, int]:
    """Return the width and height of what `beside` makes of a photograph."""
    height, width = upright(photograph, photograph.pixels[:1]).shape[-2:]
    return 2 * width + max(images.GAP, width // GAP), height


def beside(photograph: Photograph, before: Tensor, after: Tensor) -> Photograph:
    """Return a photograph of two pictures, the first on the left, upright and of full size, with a thin gap.

    Shapes: before and after (C, H, W) in [-1, 1], H and W the photograph's, each of 1 or 3 channels.
    """
    channels = max(len(before), len(after))
    left, right = (upright(photograph, x).expand(channels, -1, -1) for x in (before, after))
    _, height, width = left.shape
    gap = size_beside(photograph)[0] - 2 * width
    ground = images.to_floats(torch.tensor(images.BACKGROUND[:channels], dtype=torch.uint8)).view(-1, 1, 1)
    pixels = ground.repeat(1, height, 2 * width + gap)
    pixels[..., :width], pixels[..., width + gap :] = left, right
    alpha = None
    if photograph.alpha is not None:
        turned = upright(photograph, photograph.alpha)
        alpha = torch.cat([turned, turned.new_full((height, gap), 255), turned], dim=1)
    exif, xmp = _upright_exif(photograph.exif), _upright_xmp(photograph.xmp)
    profile = photograph.icc_profile
    if channels != len(photograph.pixels) and profile[16:20] == b"GRAY":
        profile = b""
    changes: dict[str, Any] = {"exif": exif, "xmp": xmp, "orientation": 1, "icc_profile": profile}
    return dataclasses.replace(photograph, pixels=pixels, alpha=alpha, **changes)


def _notes(picture: Image.Image) -> list[str]:
    """Return what of a file is not kept, in words; before it is decoded, when Pillow still knows how it is packed."""
    notes = []
    if getattr(picture, "is_animated", False):
        is_film = picture.format in FILMS
        notes.append("an animation: its first frame" if is_film else "several pictures in the file: its first")
    packing = " ".join(str(tile[3]) for tile in getattr(picture, "tile", ()))
    if images.is_deep(picture) or ";16" in packing:
        notes.append(f"{32 if picture.mode in ('I', 'F') else 16} bits a channel: written with 8")
    return notes


def _told(picture: Image.Image) -> dict[str, Any]:
    """Return a photograph's metadata by the fields of Photograph, but for its color profile."""
    info = picture.info
    texts = dict(picture.text) if isinstance(picture, PngImagePlugin.PngImageFile) else {}
    exif = info.get("exif", b"")
    orientation = 1
    with contextlib.suppress(*ODD):
        parsed = picture.getexif()
        orientation = int(parsed.get(ORIENTATION, 1))
        if not exif and (picture.format == "TIFF" or RAW_EXIF in texts):
            exif = _telling(parsed).tobytes()
            texts.pop(RAW_EXIF, None)
    xmp = texts.pop(XMP, "").encode("utf-8", "surrogateescape") or info.get("xmp", b"")
    comment = info.get("comment", b"")
    photoshop = [data for name, data in getattr(picture, "applist", ()) if name == "APP13"]
    return {
        "orientation": orientation if orientation in _TURNS else 1,
        "exif": b"" if not isinstance(exif, bytes) or not exif else EXIF + exif.removeprefix(EXIF),
        "xmp": xmp if isinstance(xmp, bytes) else b"",
        "dpi": _dpi(info.get("dpi")),
        "texts": texts,
        "comment": comment if isinstance(comment, bytes) else b"",
        "photoshop": photoshop[0] if len(photoshop) == 1 else b"",
    }


def _dpi(found: Any) -> tuple[float, float] | None:
    """Return dots per inch that every format can hold, None where a file says something else."""
    with contextlib.suppress(*ODD, ZeroDivisionError):
        across, down = (float(number) for number in found)
        if all(1 < number <= 65_535 for number in (across, down)):  # 1 is Pillow's word for a TIFF that says nothing
            return across, down
    return None


def _telling(exif: Image.Exif) -> Image.Exif:
    """Return EXIF without the tags that say how a TIFF is laid out."""
    for tag in [tag for tag in exif if tag not in TELLING]:
        del exif[tag]
    return exif


def _as_stored(picture: Image.Image, orientation: int) -> Image.Image:
    """Return a picture that was decoded as it lies in its file: Pillow turns a TIFF upright."""
    if picture.format != "TIFF" or orientation == 1:
        return picture
    stored = picture.transpose(_TURNED_BACK[orientation])
    stored.info = picture.info
    return stored


def _in_three_colors(picture: Image.Image) -> Image.Image:
    """Return a picture as L, LA, RGB or RGBA, or deep gray as it is: palettes laid out, CMYK and Lab in sRGB."""
    is_clear = "transparency" in picture.info
    if images.is_deep(picture) or picture.mode in ("LA", "RGBA") or (picture.mode in ("L", "RGB") and not is_clear):
        return picture  # a conversion to the same would be a copy
    if picture.mode in ("La", "RGBa"):
        return picture.convert(picture.mode.upper())
    if picture.mode == "PA" or is_clear:
        return picture.convert("LA" if images.is_gray(picture) else "RGBA")
    if images.is_gray(picture):
        return picture.convert("L")
    return (images.in_srgb(picture) if picture.mode in ("CMYK", "LAB") else picture).convert("RGB")


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip of a picture, and the row behind its last."""
    rows = max(1, STRIP // max(width, 1))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _floats(picture: Image.Image) -> Tensor:
    """Return the colors of an 8-bit picture: (C, H, W) float32 in [-1, 1]."""
    channels = 1 if images.is_gray(picture) else 3
    made = torch.empty(channels, picture.height, picture.width)
    for top, bottom in _strips(picture.height, picture.width):
        strip = np.array(picture.crop((0, top, picture.width, bottom)))
        levels = torch.from_numpy(strip).view(bottom - top, picture.width, -1)[..., :channels]
        made[:, top:bottom] = images.to_floats(levels.permute(2, 0, 1))
    return made


def _deep_floats(picture: Image.Image) -> Tensor:
    """Return deep gray: (1, H, W) float32 in [-1, 1], of all the bits that float32 holds."""
    values = np.asarray(picture)
    white = images.white_of(values)
    made = torch.empty(1, *values.shape)
    for top, bottom in _strips(*values.shape):
        made[0, top:bottom] = torch.from_numpy(images.shares_of(values[top:bottom], white) * 2 - 1)
    return made


def _picture(pixels: Tensor, alpha: Tensor | None, is_on_white: bool) -> Image.Image:
    """Return pixels (C, H, W) as a Pillow picture, alpha (H, W) beside the colors or, on white, worked into them."""
    channels, height, width = pixels.shape
    mode = ("L" if channels == 1 else "RGB") + ("" if alpha is None or is_on_white else "A")
    canvas = Image.new(mode, (width, height))
    for top, bottom in _strips(height, width):
        levels = images.to_bytes(pixels[:, top:bottom]).cpu()
        if alpha is not None:
            share = alpha[None, top:bottom].cpu()
            if is_on_white:
                on_white = levels.int() * share + 255 * (255 - share.int())
                levels = ((on_white + 127) // 255).to(torch.uint8)
            else:
                levels = torch.cat([levels, share])
        strip = levels[0] if len(levels) == 1 else levels.permute(1, 2, 0).contiguous()
        canvas.paste(Image.fromarray(strip.numpy()), (0, top))
    return canvas


def _settings(photograph: Photograph, kept: dict[str, bytes], suffix: str) -> dict[str, Any]:
    """Return what Pillow's writer of a format is to be told: how to pack, and the metadata that it has a place for."""
    told: dict[str, Any] = {name: kept[name] for name in ("exif", "icc_profile", "xmp") if kept[name]}
    if photograph.dpi is not None:
        told["dpi"] = photograph.dpi
    if suffix == ".png":
        return told | {"pnginfo": _png_texts(photograph.texts, kept["xmp"], kept["comment"])}
    if suffix == ".webp":
        return told | {"lossless": True, "exact": True}  # exact: colors under full transparency are kept
    if suffix in TIFF:
        # Not packed, for Pillow's packed TIFFs have no tables of EXIF.
        exif = Image.Exif()
        if kept["exif"]:
            exif.load(kept["exif"])
        exif = _telling(exif)
        if kept["xmp"]:
            exif[700] = kept["xmp"]
        return told | {"exif": exif}
    if kept["comment"]:
        told["comment"] = kept["comment"]
    if kept["photoshop"]:
        told["extra"] = b"\xff\xed" + struct.pack(">H", len(kept["photoshop"]) + 2) + kept["photoshop"]
    return told | {"quality": 95, "subsampling": 0}


def _png_texts(texts: dict[str, str], xmp: bytes, comment: bytes) -> PngImagePlugin.PngInfo:
    made = PngImagePlugin.PngInfo()
    if comment and "Comment" not in texts:
        made.add_text("Comment", comment.decode("utf-8", "replace"))
    for key, text in texts.items():
        made.add_text(key, text)
    if xmp:
        made.add_itxt(XMP, xmp.decode("utf-8", "replace"))
    return made


def _upright_exif(exif: bytes) -> bytes:
    """Return EXIF whose orientation is 1, every other byte as it was; one that cannot be followed is left as it is."""
    tiff = bytearray(exif.removeprefix(EXIF))
    order = "<" if tiff[:2] == b"II" else ">"
    with contextlib.suppress(struct.error):
        (table,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, table)
        for entry in range(table + 2, table + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == ORIENTATION:
                struct.pack_into(f"{order}H" if kind == 3 else f"{order}I", tiff, entry + 8, 1)
    return EXIF + bytes(tiff) if exif else b""


def _upright_xmp(xmp: bytes) -> bytes:
    return re.sub(rb'(tiff:Orientation(?:="|>))[0-9]', rb"\g<1>1", xmp)
