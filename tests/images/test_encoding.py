"""Every file that is written has the best quality of its format."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from colddiff_core import images
from colddiff_core.images import photograph


def noise(mode: str) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def written(path, picture: Image.Image, how: str) -> Image.Image:
    """Write a picture in one of the library's ways; return what the file holds."""
    if how == "write":
        images.write(picture, path)
    else:
        picture.save(path.with_suffix(".png"))
        found = photograph.read(path.with_suffix(".png"))
        photograph.write(found, found.pixels, path)
    with Image.open(path) as opened:
        opened.load()
        return opened


@pytest.mark.parametrize("how", ["write", "photograph"])
@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_a_jpeg_keeps_its_colors(tmp_path, how, suffix):
    opened = written(tmp_path / f"a{suffix}", noise("RGB"), how)
    assert JpegImagePlugin.get_sampling(opened) == 0  # 4:4:4
    assert max(opened.quantization[0]) <= 12  # quality 95
    errors = np.asarray(opened).astype(int) - np.asarray(noise("RGB"))
    assert np.abs(errors).mean() < 4  # at quality 75 and 4:2:0, 40
    assert written(tmp_path / f"gray{suffix}", noise("L"), how).mode == "L"


@pytest.mark.parametrize("how", ["write", "photograph"])
def test_a_webp_is_lossless(tmp_path, how):
    assert written(tmp_path / "a.webp", noise("RGB"), how).tobytes() == noise("RGB").tobytes()


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_an_animation_is_lossless(tmp_path, suffix):
    frames = [noise("RGB"), noise("RGB").transpose(Image.Transpose.ROTATE_180)]
    images.write_animation(frames, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as opened:
        for number, frame in enumerate(frames):
            opened.seek(number)
            assert opened.convert("RGB").tobytes() == frame.tobytes()
