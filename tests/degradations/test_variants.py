"""What training shows beside the operator's own pictures: other kernels, and files as cameras write them."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from colddiff_core import degradations, experiment, images, seeds
from colddiff_core.config import presets
from colddiff_core.degradations import pixelate
from colddiff_core.errors import UsageError

CPU = torch.device("cpu")


def pictures(count: int = 4, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=seeds.generator(0)) * 2 - 1


def built(*overrides: str):
    tiny = ["data.size=16", "model.width=8", "model.multipliers=[1,2]", *overrides]
    return experiment.build(presets.load("digits-blur", tiny), 3, CPU)


def test_blurs_vary_about_their_own_width():
    op = degradations.build("blur", steps=9, schedule="linear", std=1.0, growth=0.1, kernel_size=11)
    every = op.variants(0.2)
    assert [round(variant.std, 6) for variant in every] == [0.8, 0.9, 1.0, 1.1, 1.2]
    assert [round(variant.growth, 6) for variant in every] == [0.08, 0.09, 0.1, 0.11, 0.12]
    assert op in every
    x = pictures()
    spreads = [variant(x, 5).std() for variant in every]
    assert spreads == sorted(spreads, reverse=True)


@pytest.mark.parametrize("name", degradations.names())
def test_variants_are_operators_for_the_same_randomness(name):
    op = degradations.build(name, steps=3)
    x = pictures()
    fields = {op.second_field: pictures()} if op.second_field else {}
    frozen = op.freeze(x, generator=seeds.generator(1), **fields)
    every = op.variants(0.1)
    assert op in every
    assert len({str(variant) for variant in every}) == len(every)
    for variant in every:
        assert variant.steps == op.steps
        assert variant(x, torch.tensor([0, 1, 2, 3]), frozen).isfinite().all()


def test_parts_of_a_composition_vary_together():
    op = degradations.build("blur+pixelate", steps=2, std=0.8, kernel_size=5)
    every = op.variants(0.25)
    assert op in every
    assert {round(variant.parts[0].std, 6) for variant in every} == {0.6, 0.7, 0.8, 0.9, 1.0}
    assert {variant.parts[1].mode for variant in every} == {"bicubic", "bilinear", "area"}


def test_each_image_is_degraded_by_one_of_the_variants():
    made = built("degradation.jitter=0.3", "degradation.steps=5")
    x, t = pictures(40), torch.arange(40) % 5 + 1
    frozen = made.freeze(x, seeds.generator(2))
    x_t = made.degrade_variously(x, t, frozen, seeds.generator(3))
    by_each = torch.stack([variant(x, t, frozen) for variant in made.variants])
    errors = (by_each - x_t).abs().amax((2, 3, 4))
    assert errors.min(0).values.max() < 1e-6
    assert len(errors.argmin(0).unique()) == len(made.variants)


def test_without_jitter_the_operator_is_alone_and_nothing_is_drawn():
    made = built()
    x, t = pictures(), torch.tensor([1, 2, 3, 4])
    numbers = seeds.generator(3)
    before = numbers.get_state()
    assert torch.equal(made.degrade_variously(x, t, made.freeze(x, numbers), numbers), made.operator(x, t))
    assert torch.equal(numbers.get_state(), before)


def test_an_operator_without_kernels_refuses_a_range_of_them():
    with pytest.raises(UsageError, match="no kernels to vary"):
        built("degradation.name=desaturate", "degradation.jitter=0.1")


@pytest.mark.parametrize("channels", [1, 3])
def test_what_the_network_sees_has_been_a_jpeg_file(channels):
    x = pictures(2, channels, 32)
    made = images.jpeg_round_trip(x, [40, 95])
    assert made.shape == x.shape
    for picture, quality, found in zip(x, [40, 95], made, strict=True):
        file = io.BytesIO()
        images.to_pillow(picture).save(file, "JPEG", quality=quality)
        again = Image.open(file).convert("L" if channels == 1 else "RGB")
        assert torch.equal(images.to_bytes(found), images.to_bytes(images.to_floats(_pixels(again))))
    assert (made[1] - x[1]).abs().mean() < (made[0] - x[0]).abs().mean()


def _pixels(picture: Image.Image) -> torch.Tensor:
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, -1).permute(2, 0, 1)


def test_the_quality_is_each_images_own_and_follows_from_its_generator():
    made = built("degradation.quantize=8", "degradation.jpeg=30")
    x = pictures(1).expand(3, -1, -1, -1)
    seen = made.observe(x, seeds.image_generators(0, [1, 2, 3]))
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1:2], made.observe(x[1:2], seeds.image_generators(0, [2])))


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(16, 24), (55, 70), (9, 31)])
def test_a_large_pixelated_picture_is_inverted_as_a_small_one(mode, shape, monkeypatch):
    op = degradations.build("pixelate", steps=3, mode=mode)
    x = torch.rand(2, 3, *shape, generator=seeds.generator(0)) * 2 - 1
    for t in (1, 3):
        x_t = op(x, t)
        by_matrices = op.invert(x_t, t, None, 0.01)
        with monkeypatch.context() as patch:
            patch.setattr(pixelate, "LARGE", 0)
            torch.testing.assert_close(op.invert(x_t, t, None, 0.01), by_matrices, rtol=0, atol=2e-4)


def test_a_variant_that_no_image_drew_is_left_out():
    """Beyond the sides whose matrices are kept an operator goes by FFT, which an empty batch would break."""
    made = built("degradation.jitter=0.2", "degradation.steps=300", "degradation.kernel_size=5")
    x = torch.rand(1, 1, 256, 256, generator=seeds.generator(0))
    x_t = made.degrade_variously(x, torch.tensor([3]), made.freeze(x, seeds.generator(1)), seeds.generator(2))
    assert x_t.isfinite().all()
