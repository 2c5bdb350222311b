"""The metadata of a photograph: read from Pillow, made upright, passed to Pillow's writers."""

from __future__ import annotations

import contextlib
import re
import struct
from typing import Any

from PIL import Image, PngImagePlugin

from colddiff_core.images.encoding import pixel_options

TIFF = frozenset({".tif", ".tiff"})
ORIENTATION = 0x0112
EXIF = b"Exif\0\0"
XMP = "XML:com.adobe.xmp"  # key of a PNG text chunk
RAW_EXIF = "Raw profile type exif"  # key of EXIF in a PNG text chunk, as ImageMagick writes it
JPEG_ROOM_BYTES = {"exif": 65_533, "xmp": 65_504, "comment": 65_533, "photoshop": 65_533, "icc_profile": 255 * 65_519}
# TIFF tags that describe the photograph rather than the file's layout: titles, camera, software, dates, people, rights,
# ratings, and the EXIF and GPS tables.
DESCRIPTIVE_TAGS = frozenset(
    {269, 270, 271, 272, ORIENTATION, 285, 305, 306, 315, 316, 18246, 18249, 33432, 34665, 34853, *range(40091, 40096)}
)
# What Pillow raises for malformed metadata.
MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    SyntaxError,
    OSError,
    struct.error,
)


def read_metadata(picture: Image.Image) -> dict[str, Any]:
    """Return the metadata fields of `Photograph` for an image file, except the color profile."""
    info = picture.info
    texts = dict(picture.text) if isinstance(picture, PngImagePlugin.PngImageFile) else {}
    exif = info.get("exif", b"")
    orientation = 1
    with contextlib.suppress(*MALFORMED):
        parsed = picture.getexif()
        orientation = int(parsed.get(ORIENTATION, 1))
        if not exif and (picture.format == "TIFF" or RAW_EXIF in texts):
            exif = _drop_layout_tags(parsed).tobytes()
            texts.pop(RAW_EXIF, None)
    xmp = texts.pop(XMP, "").encode("utf-8", "surrogateescape") or info.get("xmp", b"")
    comment = info.get("comment", b"")
    photoshop = [data for name, data in getattr(picture, "applist", ()) if name == "APP13"]
    return {
        "orientation": orientation if 1 <= orientation <= 8 else 1,
        "exif": b"" if not isinstance(exif, bytes) or not exif else EXIF + exif.removeprefix(EXIF),
        "xmp": xmp if isinstance(xmp, bytes) else b"",
        "dpi": _dpi(info.get("dpi")),
        "texts": texts,
        "comment": comment if isinstance(comment, bytes) else b"",
        "photoshop": photoshop[0] if len(photoshop) == 1 else b"",
    }


def _dpi(value: Any) -> tuple[float, float] | None:
    """Return (horizontal, vertical) dots per inch if every format can hold them, else None."""
    with contextlib.suppress(*MALFORMED, ZeroDivisionError):
        across, down = (float(number) for number in value)
        if all(1 < number <= 65_535 for number in (across, down)):  # Pillow gives 1 if a TIFF has none
            return across, down
    return None


def _drop_layout_tags(exif: Image.Exif) -> Image.Exif:
    """Delete the tags that describe the layout of a TIFF."""
    for tag in [tag for tag in exif if tag not in DESCRIPTIVE_TAGS]:
        del exif[tag]
    return exif


def save_options(
    kept: dict[str, bytes], dpi: tuple[float, float] | None, texts: dict[str, str], suffix: str
) -> dict[str, Any]:
    """Return the arguments of Pillow's `save` for a format: compression, and the metadata that it can hold.

    `kept` has the bytes by the names of `Photograph`'s fields, empty for none.
    """
    options: dict[str, Any] = {name: kept[name] for name in ("exif", "icc_profile", "xmp") if kept[name]}
    if dpi is not None:
        options["dpi"] = dpi
    if suffix == ".png":
        return options | {"pnginfo": _png_texts(texts, kept["xmp"], kept["comment"])}
    if suffix == ".webp":
        return options | pixel_options(suffix)
    if suffix in TIFF:
        # Uncompressed: Pillow's compressed TIFFs lose the EXIF tables.
        exif = Image.Exif()
        if kept["exif"]:
            exif.load(kept["exif"])
        exif = _drop_layout_tags(exif)
        if kept["xmp"]:
            exif[700] = kept["xmp"]
        return options | {"exif": exif}
    if kept["comment"]:
        options["comment"] = kept["comment"]
    if kept["photoshop"]:
        options["extra"] = b"\xff\xed" + struct.pack(">H", len(kept["photoshop"]) + 2) + kept["photoshop"]
    return options | pixel_options(suffix)


def _png_texts(texts: dict[str, str], xmp: bytes, comment: bytes) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if comment and "Comment" not in texts:
        info.add_text("Comment", comment.decode("utf-8", "replace"))
    for key, text in texts.items():
        info.add_text(key, text)
    if xmp:
        info.add_itxt(XMP, xmp.decode("utf-8", "replace"))
    return info


def upright_exif(exif: bytes) -> bytes:
    """Return EXIF with orientation 1 and every other byte unchanged; malformed EXIF is returned unchanged."""
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


def upright_xmp(xmp: bytes) -> bytes:
    """Return XMP with orientation 1 and every other byte unchanged."""
    return re.sub(rb'(tiff:Orientation(?:="|>))[0-9]', rb"\g<1>1", xmp)
