"""Snow: each image's own flakes, and the first guess from the half turn."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import degradations, seeds


def freeze(op: degradations.Degradation, x0: torch.Tensor) -> degradations.Frozen:
    return op.freeze(x0, generator=seeds.generator(0))


def test_each_image_has_its_own_snow():
    op = degradations.build("snow", steps=10)
    x0 = torch.zeros(4, 3, 16, 16)
    x_t = op(x0, 10, freeze(op, x0))
    assert all(not torch.equal(x_t[0], other) for other in x_t[1:])
    assert torch.equal(x_t[:, 0], x_t[:, 2])


def test_the_inverse_of_snow_is_what_the_half_turn_does_not_share():
    op = degradations.build("snow", steps=10)
    x0 = torch.full((1, 3, 64, 64), -0.5)
    x0[:, :, 10:14, 10:14] = 0.5  # its half turn is dark, so it is no snow
    x0[:, 0, 44:50, 20:26] = 0.9
    x0[:, 0, 14:20, 38:44] = 0.9  # on both sides, but red
    x_t = op(x0, 10, freeze(op, x0))
    inverse = op.invert(x_t, 10, freeze(op, x0), 1e-3)
    assert (inverse - x0).square().mean() < 0.1 * (x_t - x0).square().mean()
    clean = op.invert(x0, 10, freeze(op, x0), 1e-3)
    assert torch.equal(clean, x0)


def test_the_share_of_snow_taken_away_grows_with_t():
    op = degradations.build("snow", steps=10)
    x0 = torch.zeros(1, 3, 33, 33)
    x0[:, :, 16, 16] = 0.8  # its own half turn
    for t in (1, 5, 10):
        left = op.invert(x0, t, freeze(op, x0), 1e-3)[0, :, 16, 16]
        torch.testing.assert_close(left, torch.full((3,), 0.8 * (1 - t / 10)))


def test_only_inverses_that_need_no_random_field_work_without_it():
    unseen = {name for name in ("snow", "snow+blur", "mask", "mask+blur", "holes+snow", "noise") if inverts(name)}
    assert unseen == {"snow", "snow+blur"}


def inverts(name: str) -> bool:
    return degradations.build(name, steps=4).inverts_unseen


@pytest.mark.parametrize("side", [64, 80, 96, 160, 256])
@pytest.mark.parametrize("shades", [(-1.0, 1.0), (-0.75, 0.7)])
def test_a_dithered_picture_of_two_shades_is_not_called_snow(side, shades):
    noise = torch.rand((1, 1, side * 2 // 3, side), generator=seeds.generator(1))
    ramp = torch.linspace(0.1, 0.9, side).expand_as(noise)
    picture = torch.where(noise < ramp, *(torch.tensor(shade) for shade in shades))
    op = degradations.build("snow", steps=50)
    assert op.estimate(picture).evidence == 0
    gray = torch.zeros_like(picture)
    assert op.estimate(op(gray + 0.1 * ramp, 25, freeze(op, gray))).evidence != 0
