"""A user's own photograph comes out as it went in, but for its pixels."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import left_behind
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

from colddiff_core import images
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.images import photograph

XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:title="\xc3\xa4"/></x:xmpmeta>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = PROFILE[:16] + b"GRAY" + PROFILE[20:]
SUFFIXES = [".png", ".jpg", ".webp", ".tif"]


def picture(mode: str = "RGB", width: int = 23, height: int = 14) -> Image.Image:
    """A smooth picture, so that a JPEG of it is near it."""
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


def again(path: Path, suffix: str = "") -> tuple[photograph.Photograph, Path]:
    """A photograph, and the file that it is written to again unchanged."""
    found, target = photograph.read(path), path.with_name(f"again{suffix or path.suffix}")
    assert photograph.write(found, found.pixels, target) == ()
    return found, target


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_pixels_survive_the_round_trip(tmp_path, mode, suffix):
    picture(mode).save(tmp_path / "a.png")
    found, target = again(tmp_path / "a.png", suffix)
    assert found.pixels.dtype == torch.float32
    assert found.pixels.shape == (1 if mode in ("L", "LA", "1") else 3, 14, 23)
    assert (found.alpha is not None) == mode.endswith("A")
    assert found.notes == ()
    assert opened(target).convert("RGBA").tobytes() == opened(tmp_path / "a.png").convert("RGBA").tobytes()
    assert left_behind(tmp_path) == ["a.png", target.name]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3000, 700)])
def test_any_size_and_every_level(tmp_path, size):
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(images.to_bytes(images.to_floats(levels)), levels)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", compress_level=1)
    found, target = again(tmp_path / "a.png")
    assert np.array_equal(np.asarray(opened(target)), noise)
    _, twice = again(target, ".PNG")
    assert twice.read_bytes() == target.read_bytes()
    assert torch.equal(found.pixels, images.read(tmp_path / "a.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_orientations_are_kept_and_shown(tmp_path, orientation, suffix):
    path = tmp_path / f"a{suffix}"
    picture().save(path, exif=exif_of(orientation), quality=95)
    found, target = again(path)
    assert found.orientation == orientation
    assert found.pixels.shape == (3, 14, 23)
    shown = images.to_pillow(photograph.upright(found, found.pixels))
    assert shown.tobytes() == ImageOps.exif_transpose(opened(path)).convert("RGB").tobytes()
    assert opened(target).size == opened(path).size
    assert photograph.read(target).orientation == orientation
    twins = photograph.beside(found, found.pixels, -found.pixels)
    assert photograph.write(twins, twins.pixels, tmp_path / f"twins{suffix}") == ()
    with Image.open(tmp_path / f"twins{suffix}") as both:
        assert both.getexif().get(0x0112, 1) == 1
        assert both.size == (2 * shown.width + images.GAP, shown.height)
        assert both.getexif()[0x010F] == "Maker"
    assert torch.equal(twins.pixels[:, :, : shown.width], photograph.upright(found, found.pixels))
    assert torch.equal(twins.pixels[:, :, -shown.width :], -photograph.upright(found, found.pixels))


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_a_tiff_of_any_kind_is_not_turned(tmp_path, mode, orientation):
    picture(mode).save(tmp_path / "a.tif", exif=exif_of(orientation))
    found, target = again(tmp_path / "a.tif", ".png")
    assert found.orientation == orientation
    assert opened(target).convert("RGBA").tobytes() == picture(mode).convert("RGBA").tobytes()


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_goes_where_there_is_a_place_for_it(tmp_path, source, suffix):
    path = tmp_path / f"a{source}"
    told = {"exif": exif_of(), "icc_profile": PROFILE, "dpi": (300, 300), "xmp": XMP}
    if source == ".png":
        told["pnginfo"] = PngImagePlugin.PngInfo()
        told["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    if source == ".tif":
        told["tiffinfo"] = Image.Exif()
        told["tiffinfo"].load(told.pop("exif"))
        told["tiffinfo"][700] = XMP
    picture().save(path, **told)
    found, target = again(path, suffix)
    assert photograph.read(target).xmp == XMP
    with Image.open(target) as file:  # not decoded: a TIFF's tags are changed then
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
    _, target = again(tmp_path / "a.png")
    assert opened(target).text == {"Title": "a day", "Long": "x" * 5000, "Author": "Łukasz"}
    assert opened(target).text["Author"].tkey == "Autor"
    picture().save(tmp_path / "b.jpg", comment=b"by hand", extra=b"\xff\xed\0\x13Photoshop 3.0\0abc")
    _, target = again(tmp_path / "b.jpg")
    assert opened(target).info["comment"] == b"by hand"
    assert dict(opened(target).applist)["APP13"] == b"Photoshop 3.0\0abc"
    _, target = again(tmp_path / "b.jpg", ".png")
    assert opened(target).text == {"Comment": "by hand"}


def test_exif_of_imagemagick_is_read(tmp_path):
    texts, data = PngImagePlugin.PngInfo(), exif_of(8)
    texts.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    picture().save(tmp_path / "a.png", pnginfo=texts)
    found, target = again(tmp_path / "a.png", ".jpg")
    assert found.orientation == 8
    assert opened(target).getexif()[0x0112] == 8


def test_a_jpeg_stays_near_and_keeps_its_colors(tmp_path):
    stripes = np.zeros((32, 32, 3), dtype=np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    Image.fromarray(stripes).save(tmp_path / "a.png")
    _, target = again(tmp_path / "a.png", ".jpeg")
    assert np.abs(np.asarray(opened(target)).astype(int) - stripes).max() < 16


def test_a_jpeg_has_no_transparency(tmp_path):
    picture("RGBA").save(tmp_path / "a.png")
    found = photograph.read(tmp_path / "a.png")
    notes = photograph.write(found, found.pixels, tmp_path / "b.jpg")
    assert notes == ("transparency: laid on white, for a JPEG has none",)
    wanted = images.read(tmp_path / "a.png")
    assert (images.read(tmp_path / "b.jpg") - wanted).abs().max() < 0.06


def test_palettes_with_transparency(tmp_path):
    paletted = picture().quantize(7)
    paletted.save(tmp_path / "a.png", transparency=2)
    paletted.save(tmp_path / "a.gif", transparency=2)
    picture("L").save(tmp_path / "gray.png", transparency=40)
    picture("1").save(tmp_path / "one.png", transparency=1)
    for name, channels in (("a.png", 3), ("a.gif", 3), ("gray.png", 1), ("one.png", 1)):
        found, target = again(tmp_path / name, ".png")
        assert found.pixels.shape[0] == channels
        assert set(found.alpha.unique().tolist()) == {0, 255}
        assert opened(target).convert("RGBA").tobytes() == opened(tmp_path / name).convert("RGBA").tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_gray_are_read_in_full(tmp_path, suffix):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    found = photograph.read(tmp_path / f"a{suffix}")
    assert found.notes == ("16 bits a channel: written with 8",)
    assert np.array_equal(((found.pixels[0].double() + 1) * 32767.5).round().numpy(), values)
    photograph.write(found, found.pixels, tmp_path / "b.png")
    assert np.abs(np.asarray(opened(tmp_path / "b.png")) - values / 257).max() <= 0.5


def test_sixteen_bits_of_color_are_told(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert photograph.read(tmp_path / "a.png").notes == ("16 bits a channel: written with 8",)


@pytest.mark.parametrize(("mode", "word"), [("CMYK", "CMYK"), ("LAB", "Lab")])
def test_colors_of_print_become_rgb(tmp_path, mode, word):
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        printed = ImageCms.profileToProfile(picture(), srgb, lab, outputMode="LAB")
    else:
        printed = picture().convert("CMYK")
    printed.save(tmp_path / "a.tif", icc_profile=b"x" * 200, exif=exif_of())
    found, target = again(tmp_path / "a.tif", ".png")
    assert found.notes == (f"{word}: written as RGB",)
    assert found.icc_profile == b""
    wanted = images.to_floats(torch.from_numpy(np.array(picture())).permute(2, 0, 1))
    assert (found.pixels - wanted).abs().mean() < 0.05  # Lab of 8 bits has few shades of blue
    assert "icc_profile" not in opened(target).info
    assert opened(target).getexif()[0x0112] == 6


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_several_pictures_the_first_is_taken(tmp_path, suffix):
    frames = [picture(), ImageOps.invert(picture())]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    found, _ = again(tmp_path / f"a{suffix}", ".png")
    wanted = "several pictures in the file: its first" if suffix == ".tif" else "an animation: its first frame"
    assert found.notes == (wanted,)
    assert torch.equal(found.pixels, images.read(tmp_path / f"a{suffix}", channels=3))


def test_a_telephones_jpeg_of_two_pictures(tmp_path):
    picture().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture()], exif=exif_of())
    found, target = again(tmp_path / "a.jpg")
    assert found.notes == ("several pictures in the file: its first",)
    assert opened(target).format == "JPEG"


def test_a_gray_photograph_may_be_given_color(tmp_path):
    picture("LA").save(tmp_path / "a.png", icc_profile=GRAY_PROFILE)
    found, target = again(tmp_path / "a.png")
    assert opened(target).info["icc_profile"] == GRAY_PROFILE
    colored = found.pixels.expand(3, -1, -1) * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1)
    for suffix in (".png", ".webp"):
        notes = photograph.write(found, colored, tmp_path / f"b{suffix}")
        assert notes == ("the color profile: left out, for it is not of these colors",)
        assert opened(tmp_path / f"b{suffix}").mode == "RGBA"
        assert "icc_profile" not in opened(tmp_path / f"b{suffix}").info
    both = photograph.beside(found, found.pixels, colored)
    assert both.pixels.shape[0] == 3
    assert both.alpha.shape == both.pixels.shape[1:]
    assert photograph.write(both, both.pixels, tmp_path / "both.png") == ()
    assert opened(tmp_path / "both.png").mode == "RGBA"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_truncation_gets_through_and_none_is_a_traceback(tmp_path, suffix):
    whole = io.BytesIO()
    told = {"exif": exif_of(), "icc_profile": PROFILE[:300], "lossless": True}
    picture("RGB", 40, 30).save(whole, format=Image.registered_extensions()[suffix], **told)
    cut = tmp_path / f"cut{suffix}"
    for length in range(0, len(whole.getvalue()), 41):
        cut.write_bytes(whole.getvalue()[:length])
        if length < 0.9 * len(whole.getvalue()):
            with pytest.raises(UsageError, match="cut") as refusal:
                photograph.read(cut)
            assert len(str(refusal.value).splitlines()) == 2
        else:  # the last bytes of a file may say nothing
            with contextlib.suppress(UsageError):
                photograph.read(cut)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("seed", range(25))
def test_damaged_metadata_is_left_out_or_kept(tmp_path, suffix, seed):
    rng = np.random.default_rng(seed)
    exif, xmp = bytearray(exif_of()[6:]), bytearray(XMP)
    for data in (exif, xmp):
        for place in rng.integers(0, len(data), 6):
            data[place] = rng.integers(256)
    told = {"exif": b"Exif\0\0" + bytes(exif), "icc_profile": rng.bytes(300), "xmp": bytes(xmp)}
    picture().save(tmp_path / "a.jpg", **told)
    found = photograph.read(tmp_path / "a.jpg")
    photograph.write(found, found.pixels, tmp_path / f"b{suffix}")
    assert photograph.read(tmp_path / f"b{suffix}").pixels.shape == (3, 14, 23)
    twins = photograph.beside(found, found.pixels, found.pixels)
    photograph.write(twins, twins.pixels, tmp_path / f"c{suffix}")


def test_metadata_too_large_for_a_jpeg_is_told(tmp_path):
    large = exif_of(maker_note=b"\7" * 70_000)
    picture().save(tmp_path / "a.png", exif=large)
    found = photograph.read(tmp_path / "a.png")
    (note,) = photograph.write(found, found.pixels, tmp_path / "b.jpg")
    assert note.startswith("exif of 70,")
    for suffix in (".png", ".webp", ".tif"):
        assert photograph.write(found, found.pixels, tmp_path / f"b{suffix}") == ()
        assert opened(tmp_path / f"b{suffix}").getexif()[0x0112] == 6 if suffix != ".tif" else True


def test_dots_per_inch_may_be_nonsense(tmp_path):
    for found in ((0, 0), (float("nan"), 1), (1e9, 1e9), "ab", 3, None, (72,)):
        assert photograph._dpi(found) is None
    assert photograph._dpi((72, 300.5)) == (72.0, 300.5)


def test_what_cannot_be_read_or_written_is_told(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="No such file"):
        photograph.read(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UsageError, match="not an image"):
        photograph.read(tmp_path / "text.png")
    picture().save(tmp_path / "a.png")
    found = photograph.read(tmp_path / "a.png")
    for name in ("b.gif", "b.bmp", "b"):
        with pytest.raises(UsageError, match="format"):
            photograph.write(found, found.pixels, tmp_path / name)
    with pytest.raises(UsageError, match=r"more than \.jpg holds"):
        photograph.write(found, torch.zeros(1, 1, 65_501), tmp_path / "b.jpg")
    with pytest.raises(MachineError, match="Cannot write"):
        photograph.write(found, found.pixels, tmp_path / "text.png" / "b.png")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid():
        with pytest.raises(MachineError, match="Cannot write"):
            photograph.write(found, found.pixels, tmp_path / "closed" / "b.png")
    assert left_behind(tmp_path) == ["a.png", "closed", "text.png"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match="too many pixels"):
        photograph.read(tmp_path / "a.png")


MEASURE = """
import sys
from pathlib import Path
import torch
from colddiff_core.images import photograph

def memory(line):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(line + ":")[2].split()[0]) / 1024

def start():
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    return memory("VmRSS")

photograph.write(photograph.read(Path(sys.argv[2])), torch.zeros(3, 14, 23), Path(sys.argv[3]))
before = start()
found = photograph.read(Path(sys.argv[1]))
floats = found.pixels.numel() * 4 / 2**20
read = memory("VmHWM") - before - floats
before = start()
photograph.write(found, found.pixels, Path(sys.argv[3]))
print(floats, read, memory("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's count of memory")
def test_a_large_photograph_is_held_once(tmp_path):
    """12 megapixels, in a process of its own: beside the floats less than they take, so never a second copy of them.

    Mostly it is 45 to 80 MB, a copy of 8 bits and some rows; but the allocator may give freed pages back late.
    """
    Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(tmp_path / "big.jpg")
    picture().save(tmp_path / "small.jpg")
    names = [str(tmp_path / name) for name in ("big.jpg", "small.jpg", "out.jpg")]
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    floats, on_the_way_in, on_the_way_out = map(float, told.stdout.split())
    assert floats == pytest.approx(137.3, abs=0.1)
    assert on_the_way_in < floats
    assert on_the_way_out < floats
