"""Small photographs with metadata, for the tests of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from colddiff_core.images import photograph

XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:title="\xc3\xa4"/></x:xmpmeta>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = PROFILE[:16] + b"GRAY" + PROFILE[20:]
SUFFIXES = [".png", ".jpg", ".webp", ".tif"]


def picture(mode: str = "RGB", width: int = 23, height: int = 14) -> Image.Image:
    """Return a smooth image, which a JPEG changes little."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([255 * x / width, 255 * y / height, 255 - 200 * x / width], -1).astype(np.uint8)
    made = Image.fromarray(values).convert(mode.removesuffix("A"))
    if mode.endswith("A"):
        made.putalpha(Image.fromarray((x * 11 % 256).astype(np.uint8)))
    return made


def exif_of(orientation: int = 6, maker_note: bytes = b"\1\2\3" * 9) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x8298] = "Maker", orientation, "Somebody"
    exif.get_ifd(0x8769)[0x829A] = IFDRational(1, 250)
    exif.get_ifd(0x8769)[0x927C] = maker_note
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def opened(path: Path) -> Image.Image:
    with Image.open(path) as found:
        found.load()
        return found


def round_trip(path: Path, suffix: str = "") -> tuple[photograph.Photograph, Path]:
    """Return a photograph and the path of an unchanged copy of it."""
    found, target = photograph.read(path), path.with_name(f"again{suffix or path.suffix}")
    assert photograph.write(found, found.pixels, target) == ()
    return found, target
