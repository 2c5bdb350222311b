"""Augmentations of the degraded input: other kernels (jitter) and JPEG compression."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import degradations, experiment, seeds
from colddiff_core.config import presets
from colddiff_core.degradations import pixelate
from colddiff_core.errors import UsageError

CPU = torch.device("cpu")


def pictures(count: int = 4, channels: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=seeds.generator(0)) * 2 - 1


def build(*overrides: str):
    tiny = ["data.size=16", "model.width=8", "model.multipliers=[1,2]", *overrides]
    return experiment.build(presets.load("digits-blur", tiny), 3, CPU)


def test_blur_variants_are_wider_and_narrower():
    op = degradations.build("blur", steps=9, schedule="linear", std=1.0, growth=0.1, kernel_size=11)
    variants = op.variants(0.2)
    assert [round(variant.std, 6) for variant in variants] == [0.8, 0.9, 1.0, 1.1, 1.2]
    assert [round(variant.growth, 6) for variant in variants] == [0.08, 0.09, 0.1, 0.11, 0.12]
    assert op in variants
    x = pictures()
    spreads = [variant(x, 5).std() for variant in variants]
    assert spreads == sorted(spreads, reverse=True)


@pytest.mark.parametrize("name", degradations.names())
def test_variants_share_the_frozen_fields(name):
    op = degradations.build(name, steps=3)
    x = pictures()
    fields = {op.second_field: pictures()} if op.second_field else {}
    frozen = op.freeze(x, generator=seeds.generator(1), **fields)
    variants = op.variants(0.1)
    assert op in variants
    assert len({str(variant) for variant in variants}) == len(variants)
    for variant in variants:
        assert variant.steps == op.steps
        assert variant(x, torch.tensor([0, 1, 2, 3]), frozen).isfinite().all()


def test_variants_of_a_composition_vary_all_parts():
    op = degradations.build("blur+pixelate", steps=2, std=0.8, kernel_size=5)
    variants = op.variants(0.25)
    assert op in variants
    assert {round(variant.parts[0].std, 6) for variant in variants} == {0.6, 0.7, 0.8, 0.9, 1.0}
    assert {variant.parts[1].mode for variant in variants} == {"bicubic", "bilinear", "area"}


def test_each_image_is_degraded_by_one_variant():
    setup = build("degradation.jitter=0.3", "degradation.steps=5")
    x, t = pictures(40), torch.arange(40) % 5 + 1
    frozen = setup.freeze(x, seeds.generator(2))
    x_t = setup.degrade_variously(x, t, frozen, seeds.generator(3))
    by_variant = torch.stack([variant(x, t, frozen) for variant in setup.variants])
    errors = (by_variant - x_t).abs().amax((2, 3, 4))
    assert errors.min(0).values.max() < 1e-6
    assert len(errors.argmin(0).unique()) == len(setup.variants)


def test_without_jitter_only_the_operator_is_used_and_nothing_is_drawn():
    setup = build()
    x, t = pictures(), torch.tensor([1, 2, 3, 4])
    generator = seeds.generator(3)
    before = generator.get_state()
    assert torch.equal(setup.degrade_variously(x, t, setup.freeze(x, generator), generator), setup.operator(x, t))
    assert torch.equal(generator.get_state(), before)


def test_jitter_needs_an_operator_with_kernels():
    with pytest.raises(UsageError, match="no kernels to vary"):
        build("degradation.name=desaturate", "degradation.jitter=0.1")


def test_jpeg_quality_is_drawn_per_image():
    setup = build("degradation.quantize=8", "degradation.jpeg=30")
    x = pictures(1).expand(3, -1, -1, -1)
    observed = setup.observe(x, seeds.image_generators(0, [1, 2, 3]))
    assert not torch.equal(observed[0], observed[1])
    assert torch.equal(observed[1:2], setup.observe(x[1:2], seeds.image_generators(0, [2])))


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(16, 24), (55, 70), (9, 31)])
def test_pixelate_inverse_by_conjugate_gradients_equals_matrices(mode, shape, monkeypatch):
    op = degradations.build("pixelate", steps=3, mode=mode)
    x = torch.rand(2, 3, *shape, generator=seeds.generator(0)) * 2 - 1
    for t in (1, 3):
        x_t = op(x, t)
        by_matrices = op.invert(x_t, t, None, 0.01)
        with monkeypatch.context() as patch:
            patch.setattr(pixelate, "MATRIX_SIDE_PIXELS", 0)
            torch.testing.assert_close(op.invert(x_t, t, None, 0.01), by_matrices, rtol=0, atol=2e-4)


def test_a_variant_that_no_image_drew_is_skipped():
    """On large pictures operators use the FFT, which fails on an empty batch."""
    setup = build("degradation.jitter=0.2", "degradation.steps=300", "degradation.kernel_size=5")
    x = torch.rand(1, 1, 256, 256, generator=seeds.generator(0))
    x_t = setup.degrade_variously(x, torch.tensor([3]), setup.freeze(x, seeds.generator(1)), seeds.generator(2))
    assert x_t.isfinite().all()
