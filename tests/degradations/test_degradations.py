"""Laws that every registered degradation obeys."""

from __future__ import annotations

import dataclasses
import math

import literal
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from colddiff_core import degradations, seeds
from colddiff_core.degradations import Degradation, mask, separable
from colddiff_core.errors import UsageError

# Parameters beside the defaults that take other code paths.
VARIANTS = {
    "blur": [
        {"schedule": schedule, "padding": padding, "kernel_size": 5, "std": 0.8, "growth": 0.1}
        for schedule in ("constant", "linear", "exponential")
        for padding in ("circular", "reflect")
    ]
    + [{"kernel_size": 5, "final_mean": True}],
    "mask": [
        {"location": "center"},
        {"fill": "color", "std": 0.05, "growth": 0.3},
        {"std": 9.0, "growth": 40.0},  # too wide for a table of squared distances
    ],
    "holes": [{"count": 1, "size": 0.01}, {"count": 8, "size": 1.0}],
    "pixelate": [{"mode": "bilinear"}, {"mode": "area"}],
    "desaturate": [{"schedule": "constant", "rate": 0.7}],
    "snow": [{"level": 1}, {"level": 2, "brighten": True}, {"level": 4, "brighten": True}],
}
COLOR_ONLY = {"desaturate"}
MAX_STEPS = {"pixelate": 2}  # a side of 5 pixels can be halved twice
COMPOSITIONS = ("blur+noise", "mask+snow", "pixelate+mask+blur")


def variants() -> list[tuple[str, dict]]:
    alone = [(name, v) for name in degradations.names() for v in [{}, *VARIANTS.get(name, [])]]
    return alone + [(name, {"pixelate.steps": 2} if "pixelate" in name else {}) for name in COMPOSITIONS]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Degradation, Tensor]:
    """Draw an operator and a batch of 1 or 3 channels, of odd and non-square sizes."""
    name, values = draw(st.sampled_from(variants()))
    op = degradations.build(name, steps=draw(st.integers(1, MAX_STEPS.get(name, 12))), **values)
    channels = [3] if name in COLOR_ONLY else [1, 3]
    shape = draw(st.tuples(st.integers(2, 4), st.sampled_from(channels), st.integers(5, 20), st.integers(5, 20)))
    x0 = torch.rand(shape, generator=seeds.generator(draw(st.integers(0, 2**31)))) * 2 - 1
    return op, x0


def freeze(op: Degradation, x0: Tensor) -> degradations.Frozen:
    generators = seeds.image_generators(0, range(len(x0)))
    return op.freeze(x0, generator=generators, **second(op, x0))


def second(op: Degradation, x0: Tensor) -> dict[str, Tensor]:
    """Return the second pictures for an operator that needs them, by field name."""
    return {op.second_field: x0.flip(-1, -2) * 0.9} if op.second_field else {}


@given(cases())
def test_severity_0_returns_the_image_bit_for_bit(case):
    op, x0 = case
    frozen = freeze(op, x0)
    x0[0, 0, 0, 0] = -0.0
    for t in (0, torch.zeros(len(x0), dtype=torch.int64)):
        x = op(x0, t, frozen)
        assert torch.equal(x.view(torch.int32), x0.view(torch.int32))


@given(cases(), st.data())
def test_same_frozen_gives_the_same_output_shape_and_dtype(case, data):
    op, x0 = case
    frozen, t = freeze(op, x0), data.draw(st.integers(0, op.steps))
    x_t = op(x0, t, frozen)
    assert torch.equal(x_t, op(x0, t, frozen))
    assert x_t.shape == x0.shape
    assert x_t.dtype == torch.float32
    assert x_t.isfinite().all()


@given(cases(), st.data())
def test_each_image_has_its_own_t_and_ignores_its_neighbors(case, data):
    op, x0 = case
    frozen = freeze(op, x0)
    t = torch.tensor(data.draw(st.lists(st.integers(0, op.steps), min_size=len(x0), max_size=len(x0))))
    batch = op(x0, t, frozen)
    for i in range(len(x0)):
        alone = op(x0[i : i + 1], int(t[i]), frozen[i : i + 1])
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=0, atol=2e-6)


@given(cases())
def test_randomness_of_an_image_does_not_depend_on_the_batch(case):
    op, x0 = case
    batch = freeze(op, x0)
    second_images = {name: images[1:2] for name, images in second(op, x0).items()}
    alone = op.freeze(x0[1:2], generator=seeds.image_generators(0, [1]), **second_images)
    for field in dataclasses.fields(batch):
        assert torch.equal(getattr(batch, field.name)[1:2], getattr(alone, field.name))
        refrozen = op.freeze(x0, **second(op, x0) | {field.name: getattr(batch, field.name)})
        assert torch.equal(getattr(refrozen, field.name), getattr(batch, field.name))


@given(cases(), st.data())
def test_output_equals_the_literal_chain(case, data):
    op, x0 = case
    parts = getattr(op, "parts", (op,))
    if any(getattr(part, "kernel_size", 1) // 2 >= min(x0.shape[-2:]) for part in parts):
        return  # F.pad cannot pad that far; test_separable.py covers it
    frozen, t = freeze(op, x0), data.draw(st.integers(0, op.steps))
    expected = x0.double()
    for index, part in enumerate(parts):
        part_frozen = op._part_frozen(frozen, index) if len(parts) > 1 else frozen
        expected = literal.FORMS[part.name](part, expected, math.ceil(t * part.steps / op.steps), part_frozen)
    torch.testing.assert_close(op(x0, t, frozen), expected.float(), rtol=0, atol=1e-5)


@given(cases(), st.data())
def test_inverse_is_finite_and_consistent_with_x_t(case, data):
    op, x0 = case
    frozen, t = freeze(op, x0), data.draw(st.integers(1, op.steps))
    if not op.has_inverse:
        with pytest.raises(UsageError):
            op.invert(x0, t, frozen, 1e-5)
        return
    mixed = torch.full((len(x0),), t)
    x_t = op(x0, t, frozen)
    inverse = op.invert(x_t, t, frozen, 1e-3)
    assert inverse.isfinite().all()
    torch.testing.assert_close(inverse, op.invert(x_t, mixed, frozen, 1e-3), rtol=0, atol=1e-3)
    if op.name not in ("noise", "animorph") and "+" not in op.name:
        # Degraded again, the inverse gives x_t up to what the floor damped.
        again = op(inverse, t, frozen)
        assert (again - x_t).square().mean() <= x_t.square().mean() * 0.5 + 1e-3


def test_inverse_recovers_a_mild_blur():
    x0 = torch.rand(2, 3, 17, 24, generator=seeds.generator(1)) * 2 - 1
    for padding in ("circular", "reflect"):
        op = degradations.build("blur", steps=4, schedule="constant", std=0.5, kernel_size=5, padding=padding)
        assert (op.invert(op(x0, 4), 4, None, 1e-5) - x0).abs().max() < 1e-3
        assert (op(x0, 4) - x0).abs().max() > 0.5


@pytest.mark.parametrize(
    ("name", "can"),
    [("noise", True), ("blur+noise", True), ("snow", False), ("blur+snow", False), ("snow+noise", False)],
)
def test_only_what_shows_in_x_t_can_be_reestimated(name, can):
    assert degradations.build(name).has_reestimate is can


@pytest.mark.parametrize("name", ["noise", "animorph", "blur+noise"])
def test_reestimate_recovers_the_noise(name):
    op = degradations.build(name, steps=50)
    x0 = torch.rand(3, 1, 8, 8, generator=seeds.generator(1)) * 2 - 1
    frozen = freeze(op, x0)
    t = torch.tensor([5, 25, 50])
    unknown = op.freeze(x0, z=torch.zeros_like(x0))
    solved = op.reestimate(op(x0, t, frozen), x0, t, unknown)
    torch.testing.assert_close(solved.z, frozen.z, rtol=0, atol=1e-4)


def test_pixelate_rejects_a_side_that_cannot_be_halved():
    op = degradations.build("pixelate", steps=5)
    with pytest.raises(UsageError, match="16 pixels cannot be halved 5 times") as error:
        op(torch.zeros(1, 1, 32, 16), 1)
    assert "at most 4 steps" in str(error.value)


def test_desaturate_needs_color_and_ends_in_gray():
    with pytest.raises(UsageError, match="needs a color picture"):
        degradations.build("desaturate")(torch.zeros(1, 1, 8, 8), 1)
    gray = degradations.build("desaturate", steps=4)(torch.rand(1, 3, 8, 8, generator=seeds.generator(0)), 4)
    torch.testing.assert_close(gray, gray.mean(1, keepdim=True).expand_as(gray), rtol=0, atol=1e-6)


def test_pixelate_chain_equals_matrices():
    op = degradations.build("pixelate", steps=3)
    x0 = torch.rand(1, 1, 20, 33, generator=seeds.generator(0))
    torch.testing.assert_close(op._chain(x0, 3), op(x0, 3), rtol=0, atol=1e-6)


def test_final_mean_returns_the_mean_of_each_channel():
    op = degradations.build("blur", steps=3, kernel_size=5, final_mean=True, padding="circular")
    x0 = torch.rand(2, 3, 9, 9, generator=seeds.generator(3)) * 2 - 1
    torch.testing.assert_close(op(x0, 3), x0.mean((2, 3), keepdim=True).expand_as(x0), rtol=0, atol=1e-6)
    assert op(x0, 2).std(dim=(2, 3)).min() > 1e-3
    torch.testing.assert_close(op.invert(op(x0, 3), 3, None, 1e-5), op(x0, 3))


@pytest.mark.parametrize("name", degradations.names())
def test_parameters_have_help_and_t_is_checked(name):
    op = degradations.build(name)
    for field in dataclasses.fields(op):
        if field.init:
            assert field.metadata["help"]
    for t in (op.steps + 1, torch.tensor([-1])):
        with pytest.raises(UsageError, match="out of range"):
            op(torch.zeros(1, 3, 8, 8), t)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("blurr", {}, "Did you mean 'blur'"),
        ("blur", {"stdd": 1}, "Did you mean 'std'"),
        ("blur", {"std": 0}, "above 0"),
        ("blur", {"std": "wide"}, "not a number"),
        ("blur", {"std": float("nan")}, "not finite"),
        ("blur", {"steps": 2.5}, "not a whole number"),
        ("blur", {"steps": 0}, "at least 1"),
        ("blur", {"steps": True}, "not a whole number"),
        ("blur", {"kernel_size": 4}, "no center"),
        ("blur", {"padding": "zero"}, "circular, reflect"),
        ("noise", {"schedule": "linear"}, "cosine"),
        ("mask", {"location": "left"}, "random, center"),
        ("desaturate", {"rate": 1.5}, "adds color"),
        ("holes", {"count": 9}, "at most 8"),
        ("holes", {"size": 0}, "above 0"),
        ("snow", {"level": 5}, "1, 2, 3, 4"),
        ("snow", {"level": True}, "1, 2, 3, 4"),
        ("snow+blurr", {}, "Did you mean 'blur'"),
        ("snow+blur", {"levl": 3}, "Did you mean 'level'"),
        ("snow+blur", {"blur.stdd": 3}, "Did you mean 'std'"),
        ("noise+animorph", {"schedule": "cosine"}, "noise.schedule or animorph.schedule"),
    ],
)
def test_invalid_parameters_raise_a_helpful_error(name, values, words):
    with pytest.raises(UsageError) as error:
        degradations.build(name, **values)
    assert words in str(error.value)


def test_random_operators_need_frozen_fields():
    with pytest.raises(UsageError, match="frozen"):
        degradations.build("noise")(torch.zeros(1, 1, 4, 4), 3)
    with pytest.raises(UsageError, match="second data set"):
        degradations.build("animorph").freeze(torch.zeros(1, 1, 4, 4))
    with pytest.raises(UsageError, match="no random field"):
        degradations.build("noise").freeze(torch.zeros(1, 1, 4, 4), y=torch.zeros(1))


def test_snow_by_taps_equals_snow_by_matrices(monkeypatch):
    op = degradations.build("snow", steps=9)
    x0 = torch.zeros(3, 3, 20, 31)
    frozen, t = freeze(op, x0), torch.tensor([9, 4, 7])
    by_matrices = op(x0, t, frozen)
    monkeypatch.setattr(separable, "DENSE_TABLE_BYTES", 0)
    torch.testing.assert_close(op(x0, t, frozen), by_matrices, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*degradations.names(), "mask+blur"])
def test_t_accepts_whole_numbers_in_any_form_only(name):
    steps = 2 if name == "pixelate" else 12
    op = degradations.build(name, steps=steps)
    x0 = torch.rand(3, 3, 8, 8, generator=seeds.generator(0)) * 2 - 1
    frozen = freeze(op, x0)
    for one in (np.int64(steps), torch.tensor(steps), np.uint8(steps)):
        assert torch.equal(op(x0, one, frozen), op(x0, steps, frozen))
    for many in (
        np.array([0, 1, steps]),
        [0, 1, steps],
        *(torch.tensor([0, 1, steps]).to(d) for d in (torch.uint8, torch.int16)),
    ):
        assert torch.equal(op(x0, many, frozen), op(x0, torch.tensor([0, 1, steps]), frozen))
    calls = [lambda t: op(x0, t, frozen), lambda t: op.reestimate(x0, x0, t, frozen)]
    if op.has_inverse:
        calls.append(lambda t: op.invert(x0, t, frozen, 1e-3))
    for call in calls:
        for wrong in (
            1.5,
            True,
            "2",
            steps + 1,
            -1,
            [0, 1],
            torch.tensor([0.0, 1.0, 2.0]),
            torch.tensor([0, 1, steps + 1]),
        ):
            with pytest.raises(UsageError):
                call(wrong)


def test_an_empty_batch_works():
    for name in degradations.names():
        op, x0 = degradations.build(name), torch.zeros(0, 3, 8, 8)
        frozen = op.freeze(x0, generator=[], **second(op, x0))
        assert op(x0, torch.zeros(0, dtype=torch.int64), frozen).shape == x0.shape


def test_fields_need_one_entry_per_image():
    op, x0 = degradations.build("mask"), torch.zeros(3, 1, 8, 8)
    for wrong in (5, torch.tensor(5), torch.tensor([1, 2])):
        with pytest.raises(UsageError, match="one entry per image"):
            op.freeze(x0, center_row=wrong)
    frozen = op.freeze(x0, center_row=[1, 2, 3])
    assert frozen.center_row.tolist() == [1, 2, 3]


def test_reestimate_keeps_z_at_severity_0():
    op, x0 = degradations.build("noise", steps=5), torch.zeros(2, 1, 4, 4)
    frozen, t = freeze(op, x0), torch.tensor([0, 5])
    solved = op.reestimate(op(x0, t, frozen), x0, t, frozen)
    assert torch.equal(solved.z[0], frozen.z[0])


def test_mask_is_the_same_by_every_kind_of_table():
    """A table of all severities, single rows and interpolated radii give the same mask."""
    op = degradations.build("mask", steps=6, std=2.0, growth=3.0)
    x0 = torch.ones(3, 1, 30, 44)
    frozen, t = freeze(op, x0), torch.tensor([1, 4, 6])
    expected = op(x0, t, frozen)
    for most in (0, 600_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mask, "MAX_TABLE_ENTRIES", most)
            patch.setattr(mask, "NODES_PER_WIDTH", 64 if most == 0 else 4096)
            other = degradations.build("mask", steps=6, std=2.0, growth=3.0)
            torch.testing.assert_close(other(x0, t, frozen), expected, rtol=0, atol=1e-6 if most else 2e-3)
            torch.testing.assert_close(other(x0, 4, frozen)[1], expected[1], rtol=0, atol=1e-6 if most else 2e-3)
