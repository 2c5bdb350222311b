"""Free-form holes: drawn, from a user's mask, and found in a picture."""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image
from torch import Tensor

from colddiff_cli.__main__ import run
from colddiff_core import degradations, images, seeds
from colddiff_core.degradations import holes
from colddiff_core.degradations.estimation import flat_gray
from colddiff_core.errors import UsageError


def draw_holes(
    batch: int = 24, height: int = 40, width: int = 61, **values
) -> tuple[holes.Holes, Tensor, holes.FrozenHoles]:
    op = degradations.build("holes", **values)
    x0 = torch.rand(batch, 3, height, width, generator=seeds.generator(0)) * 0.9 + 0.05
    return op, x0, op.freeze(x0, generator=seeds.image_generators(0, range(batch)))


def test_holes_are_hard_edged_grow_and_nest():
    op, x0, frozen = draw_holes()
    before = torch.zeros(x0.shape, dtype=torch.bool)
    for t in range(1, op.steps + 1):
        x_t = op(x0, t, frozen)
        hidden = x_t == 0
        assert torch.equal(x_t[~hidden], x0[~hidden])
        assert bool((hidden >= before).all())
        before = hidden
    share = before.float().mean((1, 2, 3))
    assert 0 < share.min() < share.max() < 0.5
    assert len(share.unique()) > 20


@pytest.mark.parametrize("values", [{"count": 1, "size": 0.001}, {"count": 8, "size": 1.0}])
def test_every_image_has_a_hole_at_the_last_step(values):
    op, x0, frozen = draw_holes(200, 5, 7, **values)
    assert bool((op(x0, op.steps, frozen) == 0).any(dim=(1, 2, 3)).all())


def test_shapes_stay_within_their_size():
    _, _, frozen = draw_holes(60, 50, 80, count=1, size=0.2)
    for turn in frozen.turn:
        rows, cols = torch.nonzero(turn <= 1).unbind(1)
        for places in (rows, cols):  # a rectangle's corners reach beyond its half-extents
            assert int(places.max() - places.min()) <= 2 * 0.2 * 50 * 2**0.5 + 1


def test_a_users_mask_is_revealed_from_its_edge():
    hidden = torch.zeros(2, 30, 40, dtype=torch.bool)
    hidden[0, 5:20, 8:30] = True
    hidden[0, 25:28, 2:5] = True
    hidden[1, :, :7] = True  # at the border, beyond which no pixel counts as visible
    op = degradations.build("holes", steps=6)
    x0 = torch.ones(2, 1, 30, 40)
    frozen = op.freeze(x0, turn=holes.turn_from_mask(hidden, 6))
    holes_at = [op(x0, t, frozen)[:, 0] == 0 for t in range(7)]
    assert torch.equal(holes_at[6], hidden)
    assert bool(holes_at[1].any(dim=(1, 2)).all())
    assert holes_at[1][1, :, 0].all()
    assert not holes_at[5][0, 5, 8:30].any()
    for fewer, more in itertools.pairwise(holes_at):
        assert bool((fewer <= more).all())
        assert fewer.sum() < more.sum()
        visible = torch.nn.functional.pad((~more).float(), [1] * 4).unsqueeze(1)
        beside_visible = torch.nn.functional.max_pool2d(visible, 3, stride=1)[:, 0] > 0
        if fewer.any():  # every step but the last reveals pixels at the edge
            assert bool((more & ~fewer & beside_visible).any())


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("side", [1, 2, 9, 30])
def test_a_users_mask_is_whole_at_the_last_step_and_not_empty_at_the_first(steps, side):
    hidden = torch.zeros(3, 32, 33, dtype=torch.bool)
    hidden[0, 1 : 1 + side, 1 : 1 + side] = True
    hidden[1] = True
    turn = holes.turn_from_mask(hidden, steps)
    op = degradations.build("holes", steps=steps)
    x0 = torch.ones(3, 1, 32, 33)
    frozen = op.freeze(x0, turn=turn)
    assert torch.equal(op(x0, steps, frozen)[:, 0] == 0, hidden)
    at_one = op(x0, 1, frozen)[:, 0] == 0
    assert at_one[0].any()
    assert at_one[1].all()
    assert not at_one[2].any()


def test_depth_is_the_distance_to_the_nearest_visible_pixel():
    hidden = torch.rand(3, 17, 23, generator=seeds.generator(1)) < 0.9
    hidden[1] = False
    visible = hidden.logical_not().nonzero()
    places = torch.cartesian_prod(torch.arange(17), torch.arange(23))
    for image, depth in enumerate(holes._depth_in_mask(hidden)):
        in_image = visible[visible[:, 0] == image, 1:]
        expected = (places[:, None] - in_image[None]).abs().sum(-1).amin(1).view(17, 23)
        assert torch.equal(depth.long(), expected)


def test_a_mask_of_another_size_is_rejected():
    op = degradations.build("holes")
    with pytest.raises(UsageError, match="a mask of 4 x 5 pixels does not fit images of 8 x 9"):
        op.freeze(torch.zeros(1, 3, 8, 9), turn=torch.zeros(1, 4, 5))


@pytest.mark.parametrize("gray", flat_gray.GRAY_LEVELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_find_flat_gray_finds_exactly_the_holes(gray, channels):
    op, x0, frozen = draw_holes(size=0.3)
    x0 = x0[:, :channels]
    hidden = op(x0, op.steps, frozen)[:, :1] == 0
    x_t = torch.where(hidden, images.to_floats(torch.tensor(gray)), images.quantize(x0, 8))
    results = [flat_gray.find_gray(picture) for picture in x_t.split(1)]
    found = torch.cat([pixels for pixels, _ in results])
    assert not (found & ~hidden[:, 0]).any()
    thick = torch.cat([flat_gray._grown(flat_gray._squares(flat), flat) for flat in hidden[:, 0].split(1)])
    assert not (thick & ~found).any()
    assert found.sum() > 0.98 * hidden.sum()
    assert min(evidence for _, evidence in results) > 3


def test_gray_that_does_not_stand_out_is_a_hole_only_where_it_is_flat():
    levels = torch.arange(118, 138, dtype=torch.uint8).expand(1, 3, 20, 20).clone()  # a ramp, with 128 in a column
    levels[:, :2, 10:15, 10:15] = 128  # not gray
    levels[:, :, 16:20, 8:12] = torch.tensor([127, 128], dtype=torch.uint8).repeat(8).view(4, 4)  # not one shade
    hidden, evidence = flat_gray.find_gray(images.to_floats(levels))
    assert not hidden.any()
    assert evidence < 0
    levels[:, :, 5:8, 8:11] = 127
    hidden, evidence = flat_gray.find_gray(images.to_floats(levels))
    assert hidden[0, 5:8, 8:11].all()
    assert not hidden[..., :8].any()
    assert not hidden[..., 11:].any()
    assert evidence < 3


def test_a_single_pixel_that_stands_out_is_a_hole():
    levels = torch.arange(60, 80, dtype=torch.uint8).expand(1, 3, 20, 20).clone()
    levels[:, 0] += 30
    levels[..., 4, 5] = 128
    hidden, evidence = flat_gray.find_gray(images.to_floats(levels))
    assert hidden.nonzero().tolist() == [[0, 4, 5]]
    assert evidence > 3


def test_command_size_and_holes_size_are_separate_options(in_folder, capsys):
    Image.new("RGB", (40, 30), "white").save("a.png")
    shares = []
    for size in ("0.1", "0.4"):
        command = ["degrade", "a.png", "--op", "holes", "--size", "24", "--holes-size", size, "--out", f"{size}.png"]
        assert run([*command, "--force"]) == 0
        output = images.read(in_folder / f"{size}.png")
        assert output.shape == (3, 24, 24)
        shares.append(float((output < 0.5).float().mean()))
    assert 0 < shares[0] < shares[1]


def test_inverse_fills_holes_with_a_smooth_surface():
    op = degradations.build("holes", steps=4)
    y, x = torch.meshgrid(torch.linspace(-0.8, 0.8, 61), torch.linspace(-0.5, 0.5, 83), indexing="ij")
    slope = (0.5 * x + 0.4 * y).expand(2, 3, -1, -1)
    hidden = torch.zeros(2, 61, 83, dtype=torch.bool)
    hidden[0, 20:32, 30:45] = True
    hidden[1, :4, 3:50] = True
    frozen = op.freeze(slope, turn=holes.turn_from_mask(hidden, 4))
    x_t = op(slope, 4, frozen)
    inverse = op.invert(x_t, 4, frozen, 0.01)
    assert torch.equal(op(inverse, 4, frozen), x_t)
    assert (inverse - slope).abs().max() < 0.15
    constant = torch.full_like(slope, 0.3)
    torch.testing.assert_close(op.invert(op(constant, 4, frozen), 4, frozen, 0.01), constant, rtol=0, atol=1e-6)
    alone = op.invert(x_t[1:], 4, frozen[1:], 0.01)
    assert torch.equal(alone, inverse[1:])
    all_hidden = op.freeze(slope, turn=torch.zeros(2, 61, 83))
    assert torch.equal(op.invert(slope, 4, all_hidden, 0.01), torch.zeros_like(slope))
