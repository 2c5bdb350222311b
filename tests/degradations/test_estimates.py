"""Severity estimates, over every operator that has them."""

from __future__ import annotations

import contextlib
import functools
import math

import pytest
import torch
from torch import Tensor

from colddiff_core import degradations, seeds
from colddiff_core.degradations import Degradation, Estimate
from colddiff_core.errors import UsageError
from colddiff_core.images import quantize

CASES = {
    "blur": {"steps": 32, "schedule": "constant", "std": 0.7, "kernel_size": 9, "padding": "reflect"},
    "pixelate": {"steps": 2, "mode": "area"},
    "desaturate": {"steps": 20},
    "mask": {"steps": 50, "std": 4.0, "growth": 0.5},
    "snow": {"steps": 50, "level": 3},
    "holes": {"steps": 1},  # an estimate finds the form of the holes, not their severity
}
# Relative error allowed from a third of the steps on, for a crop of each of scikit-learn's two photographs. The roof
# tiles of one hide half of the snow; for the flower the error is a tenth.
TOLERANCE = {"blur": 0.15, "pixelate": 0.0, "desaturate": 0.1, "mask": 0.1, "snow": 0.6, "holes": 0.0}
ESTIMATING = [name for name in degradations.names() if degradations.find(name).has_estimate]


def build(name: str) -> Degradation:
    return degradations.build(name, **CASES.get(name, {}))


@functools.cache
def photograph(index: int) -> Tensor:
    from sklearn.datasets import load_sample_images

    pixels = torch.tensor(load_sample_images().images[index])
    return quantize(pixels.permute(2, 0, 1)[None, :, 100:292, 200:456].float() / 127.5 - 1, 8)


def degrade(op: Degradation, x0: Tensor, t: int) -> Tensor:
    return quantize(op(x0, t, op.freeze(x0, generator=seeds.generator(t))), 8)


def check(op: Degradation, estimate: Estimate) -> None:
    """Assert that an estimate is well-formed."""
    assert 0 <= estimate.low <= estimate.high <= op.steps
    assert 0 <= estimate.t <= op.steps
    assert 0 <= estimate.confidence <= 1
    assert not math.isnan(estimate.confidence)
    assert estimate.trace
    assert all(len(value) == 1 and bool(value.isfinite().all()) for value in estimate.fields.values())


def test_every_operator_with_an_estimate_has_a_case():
    assert set(ESTIMATING) == set(CASES)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", ESTIMATING)
def test_estimate_is_near_the_true_severity(name, index):
    op = build(name)
    t = -(-(index + 1) * op.steps // 3)
    estimate = op.estimate(degrade(op, photograph(index), t))
    check(op, estimate)
    assert abs(estimate.t - t) <= max(TOLERANCE[name] * t, 0 if name == "pixelate" else 1), estimate


@pytest.mark.parametrize("name", ESTIMATING)
def test_estimate_of_a_clean_photograph_is_near_0(name):
    op = build(name)
    estimate = op.estimate(photograph(0))
    check(op, estimate)
    assert estimate.t <= 0.05 * op.steps


@pytest.mark.parametrize("name", ESTIMATING)
@pytest.mark.parametrize("case", ["flat", "black", "tiny", "line", "gray", "one channel", "noise"])
def test_difficult_pictures_give_a_valid_estimate_or_an_error(name, case):
    drawn = torch.rand((1, 3, 40, 56), generator=seeds.generator(0)) * 2 - 1
    picture = {
        "flat": torch.full((1, 3, 64, 64), 0.3),
        "black": torch.full((1, 3, 64, 64), -1.0),
        "tiny": drawn[..., :8, :8],
        "line": drawn[..., :1, :],
        "gray": photograph(0)[..., :64, :64].mean(1, keepdim=True).expand(-1, 3, -1, -1),
        "one channel": photograph(0)[:, :1, :64, :64],
        "noise": drawn,
    }[case]
    op = build(name)
    with contextlib.suppress(UsageError):
        check(op, op.estimate(quantize(picture, 8)))


@pytest.mark.parametrize("name", degradations.names())
def test_invalid_pictures_raise_an_error(name):
    op = degradations.build(name)
    if not op.has_estimate:
        with pytest.raises(UsageError, match="no trace"):
            op.estimate(photograph(0))
        return
    for shape in ((2, 3, 32, 32), (1, 2, 32, 32), (3, 32, 32), (1, 3, 0, 32)):
        with pytest.raises(UsageError, match="one picture"):
            op.estimate(torch.zeros(shape))
    with pytest.raises(UsageError, match="NaN or infinite"):
        op.estimate(torch.full((1, 3, 32, 32), math.nan))


def test_desaturate_estimates_the_last_step_for_a_gray_picture():
    gray = photograph(0).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert build("desaturate").estimate(quantize(gray, 8)).t == 20


def test_mask_estimate_finds_the_center():
    op = build("mask")
    x0 = photograph(0)
    fields = {"center_row": torch.tensor([70]), "center_col": torch.tensor([130])}
    x_t = quantize(op(x0, 12, op.freeze(x0, generator=seeds.generator(0), **fields)), 8)
    estimate = op.estimate(x_t)
    assert {name: int(estimate.fields[name]) for name in fields} == {"center_row": 70, "center_col": 130}
    op.freeze(x_t, **estimate.fields)


def test_pixelate_reports_blocks_of_another_size():
    x0 = photograph(0)[..., :190, :255]
    blocks = torch.nn.functional.interpolate(x0, size=(38, 51), mode="area")
    estimate = build("pixelate").estimate(quantize(blocks.repeat_interleave(5, -1).repeat_interleave(5, -2), 8))
    assert "5x5" in estimate.trace
    assert "no severity" in estimate.trace
