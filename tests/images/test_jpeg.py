"""JPEG in torch equals Pillow's JPEG files bit for bit and reads nothing back from the device."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from colddiff_core import images, seeds
from colddiff_core.datasets import photos
from colddiff_core.images import jpeg, jpeg_round_trip

EVERY_QUALITY = torch.arange(1, 101)
# Multiples of 8 and 16 or not, smaller than a block, and chroma of one to three columns
SIZES = [(32, 32), (31, 45), (64, 48), (17, 1), (1, 17), (1, 1), (2, 3), (5, 4), (3, 5), (7, 6), (18, 20), (9, 64)]

compares_files = pytest.mark.skipif(
    not features.check_feature("libjpeg_turbo"), reason="this Pillow compresses with another library than libjpeg-turbo"
)


def through_files(x: Tensor, qualities: Tensor) -> Tensor:
    """Return images after Pillow wrote them as JPEG and read them again."""
    decoded = []
    for image, quality in zip(x, qualities.tolist(), strict=True):
        file = io.BytesIO()
        images.to_pillow(image).save(file, "JPEG", quality=quality)
        pixels = torch.from_numpy(np.array(Image.open(file, formats=("JPEG",))))
        decoded.append(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))
    return images.to_floats(torch.stack(decoded))


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=seeds.generator(*shape)) * 2 - 1


@compares_files
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_smooth", [False, True])
def test_noise_equals_a_file_at_every_quality(channels, size, is_smooth):
    x = noise(len(EVERY_QUALITY), channels, *size)
    if is_smooth:
        x = F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), 7, 1) * 4
    compressed = jpeg_round_trip(x, EVERY_QUALITY)
    assert (compressed.dtype, compressed.shape) == (torch.float32, x.shape)
    assert torch.equal(compressed, through_files(x, EVERY_QUALITY))


@compares_files
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"])
def test_photographs_equal_files(name, channels):
    pytest.importorskip("skimage")
    x = images.read(photos.folder("skimage") / name, channels=channels)
    qualities = torch.tensor([1, 10, 50, 75, 95, 100])
    x = x.expand(len(qualities), -1, -1, -1)
    assert torch.equal(jpeg_round_trip(x, qualities), through_files(x, qualities))


@compares_files
@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_white_equals_a_file(channels):
    """The signs of the DCT's basis give the largest coefficients, and the largest overshoot to clamp."""
    waves = torch.einsum("ui,vj->uvij", jpeg.DCT.sign(), jpeg.DCT.sign()).float().view(64, 1, 8, 8)
    signs = torch.tensor([1.0, -1, 1])[:channels].view(-1, 1, 1)
    fine, coarse = waves.repeat(1, 1, 2, 2) * signs, F.interpolate(waves, scale_factor=2) * signs
    for x in (fine, coarse, noise(64, channels, 24, 24).sign()):
        for qualities in (EVERY_QUALITY[:64], EVERY_QUALITY[36:]):
            assert torch.equal(jpeg_round_trip(x, qualities), through_files(x, qualities))


@compares_files
def test_plain_colors_equal_files():
    """Flat images only test the color conversion: here 4,913 colors, primaries included."""
    levels = torch.arange(0, 257, 16).clamp(max=255).float() / 127.5 - 1
    colors = torch.cartesian_prod(levels, levels, levels).view(1, -1, 3).mT.contiguous()
    x = F.interpolate(colors.view(1, 3, 17, 289), scale_factor=16)
    assert torch.equal(jpeg_round_trip(x, torch.tensor([100])), through_files(x, torch.tensor([100])))


@compares_files
@pytest.mark.parametrize("quality", [1, 2, 49, 50, 51, 99, 100])
def test_tables_equal_those_of_a_file(quality):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    written = Image.open(file, formats=("JPEG",)).quantization
    tables = jpeg.quantization_steps(torch.tensor([quality]))
    assert tables.shape == (1, 2, 8, 8)
    assert [table.flatten().tolist() for table in tables[0]] == [list(written[0]), list(written[1])]


def test_a_small_picture():
    """Fixed values, which do not depend on Pillow's JPEG library."""
    x = images.to_floats((torch.arange(54) * 47 % 256).to(torch.uint8).view(1, 3, 3, 6))
    levels = images.to_bytes(jpeg_round_trip(x, torch.tensor([50])))
    assert levels.view(3, 18).tolist() == [
        [0, 60, 151, 199, 111, 137, 22, 98, 174, 182, 119, 115, 42, 120, 182, 145, 140, 108],
        [87, 135, 161, 170, 69, 90, 123, 169, 180, 149, 76, 68, 131, 177, 178, 108, 97, 63],
        [134, 154, 126, 136, 93, 144, 175, 191, 146, 116, 103, 123, 189, 207, 151, 81, 127, 120],
    ]


def test_the_transform_is_a_cosine_transform():
    angles = torch.outer(torch.arange(8.0), torch.arange(8) + 0.5) * math.pi / 8
    exact = angles.double().cos() * math.sqrt(2) * 2**13
    exact[0] = 2**13
    assert (jpeg.DCT - exact).abs().max() < 1.5
    torch.testing.assert_close(jpeg.DCT @ jpeg.DCT.T / 2**29, torch.eye(8).double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_has_its_own_quality(channels):
    x = noise(1, channels, 24, 40).expand(4, -1, -1, -1)
    qualities = torch.tensor([90, 20, 60, 90])
    compressed = jpeg_round_trip(x, qualities)
    alone = [jpeg_round_trip(x[i : i + 1], qualities[i : i + 1]) for i in range(4)]
    assert torch.equal(compressed, torch.cat(alone))
    errors = (compressed - x).abs().mean((1, 2, 3))
    assert errors[0] == errors[3] < errors[2] < errors[1]


def test_qualities_out_of_range_are_clamped():
    x = noise(2, 3, 16, 16)
    clamped = jpeg_round_trip(x, torch.tensor([1, 100]))
    assert torch.equal(jpeg_round_trip(x, torch.tensor([-3, 140])), clamped)


def test_pixels_out_of_range_are_clamped_and_the_input_is_kept():
    x = noise(2, 3, 16, 16) * 3
    before = x.clone()
    assert torch.equal(jpeg_round_trip(x, EVERY_QUALITY[:2]), jpeg_round_trip(x.clamp(-1, 1), EVERY_QUALITY[:2]))
    assert torch.equal(x, before)


class Operations(TorchDispatchMode):
    """Counts torch's operations except views, which cost a GPU nothing."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_no_value_is_read_from_the_device_and_a_batch_takes_as_many_operations_as_an_image(channels):
    counts = []
    for batch in (1, 64):
        x = torch.empty(batch, channels, 31, 45, device="meta")  # has no values: reading one is an error
        qualities = torch.empty(batch, dtype=torch.int64, device="meta")
        jpeg_round_trip(x, qualities)  # copies the tables to the device
        with Operations() as seen:
            assert jpeg_round_trip(x, qualities).shape == x.shape
        counts.append(seen.count)
    assert counts[0] == counts[1] <= 90
