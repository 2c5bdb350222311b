"""Gray of every depth and every mode of Pillow gives the shades that its file means."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from colddiff_core import images
from colddiff_core.images import codec, photograph
from colddiff_core.images.depth import GrayDepth

SHADES = np.linspace(0, 1, 12).reshape(3, 4)  # the darkest is black, the brightest white
LEVELS = (SHADES * 255).round().astype(np.uint8)


def save(path: Path, values: np.ndarray, *, sample_format: int = 1, photometric: int = 1, order: str = "<") -> Path:
    """Write values (H, W) as an uncompressed gray TIFF of any type."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = {256: width, 257: height, 258: values.dtype.itemsize * 8, 259: 1, 262: photometric, 277: 1, 278: height}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    path.write_bytes(head + entries + struct.pack(f"{order}I", 0) + data)
    return path


def read_both(path: Path) -> list[np.ndarray]:
    """Return an image file's levels as the library's two ways to read give them: gray, (H, W) uint8."""
    found = images.read(path), photograph.read(path).pixels
    assert [len(x) for x in found] == [1, 1]
    return [images.to_bytes(x)[0].numpy() for x in found]


@pytest.mark.parametrize(
    ("kind", "white", "sample_format"),
    [
        ("uint16", 255, 1), ("uint16", 4095, 1), ("uint16", 65535, 1),
        ("int16", 255, 2), ("int16", 4095, 2), ("int16", 32767, 2),
        ("int32", 255, 2), ("int32", 4095, 2), ("int32", 65535, 2), ("int32", 2**31 - 1, 2),
        ("uint32", 255, 1), ("uint32", 65535, 1), ("uint32", 2**32 - 1, 1),
        ("float32", 1, 3), ("float32", 255, 3), ("float32", 65535, 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("order", ["<", ">"])
def test_white_of_a_tiff_is_the_smallest_usual_one_that_holds_its_values(tmp_path, kind, white, sample_format, order):
    if kind == "uint32" and order == ">":
        pytest.skip("Pillow opens no such TIFF")
    path = save(tmp_path / "a.tif", (SHADES * white).astype(kind), sample_format=sample_format, order=order)
    for levels in read_both(path):
        assert np.abs(levels.astype(int) - LEVELS).max() <= (white <= 4095)  # rounded down when made


def test_values_out_of_range_are_black_or_white(tmp_path):
    signed = np.array([[-30000, -1, 0, 32767]], np.int16)
    for levels in read_both(save(tmp_path / "signed.tif", signed, sample_format=2)):
        assert levels.tolist() == [[0, 0, 0, 255]]
    bright = np.array([[-1, np.nan, 0.5, 1, 3]], np.float32)  # overexposed: not 0 to 255
    for levels in read_both(save(tmp_path / "bright.tif", bright, sample_format=3)):
        assert levels.tolist() == [[0, 0, 128, 255, 255]]


def test_a_tiff_whose_white_is_zero_is_no_negative(tmp_path):
    values = ((1 - SHADES) * 65535).astype(np.uint16)
    for levels in read_both(save(tmp_path / "a.tif", values, photometric=0)):
        assert np.abs(levels.astype(int) - LEVELS).max() <= 1


def test_a_dark_png_of_16_bits_stays_dark(tmp_path):
    """Its format says what white is, so its brightest pixel does not matter."""
    Image.fromarray(np.array([[0, 255, 4095]], np.uint16)).save(tmp_path / "a.png")
    for levels in read_both(tmp_path / "a.png"):
        assert levels.tolist() == [[0, 1, 16]]


def png(path: Path, values: np.ndarray, color: int) -> Path:
    """Write values (H, W, C) uint16 as a PNG of 16 bits."""
    import zlib

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color, 0, 0, 0)]
    chunks += [b"IDAT" + zlib.compress(rows), b"IEND"]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    return path


def test_gray_with_alpha_of_16_bits_is_gray(tmp_path):
    gray, alpha = LEVELS.astype(np.uint16) * 257, np.full((3, 4), 65535, np.uint16)
    alpha[0] = 0
    path = png(tmp_path / "a.png", np.stack([gray, alpha], -1), color=4)
    assert images.count_channels(path) == 1
    found = photograph.read(path)
    assert found.pixels.shape == (1, 3, 4)
    assert (images.to_bytes(found.pixels)[0].numpy() == LEVELS).all()
    assert found.alpha.tolist() == [[0] * 4, [255] * 4, [255] * 4]
    assert found.notes == ("16 bits a channel: written with 8",)
    on_white = images.to_bytes(images.read(path))
    assert on_white.shape == (1, 3, 4)
    assert on_white[0, 0].tolist() == [255] * 4
    assert (on_white[0, 1:].numpy() == LEVELS[1:]).all()
    photograph.write(found, found.pixels, tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as written:
        assert written.mode == "LA"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_color_of_16_bits_is_read_with_8(tmp_path, suffix):
    values = np.stack([LEVELS, LEVELS[::-1], LEVELS[:, ::-1]], -1).astype(np.uint16) * 257
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        png(path, values, color=2)
    else:
        data = values.astype("<u2").tobytes()
        bits = 8 + 2 + 12 * 10 + 4
        entries = [(256, 4, 1, 4), (257, 4, 1, 3), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2)]
        entries += [(273, 4, 1, bits + 6), (277, 3, 1, 3), (278, 4, 1, 3), (279, 4, 1, len(data)), (284, 3, 1, 1)]
        table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        path.write_bytes(
            b"II*\0" + struct.pack("<IH", 8, 10) + table + bytes(4) + struct.pack("<HHH", 16, 16, 16) + data
        )
    for x in (images.read(path), photograph.read(path).pixels):
        assert torch.equal(images.to_bytes(x).permute(1, 2, 0), torch.from_numpy(values // 257).to(torch.uint8))


def colors(mode: str) -> Image.Image:
    """Return a smooth picture of a mode, opaque, without a file."""
    picture = Image.fromarray(np.stack([LEVELS, LEVELS[::-1], LEVELS], -1))
    if mode in ("La", "RGBa"):
        return picture.convert(mode.upper()).convert(mode)
    if mode == "PA":
        return picture.convert("P").convert("PA")
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "channels", "off"),
    [
        ("1", 1, 255), ("L", 1, 0), ("LA", 1, 0), ("La", 1, 0), ("P", 3, 60), ("PA", 3, 60), ("RGB", 3, 0),
        ("RGBA", 3, 0), ("RGBa", 3, 0), ("RGBX", 3, 0), ("CMYK", 3, 0), ("YCbCr", 3, 3), ("HSV", 3, 6), ("LAB", 3, 20),
    ],
)  # fmt: skip
def test_every_mode_of_pillow_is_read_as_gray_or_color(mode, channels, off):
    picture = colors(mode)
    whole = codec._plain(codec.to_srgb(picture), GrayDepth(), channels)
    kept = photograph._to_gray_or_rgb(picture)
    for made in (whole, kept.convert("L" if channels == 1 else "RGB")):
        assert made.mode == ("L" if channels == 1 else "RGB")
        right = colors("L" if channels == 1 else "RGB")
        assert np.abs(np.asarray(made).astype(int) - np.asarray(right)).max() <= off
    assert kept.mode.startswith("L") == (channels == 1)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_every_order_of_bytes_is_read(mode):
    kind = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2"}[mode]
    picture = Image.frombytes(mode, (4, 3), (LEVELS.astype(np.uint16) * 257).astype(kind).tobytes())
    assert (np.asarray(codec._plain(picture, GrayDepth.of(picture), 1)) == LEVELS).all()


def test_a_palette_with_transparency_is_laid_on_white(tmp_path):
    picture = Image.fromarray(LEVELS // 128, "P")
    picture.putpalette([9, 9, 9, 200, 100, 0])
    picture.save(tmp_path / "a.png", transparency=0)
    x = images.to_bytes(images.read(tmp_path / "a.png"))
    assert x[:, 0, 0].tolist() == [255, 255, 255]
    assert x[:, 2, 3].tolist() == [200, 100, 0]
