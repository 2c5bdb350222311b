"""A photograph keeps everything but its pixels."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import left_behind
from PIL import Image, ImageCms, ImageOps
from sample_photographs import GRAY_PROFILE, PROFILE, SUFFIXES, exif_of, opened, picture, round_trip

from colddiff_core import images
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.images import photograph, sheets


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_pixels_survive_the_round_trip(tmp_path, mode, suffix):
    picture(mode).save(tmp_path / "a.png")
    found, target = round_trip(tmp_path / "a.png", suffix)
    assert found.pixels.dtype == torch.float32
    assert found.pixels.shape == (1 if mode in ("L", "LA", "1") else 3, 14, 23)
    assert (found.alpha is not None) == mode.endswith("A")
    assert found.notes == ()
    assert opened(target).convert("RGBA").tobytes() == opened(tmp_path / "a.png").convert("RGBA").tobytes()
    assert left_behind(tmp_path) == ["a.png", target.name]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (1700, 700)])  # the last is more than a strip
def test_any_size_and_every_level(tmp_path, size):
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(images.to_bytes(images.to_floats(levels)), levels)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", compress_level=1)
    found, target = round_trip(tmp_path / "a.png")
    assert np.array_equal(np.asarray(opened(target)), noise)
    _, twice = round_trip(target, ".PNG")
    assert twice.read_bytes() == target.read_bytes()
    assert torch.equal(found.pixels, images.read(tmp_path / "a.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_orientations_are_kept_and_shown(tmp_path, orientation, suffix):
    path = tmp_path / f"a{suffix}"
    picture().save(path, exif=exif_of(orientation), quality=95)
    found, target = round_trip(path)
    assert found.orientation == orientation
    assert found.pixels.shape == (3, 14, 23)
    shown = images.to_pillow(photograph.upright(found, found.pixels))
    assert shown.tobytes() == ImageOps.exif_transpose(opened(path)).convert("RGB").tobytes()
    assert opened(target).size == opened(path).size
    assert photograph.read(target).orientation == orientation
    twins = photograph.side_by_side(found, found.pixels, -found.pixels)
    assert photograph.write(twins, twins.pixels, tmp_path / f"twins{suffix}") == ()
    with Image.open(tmp_path / f"twins{suffix}") as both:
        assert both.getexif().get(0x0112, 1) == 1
        assert both.size == (2 * shown.width + sheets.GAP_PIXELS, shown.height)
        assert both.getexif()[0x010F] == "Maker"
    assert torch.equal(twins.pixels[:, :, : shown.width], photograph.upright(found, found.pixels))
    assert torch.equal(twins.pixels[:, :, -shown.width :], -photograph.upright(found, found.pixels))


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_a_tiff_of_any_kind_is_not_turned(tmp_path, mode, orientation):
    picture(mode).save(tmp_path / "a.tif", exif=exif_of(orientation))
    found, target = round_trip(tmp_path / "a.tif", ".png")
    assert found.orientation == orientation
    assert opened(target).convert("RGBA").tobytes() == picture(mode).convert("RGBA").tobytes()


def test_a_jpeg_stays_near_and_keeps_its_colors(tmp_path):
    stripes = np.zeros((32, 32, 3), dtype=np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    Image.fromarray(stripes).save(tmp_path / "a.png")
    _, target = round_trip(tmp_path / "a.png", ".jpeg")
    assert np.abs(np.asarray(opened(target)).astype(int) - stripes).max() < 16


def test_a_jpeg_has_no_transparency(tmp_path):
    picture("RGBA").save(tmp_path / "a.png")
    found = photograph.read(tmp_path / "a.png")
    notes = photograph.write(found, found.pixels, tmp_path / "b.jpg")
    assert notes == ("transparency: laid on white, a JPEG has none",)
    expected = images.read(tmp_path / "a.png")
    assert (images.read(tmp_path / "b.jpg") - expected).abs().max() < 0.06


def test_palettes_with_transparency(tmp_path):
    paletted = picture().quantize(7)
    paletted.save(tmp_path / "a.png", transparency=2)
    paletted.save(tmp_path / "a.gif", transparency=2)
    picture("L").save(tmp_path / "gray.png", transparency=40)
    picture("1").save(tmp_path / "one.png", transparency=1)
    for name, channels in (("a.png", 3), ("a.gif", 3), ("gray.png", 1), ("one.png", 1)):
        found, target = round_trip(tmp_path / name, ".png")
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


def test_sixteen_bits_of_color_are_noted(tmp_path):
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
def test_print_colors_become_rgb(tmp_path, mode, word):
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        printed = ImageCms.profileToProfile(picture(), srgb, lab, outputMode="LAB")
    else:
        printed = picture().convert("CMYK")
    printed.save(tmp_path / "a.tif", icc_profile=b"x" * 200, exif=exif_of())
    found, target = round_trip(tmp_path / "a.tif", ".png")
    assert found.notes == (f"{word}: written as RGB",)
    assert found.icc_profile == b""
    expected = images.to_floats(torch.from_numpy(np.array(picture())).permute(2, 0, 1))
    assert (found.pixels - expected).abs().mean() < 0.05  # Lab of 8 bits has few shades of blue
    assert "icc_profile" not in opened(target).info
    assert opened(target).getexif()[0x0112] == 6


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_the_first_of_several_images_is_read(tmp_path, suffix):
    frames = [picture(), ImageOps.invert(picture())]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    found, _ = round_trip(tmp_path / f"a{suffix}", ".png")
    expected = "several images in the file: first one only" if suffix == ".tif" else "animation: first frame only"
    assert found.notes == (expected,)
    assert torch.equal(found.pixels, images.read(tmp_path / f"a{suffix}", channels=3))


def test_a_phone_jpeg_with_two_images(tmp_path):
    picture().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture()], exif=exif_of())
    found, target = round_trip(tmp_path / "a.jpg")
    assert found.notes == ()  # the second image is a preview or a gain map
    assert opened(target).format == "JPEG"


def test_a_gray_photograph_can_be_written_in_color(tmp_path):
    picture("LA").save(tmp_path / "a.png", icc_profile=GRAY_PROFILE)
    found, target = round_trip(tmp_path / "a.png")
    assert opened(target).info["icc_profile"] == GRAY_PROFILE
    colored = found.pixels.expand(3, -1, -1) * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1)
    for suffix in (".png", ".webp"):
        notes = photograph.write(found, colored, tmp_path / f"b{suffix}")
        assert notes == ("color profile: left out, it is for other channels",)
        assert opened(tmp_path / f"b{suffix}").mode == "RGBA"
        assert "icc_profile" not in opened(tmp_path / f"b{suffix}").info
    both = photograph.side_by_side(found, found.pixels, colored)
    assert both.pixels.shape[0] == 3
    assert both.alpha.shape == both.pixels.shape[1:]
    assert photograph.write(both, both.pixels, tmp_path / "both.png") == ()
    assert opened(tmp_path / "both.png").mode == "RGBA"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_photographs_are_refused_without_a_traceback(tmp_path, suffix):
    whole = io.BytesIO()
    options = {"exif": exif_of(), "icc_profile": PROFILE[:300], "lossless": True}
    picture("RGB", 40, 30).save(whole, format=Image.registered_extensions()[suffix], **options)
    cut = tmp_path / f"cut{suffix}"
    for length in range(0, len(whole.getvalue()), 41):
        cut.write_bytes(whole.getvalue()[:length])
        if length < 0.9 * len(whole.getvalue()):
            with pytest.raises(UsageError, match="cut") as refusal:
                photograph.read(cut)
            assert len(str(refusal.value).splitlines()) == 2
        else:  # the last bytes of a file may carry no data
            with contextlib.suppress(UsageError):
                photograph.read(cut)


def test_unreadable_and_unwritable_files_are_reported(tmp_path, monkeypatch):
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
    monkeypatch.setattr(photograph, "MOST_PIXELS", 100)
    with pytest.raises(UsageError, match="too many pixels"):
        photograph.read(tmp_path / "a.png")


def megabytes(line: str) -> float:
    """Return a line of this process's /proc status, such as VmRSS, in MB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(line + ":")[2].split()[0]) / 1024


def reset_peak() -> float:
    """Reset this process's peak memory; return what it uses now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")


def print_extra_memory(big: Path, small: Path, out: Path) -> int:
    """Print, in MB, the size of a photograph's floats and the extra memory that reading and writing it takes."""
    photograph.write(photograph.read(small), torch.zeros(3, 14, 23), out)
    before = reset_peak()
    found = photograph.read(big)
    floats = found.pixels.numel() * 4 / 2**20
    read = megabytes("VmHWM") - before - floats
    before = reset_peak()
    photograph.write(found, found.pixels, out)
    print(floats, read, megabytes("VmHWM") - before)  # noqa: T201
    return 0


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's memory counters")
def test_a_large_photograph_is_held_once(tmp_path):
    """Read and write 12 megapixels in a process: the extra memory stays below a second copy of the floats.

    It is usually 45 to 80 MB, an 8-bit copy and some rows; the allocator may return freed pages late.
    """
    Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(tmp_path / "big.jpg")
    picture().save(tmp_path / "small.jpg")
    paths = [tmp_path / name for name in ("big.jpg", "small.jpg", "out.jpg")]
    out, err = (process := processes.fork(functools.partial(print_extra_memory, *paths))).communicate()
    assert process.returncode == 0, err
    floats, extra_read, extra_write = map(float, out.split())
    assert floats == pytest.approx(137.3, abs=0.1)
    assert extra_read < floats
    assert extra_write < floats
