"""The metadata of a photograph is kept, and damaged or oversized metadata is left out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from sample_photographs import PROFILE, SUFFIXES, XMP, exif_of, opened, picture, round_trip

from colddiff_core.images import photograph, photograph_metadata


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_is_kept_across_formats(tmp_path, source, suffix):
    path = tmp_path / f"a{source}"
    options = {"exif": exif_of(), "icc_profile": PROFILE, "dpi": (300, 300), "xmp": XMP}
    if source == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if source == ".tif":
        options["tiffinfo"] = Image.Exif()
        options["tiffinfo"].load(options.pop("exif"))
        options["tiffinfo"][700] = XMP
    picture().save(path, **options)
    found, target = round_trip(path, suffix)
    assert photograph.read(target).xmp == XMP
    with Image.open(target) as file:  # not decoded: decoding changes a TIFF's tags
        assert file.info["icc_profile"] == PROFILE
        assert file.info["xmp"] == XMP
        if ".webp" not in (source, suffix):
            assert file.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        exif = file.getexif()
        assert exif[0x010F] == "Maker"
        assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(1 / 250)
        assert exif.get_ifd(0x8769)[0x927C] == b"\1\2\3" * 9
        assert exif.get_ifd(0x8825)[1] == "N"
    if ".tif" not in (source, suffix):
        assert photograph.read(target).exif == found.exif == exif_of()


def test_texts_and_comments_are_kept(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a day")
    texts.add_text("Long", "x" * 5000, zip=True)
    texts.add_itxt("Author", "Łukasz", lang="pl", tkey="Autor")
    picture().save(tmp_path / "a.png", pnginfo=texts)
    _, target = round_trip(tmp_path / "a.png")
    assert opened(target).text == {"Title": "a day", "Long": "x" * 5000, "Author": "Łukasz"}
    assert opened(target).text["Author"].tkey == "Autor"
    picture().save(tmp_path / "b.jpg", comment=b"by hand", extra=b"\xff\xed\0\x13Photoshop 3.0\0abc")
    _, target = round_trip(tmp_path / "b.jpg")
    assert opened(target).info["comment"] == b"by hand"
    assert dict(opened(target).applist)["APP13"] == b"Photoshop 3.0\0abc"
    _, target = round_trip(tmp_path / "b.jpg", ".png")
    assert opened(target).text == {"Comment": "by hand"}


def test_exif_of_imagemagick_is_read(tmp_path):
    texts, data = PngImagePlugin.PngInfo(), exif_of(8)
    texts.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    picture().save(tmp_path / "a.png", pnginfo=texts)
    found, target = round_trip(tmp_path / "a.png", ".jpg")
    assert found.orientation == 8
    assert opened(target).getexif()[0x0112] == 8


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("seed", range(25))
def test_damaged_metadata_breaks_nothing(tmp_path, suffix, seed):
    rng = np.random.default_rng(seed)
    exif, xmp = bytearray(exif_of()[6:]), bytearray(XMP)
    for data in (exif, xmp):
        for place in rng.integers(0, len(data), 6):
            data[place] = rng.integers(256)
    options = {"exif": b"Exif\0\0" + bytes(exif), "icc_profile": rng.bytes(300), "xmp": bytes(xmp)}
    picture().save(tmp_path / "a.jpg", **options)
    found = photograph.read(tmp_path / "a.jpg")
    photograph.write(found, found.pixels, tmp_path / f"b{suffix}")
    assert photograph.read(tmp_path / f"b{suffix}").pixels.shape == (3, 14, 23)
    twins = photograph.side_by_side(found, found.pixels, found.pixels)
    photograph.write(twins, twins.pixels, tmp_path / f"c{suffix}")


def test_metadata_too_large_for_a_jpeg_is_noted(tmp_path):
    large = exif_of(maker_note=b"\7" * 70_000)
    picture().save(tmp_path / "a.png", exif=large)
    found = photograph.read(tmp_path / "a.png")
    (note,) = photograph.write(found, found.pixels, tmp_path / "b.jpg")
    assert note.startswith("exif of 70,")
    for suffix in (".png", ".webp", ".tif"):
        assert photograph.write(found, found.pixels, tmp_path / f"b{suffix}") == ()
        assert opened(tmp_path / f"b{suffix}").getexif()[0x0112] == 6 if suffix != ".tif" else True


def test_nonsense_dots_per_inch_are_ignored(tmp_path):
    for value in ((0, 0), (float("nan"), 1), (1e9, 1e9), "ab", 3, None, (72,)):
        assert photograph_metadata._dpi(value) is None
    assert photograph_metadata._dpi((72, 300.5)) == (72.0, 300.5)
