"""The paths that operators take on a GPU, to not make the CPU wait, give the same results as those on a CPU."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import degradations, devices, seeds
from colddiff_core.degradations import holes, mask, pixelate, separable
from colddiff_core.degradations.draws import draw_choices, draw_integers


@pytest.fixture
def on_gpu(monkeypatch):
    """Make operators take their GPU paths, which read no values."""
    return lambda: monkeypatch.setattr(devices, "can_read", lambda tensor: False)


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=seeds.generator(0)) * 2 - 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 7), (40, 61)])
def test_holes_are_filled_the_same_from_all_scales_as_from_those_needed(shape, on_gpu, monkeypatch):
    op, x = degradations.build("holes", steps=6), pictures(8, 3, *shape)
    turn = op.freeze(x, generator=seeds.generator(1)).turn
    turn[0], turn[1] = 2.0, 0.0  # nothing hidden, and all of it
    t = torch.tensor([6, 6, 1, 2, 3, 4, 5, 6])
    fill, scales = holes._fill, []
    monkeypatch.setattr(holes, "_fill", lambda x, visible: scales.append(len(x)) or fill(x, visible))

    def filled() -> list[torch.Tensor]:
        """Return the images filled one by one, because one with nothing visible needs all scales, and as a batch."""
        alone = [op.invert(x[i : i + 1], 6, holes.FrozenHoles(turn[i : i + 1]), 0.0) for i in range(len(x))]
        return [*alone, op.invert(x, t, holes.FrozenHoles(turn), 0.0)]

    expected, needed = filled(), len(scales)
    on_gpu()
    for actual, image in zip(filled(), expected, strict=True):
        assert torch.equal(actual, image)
    assert len(scales) - needed > needed or max(shape) == 1


@pytest.mark.parametrize("vertical", [[True] * 3, [False] * 3, [True, False, True]])
def test_snow_is_the_same_if_the_wind_that_does_not_blow_is_added(vertical, on_gpu, monkeypatch):
    monkeypatch.setattr(separable, "DENSE_TABLE_BYTES", 0)
    op, x = degradations.build("snow", steps=9), pictures(3, 3, 20, 31)
    frozen = op.freeze(x, generator=seeds.generator(1), vertical=torch.tensor(vertical))
    expected = [op(x, t, frozen) for t in (9, torch.tensor([9, 1, 4]))]
    on_gpu()
    for t, snowed in zip((9, torch.tensor([9, 1, 4])), expected, strict=True):
        assert torch.equal(op(x, t, frozen), snowed)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(16, 24), (55, 70)])
def test_a_solved_inverse_of_pixelate_does_not_change_any_more(mode, shape, on_gpu, monkeypatch):
    monkeypatch.setattr(pixelate, "MATRIX_SIDE_PIXELS", 0)
    norm, iterations = pixelate._squared_norm, []
    monkeypatch.setattr(pixelate, "_squared_norm", lambda x: iterations.append(x) or norm(x))
    op, x = degradations.build("pixelate", steps=3, mode=mode), pictures(3, 3, *shape)
    x[1], x[2] = 0.0, 0.25  # one is solved in one iteration, one before the first
    for t in (1, 3):
        for floor in (1e-5, 0.1):
            x_t = op(x, t)
            iterations.clear()
            expected = op.invert(x_t, t, None, floor)
            needed = len(iterations)
            with monkeypatch.context() as patch:
                patch.setattr(devices, "can_read", lambda tensor: False)
                patch.setattr(pixelate, "JOINT_VALUES", 0)
                iterations.clear()
                assert torch.equal(op.invert(x_t, t, None, floor), expected)
                assert needed < len(iterations) == 3 * (1 + pixelate.MAX_ITERATIONS)
                patch.setattr(pixelate, "JOINT_VALUES", x_t.numel())
                iterations.clear()
                torch.testing.assert_close(op.invert(x_t, t, None, floor), expected, rtol=0, atol=1e-5)
                assert len(iterations) == 1 + pixelate.MAX_ITERATIONS


@pytest.mark.parametrize("most", [100_000, 30_000, 1])
def test_a_wide_mask_is_completed_from_the_nearest_row(most, on_gpu, monkeypatch):
    """The tables have rows for every other severity, for a few, and for 0 only."""
    x = pictures(6, 3, 90, 120)
    settings = {"steps": 12, "std": 4.0, "growth": 2.0, "fill": "color"}
    op = degradations.build("mask", **settings)
    frozen, t = op.freeze(x, generator=seeds.generator(1)), torch.tensor([12, 1, 0, 7, 8, 11])
    expected = {s: op(x, s, frozen) for s in (1, 5, 8, 11, 12)}, op(x, t, frozen)
    on_gpu()
    monkeypatch.setattr(mask, "MAX_TABLE_ENTRIES", most)
    op = degradations.build("mask", **settings)
    for s, hidden in expected[0].items():
        torch.testing.assert_close(op(x, s, frozen), hidden, rtol=0, atol=1e-6)
    torch.testing.assert_close(op(x, t, frozen), expected[1], rtol=0, atol=1e-6)
    (table,) = op.tables.values()
    assert len(table) < op.steps + 1


@pytest.mark.parametrize("padding", ["circular", "reflect"])
def test_the_final_mean_is_the_same_for_a_whole_number_and_for_severities_per_image(padding):
    op = degradations.build("blur", steps=4, kernel_size=5, padding=padding, final_mean=True)
    x = pictures(1, 3, 12, 9)
    for t in range(op.steps + 1):
        x_t = op(x, t)
        assert x_t.is_contiguous()
        assert torch.equal(x_t, op(x, torch.tensor([t])))
        assert torch.equal(op.invert(x_t, t, None, 0.01), op.invert(x_t, torch.tensor([t]), None, 0.01))


def test_choices_are_integers_that_the_cpu_draws():
    x = torch.zeros(20, 1, 2, 2)
    for make in (
        lambda: seeds.generator(1),
        lambda: seeds.image_generators(1, range(20)),
        lambda: seeds.SlotGenerators((1,), range(3, 23)),
    ):
        one, other = make(), make()
        for below in (5, 1000):  # both draw the same numbers in turn
            assert torch.equal(draw_choices(x, one, below), draw_integers(x, other, below))
    on_gpu, on_cpu = (seeds.SlotGenerators((1,), range(3, 23), device) for device in ("cuda", "cpu"))
    assert on_cpu.on_cpu is on_cpu  # the same object, so that earlier draws count
    first, second = (draw_choices(x, on_gpu, 1000) for _ in range(2))
    assert torch.equal(first, draw_integers(x, on_cpu, 1000))
    assert torch.equal(second, draw_integers(x, on_cpu, 1000))
    assert not torch.equal(first, second)
