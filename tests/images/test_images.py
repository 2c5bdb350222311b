"""Images are read upright and written whole; bad files get a clear error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import left_behind
from PIL import Image

from colddiff_core import images, seeds
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.images import codec


def picture(width: int = 7, height: int = 5, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("P", 3), ("RGBA", 3), ("LA", 1), ("1", 1)])
def test_a_picture_survives_the_round_trip(tmp_path, mode, channels):
    picture(mode=mode).save(tmp_path / "a.png")
    x = images.read(tmp_path / "a.png")
    assert x.shape == (channels, 5, 7)
    assert x.dtype == torch.float32
    assert x.min() >= -1
    assert x.max() <= 1
    images.write(images.to_pillow(x), tmp_path / "b.png")
    assert torch.equal(images.read(tmp_path / "b.png", channels=channels), x)
    assert left_behind(tmp_path) == ["a.png", "b.png"]


def test_sixteen_bits_are_scaled_and_transparency_is_laid_on_white(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert images.read_bytes(tmp_path / "deep.png").ravel().tolist() == [0, 128, 255]
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert images.read_bytes(tmp_path / "clear.png").ravel().tolist() == [255, 255, 255]


def test_a_sideways_photograph_is_read_upright(tmp_path):
    photo = picture(8, 4)
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "side.png", exif=exif)
    assert images.read(tmp_path / "side.png").shape == (3, 8, 4)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_sideways_tiff_is_not_garbled(tmp_path, mode):
    values = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    lying = Image.fromarray(values) if mode == "I;16" else picture(mode=mode)
    lying.save(tmp_path / "up.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "side.tif", exif=exif)
    assert torch.equal(images.read(tmp_path / "side.tif"), images.read(tmp_path / "up.tif").mT.flip(-1))


def test_size_crops_the_center_and_channels_convert(tmp_path):
    picture(20, 10).save(tmp_path / "a.png")
    assert images.read(tmp_path / "a.png", size=6, channels=1).shape == (1, 6, 6)
    assert images.read(tmp_path / "a.png", size=16, channels=3).shape == (3, 16, 16)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_images_are_refused(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    picture(16, 16).save(whole)
    data = whole.read_bytes()
    for length in range(0, int(0.9 * len(data)), 7):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(data[:length])
        with pytest.raises(UsageError, match="cut"):
            images.read(cut)


def test_files_that_are_not_images_are_refused(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UsageError, match="not an image"):
        images.read(tmp_path / "text.png")
    with pytest.raises(UsageError, match="No such file"):
        images.read(tmp_path / "absent.png")
    with pytest.raises(UsageError, match="Cannot read"):
        images.read(tmp_path)
    picture(64, 64).save(tmp_path / "wide.png")
    monkeypatch.setattr(codec, "MOST_PIXELS", 1000)
    with pytest.raises(UsageError, match="too many pixels"):
        images.read(tmp_path / "wide.png")


def test_eight_bits_are_256_levels():
    x = torch.rand(1, 1, 64, 64, generator=seeds.generator(0)) * 2 - 1
    rounded = images.quantize(x, 8)
    assert len(rounded.unique()) == 256
    assert (rounded - x).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(images.quantize(rounded, 8), rounded)
    assert torch.equal(images.to_floats(images.to_bytes(x)), images.to_floats(images.to_bytes(rounded)))
    assert images.quantize(x, 0) is x


def test_a_sheet_shows_every_image_once(tmp_path):
    shades = torch.linspace(-0.8, 0.8, 6).view(3, 2, 1, 1, 1).expand(3, 2, 1, 8, 8)
    canvas = images.sheet({"left": shades[:, 0], "right": shades[:, 1]}, blocks=2)
    values = set(np.asarray(canvas.convert("L")).ravel().tolist())
    assert {int(v) for v in images.to_bytes(shades[:, :, 0, 0, 0]).ravel()} <= values
    assert canvas.height < canvas.width


def test_tile_keeps_the_order():
    batch = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 3)
    tiled = images.tile(batch, 3)
    assert tiled.shape == (1, 4, 9)
    assert tiled[0, ::2, ::3].tolist() == [[0, 1, 2], [3, 4, -1]]


@pytest.mark.parametrize("suffix", sorted(images.ANIMATED))
def test_an_animation_has_its_frames(tmp_path, suffix):
    frames = [Image.new("L", (16, 16), shade) for shade in (0, 100, 200)]
    images.write_animation(frames, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as opened:
        assert opened.n_frames == 3
    with pytest.raises(UsageError, match="one frame"):
        images.write_animation(frames[:1], tmp_path / f"b{suffix}")
    assert left_behind(tmp_path) == [f"a{suffix}"]


def test_failed_writes_leave_nothing(tmp_path):
    with pytest.raises(UsageError, match="format"):
        images.write(picture(), tmp_path / "a.xyz")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="Cannot write"):
        images.write(picture(), tmp_path / "file" / "a.png")
    assert left_behind(tmp_path) == ["file"]


def test_images_can_be_cut_from_a_sheet_by_its_layout():
    columns = {name: torch.rand(5, 3, 20, 30) * 2 - 1 for name in ("a", "b", "c")}
    canvas, layout = images.sheet(columns, blocks=2), images.lay_out(columns, blocks=2)
    assert canvas.size == layout.canvas
    for name, stack in columns.items():
        for x, (left, top) in zip(stack, layout.corners[name], strict=True):
            tile = canvas.crop((left, top, left + layout.tile[0], top + layout.tile[1]))
            small = tile.resize((30, 20), Image.Resampling.NEAREST)
            assert layout.scale * 30 == layout.tile[0]
            assert small.tobytes() == images.to_pillow(x).tobytes()
