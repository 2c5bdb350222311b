"""Pictures that are degraded already: any size, color in gray runs, tiles, masks, and truth to what they show."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from colddiff_core import experiment, images, seeds
from colddiff_core.config import presets
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.inference import photograph
from colddiff_core.models import memory
from colddiff_core.sampling import Sampling

SMALL = ("data.size=16", "model.width=8", "model.multipliers=[1,2]", "train.precision=float32")


def built(preset: str = "photos-blur-small", channels: int = 3, *overrides: str) -> experiment.Experiment:
    """Return an experiment without training: a local network says nothing then, and the inverse is all."""
    made = experiment.build(presets.load(preset, [*SMALL, *overrides]), channels, torch.device("cpu"))
    made.restorer.eval().requires_grad_(False)
    return made


def worker(*args, is_consistent: bool = False, sampler: str = "direct", **settings) -> photograph.PhotographRestorer:
    return photograph.PhotographRestorer(built(*args), Sampling(sampler), is_consistent, **settings)


def scene(height: int = 60, width: int = 81, channels: int = 3) -> torch.Tensor:
    """Return shapes with edges and shades, and some grain: (C, H, W)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    layers = torch.stack([torch.sin(9 * x * y + c) * 0.5 + 0.4 * ((x + 0.3 * c).abs() > 0.4) for c in range(3)])
    grain = 0.03 * torch.randn(3, height, width, generator=seeds.generator(4))
    return images.quantize((layers - 0.2 + grain).clamp(-1, 1), 8)[:channels]


def degraded(made: experiment.Experiment, x0: torch.Tensor, t: int) -> torch.Tensor:
    frozen = made.operator.freeze(x0[None], generator=seeds.generator(1))
    return images.quantize(made.operator(x0[None], t, frozen), 8)[0]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


@pytest.mark.parametrize("size", [(60, 81), (33, 200), (17, 16), (16, 16)])
def test_a_picture_of_any_size_comes_back_sharper_and_as_large(size):
    sharpen = worker()
    x0 = scene(*size)
    x_t = degraded(sharpen.experiment, x0, 6)
    restored = sharpen.restore(sharpen.look(x_t, 6))
    assert restored.shape == x0.shape
    assert error(restored, x0) < 0.8 * error(x_t, x0)


def test_at_no_severity_a_picture_stays_bit_for_bit():
    x = scene()
    assert torch.equal(worker().restore(worker().look(x, 0)), x)


@pytest.mark.parametrize("color", ["channels", "luma"])
def test_a_gray_run_takes_color(color):
    sharpen = worker("photos-blur-small", 1, color=color)
    x0 = scene()
    x_t = degraded(sharpen.experiment, x0, 6)
    given = sharpen.look(x_t, 6)
    assert given.x_t.shape == ((3, 1, 60, 81) if color == "channels" else (1, 1, 60, 81))
    restored = sharpen.restore(given)
    assert error(restored, x0) < error(x_t, x0)
    inside = (restored.abs() < 1).all(0) & (x_t.abs() < 1).all(0)
    chroma = [(x - x.mean(0, keepdim=True))[:, inside] for x in (restored, x_t)]
    assert (error(*chroma) < 1e-5) == (color == "luma")
    if color == "channels":
        alone = worker("photos-blur-small", 1)
        for channel in range(3):
            one = alone.restore(alone.look(x_t[channel : channel + 1], 6))
            torch.testing.assert_close(restored[channel : channel + 1], one, rtol=0, atol=1e-5)


def test_a_gray_picture_stays_gray_but_where_color_is_what_is_missing():
    x = scene(channels=1)
    assert len(worker().restore(worker().look(x, 6))) == 1
    faded = worker("photos-desaturate-small")
    assert len(faded.restore(faded.look(x, None))) == 3


def test_the_severity_is_estimated_where_none_is_given():
    sharpen = worker()
    x_t = degraded(sharpen.experiment, scene(200, 200), 12)
    given = sharpen.look(x_t, None)
    assert given.estimate is not None
    assert given.t == given.estimate.t
    assert abs(given.t - 12) <= 3
    assert sharpen.look(x_t, 7).estimate is None
    assert sharpen.look(x_t, 7).t == 7


GAUSSIAN = ("celeba-mask-small", 3, "degradation.steps=20", "degradation.std=2", "degradation.growth=1")


@pytest.mark.parametrize("made", [("photos-mask-small",), GAUSSIAN])
def test_a_mask_of_ones_own_hides_its_pixels_and_spares_the_rest(made):
    fill = worker(*made, is_consistent=True)
    x = scene()
    hidden = torch.zeros(60, 81, dtype=torch.bool)
    hidden[20:26, 30:37] = True
    given = fill.look(x, None, hidden)
    assert given.t >= 1
    assert (given.x_t[0][:, hidden].abs() <= 1 / 255).all()
    restored = fill.restore(given)
    torch.testing.assert_close(restored[:, :4], x[:, :4], rtol=0, atol=1.01 / 255)
    if made != GAUSSIAN:
        torch.testing.assert_close(restored[:, ~hidden], x[:, ~hidden], rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("name", ["snow+blur", "blur+snow"])
def test_a_composition_that_has_to_know_its_snow_is_refused(name):
    snowed = worker("photos-snow-small", 3, f"degradation.name={name}", sampler="tacos")
    with pytest.raises(UsageError, match="needs the random choices"):
        snowed.restore(snowed.look(scene(), 5))


def test_empty_masks_are_refused():
    hidden = torch.zeros(60, 81, dtype=torch.bool)
    for preset in ("photos-mask-small", "celeba-mask-small"):
        with pytest.raises(UsageError, match="hides no pixel"):
            worker(preset).look(scene(), None, hidden)
    with pytest.raises(UsageError, match="hides no pixels, so a mask"):
        worker().look(scene(), None, ~hidden)
    with pytest.raises(UsageError, match="beyond this run's largest hole"):
        worker("celeba-mask-small", 3, "degradation.steps=2").look(scene(), None, ~hidden)


def test_flat_gray_holes_are_found_and_filled_in_alone():
    fill = worker("photos-mask-small", 3, is_consistent=True)
    x = scene()
    x[:, 10:18, 40:52] = images.quantize(torch.zeros(1), 8)
    given = fill.look(x, None)
    assert given.t == fill.operator.steps
    assert "96 pixels" in given.estimate.trace
    restored = fill.restore(given)
    outside = torch.ones(60, 81, dtype=torch.bool)
    outside[10:18, 40:52] = False
    torch.testing.assert_close(restored[:, outside], x[:, outside], rtol=0, atol=1.01 / 255)
    untouched = fill.look(scene(), None)
    assert untouched.t == 0


@pytest.mark.parametrize("preset", ["photos-blur-small", "photos-pixelate-small", "photos-desaturate-small"])
def test_degraded_again_what_is_consistent_is_the_picture(preset):
    loose, true = worker(preset), worker(preset, is_consistent=True)
    x_t = degraded(true.experiment, scene(64, 80), 2)

    def off(found: photograph.PhotographRestorer) -> float:
        """Return how much more than the rounding x_t and the restoration, degraded again, differ by at most."""
        given = found.look(x_t, 2)
        # Not what is written: that is clamped to what pixels can be.
        off_by = lambda x: float(((found.operator(x, 2, given.frozen) - x_t).abs() - 1 / 255).max())  # noqa: E731
        noisy = given.x_t + 0.05 * torch.randn(given.x_t.shape, generator=seeds.generator(3))
        return off_by(found.project(noisy, given) if found.is_consistent else noisy)

    assert off(loose) > 4 / 255
    assert off(true) < 0.5 * off(loose)


@pytest.mark.parametrize("preset", ["photos-blur-small", "photos-pixelate-small"])
def test_by_tiles_it_is_the_same_picture(preset, monkeypatch):
    made = built(preset, 3)
    torch.nn.init.normal_(made.restorer.unet.head.weight, std=0.05)
    by = photograph.PhotographRestorer(made, Sampling("direct"), True)
    x_t = degraded(made, scene(160, 260), 2)
    whole = by.restore(by.look(x_t, 2))
    shares = []
    monkeypatch.setattr(memory, "tile_side", lambda *_: 128)
    by_tiles = by.restore(by.look(x_t, 2), shares.append)
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert not torch.equal(whole, x_t)
    torch.testing.assert_close(by_tiles, whole, rtol=0, atol=1 / 255)


def test_where_memory_runs_out_tiles_get_smaller(monkeypatch):
    made = built()
    by = photograph.PhotographRestorer(made, Sampling("direct"), False)
    x_t = degraded(made, scene(200, 260), 2)
    whole = by.restore(by.look(x_t, 2))
    forward, room = type(made.restorer.unet).forward, 40_000

    def short_of_memory(self, x, *rest):
        if x[0, 0].numel() > room:
            raise MemoryError
        return forward(self, x, *rest)

    monkeypatch.setattr(type(made.restorer.unet), "forward", short_of_memory)
    torch.testing.assert_close(by.restore(by.look(x_t, 2)), whole, rtol=0, atol=1 / 255)
    room = 100
    with pytest.raises(MachineError, match="not enough memory on cpu for a picture of 260x200"):
        by.restore(by.look(x_t, 2))


def test_a_sampler_that_has_to_know_the_snow_is_refused():
    snowed = worker("photos-snow-small", sampler="tacos")
    given = snowed.look(scene(), 20)
    assert not given.is_known
    with pytest.raises(UsageError, match="needs the random choices of snow"):
        snowed.restore(given)
    assert dataclasses.replace(snowed, sampling=Sampling("direct")).restore(given).isfinite().all()


def test_candidates_are_severities_around_an_estimate():
    op = built().operator
    for estimate in (None, *(worker().look(degraded(built(), scene(100, 100), t), None).estimate for t in (1, 16, 32))):
        found = photograph.severities(op, estimate)
        assert found == sorted(set(found))
        assert found[0] >= 1
        assert found[-1] <= op.steps
        assert len(found) >= 4
        if estimate is not None and estimate.t:
            assert estimate.t in found


def test_the_window_shown_is_where_there_is_most_to_see():
    x = torch.zeros(3, 300, 400)
    x[:, 180:280, 280:380] = torch.rand(3, 100, 100, generator=seeds.generator(0))
    window = photograph.detailed(x, 120)
    assert window.shape == (3, 120, 120)
    assert (window != 0).float().mean() > 0.6
    assert photograph.detailed(x[:, :50, :60], 120).shape == (3, 50, 60)


@pytest.mark.parametrize("made", [("photos-mask-small",), GAUSSIAN])
def test_a_hole_that_is_not_found_is_not_made_up(made):
    fill = worker(*made)
    given = fill.look(scene(), 5)
    assert not given.is_known
    with pytest.raises(UsageError, match=r"was not found.\n?"):
        fill.restore(given)


def test_where_only_the_hole_is_looked_for_its_severity_is_the_users():
    fill = worker("photos-mask-small", 3, is_consistent=True)
    x = scene()
    x[:, 10:18, 40:52] = images.quantize(torch.zeros(1), 8)
    given = fill.look(x, 20)
    assert (given.t, given.is_known, given.estimate) == (20, True, None)
    assert fill.restore(given)[:, 10:18, 40:52].abs().max() > 2 / 255


def test_a_severity_that_is_given_needs_no_trace():
    flat = torch.full((3, 12, 12), 0.25)
    for preset in ("photos-snow-small", "photos-blur-small"):
        assert worker(preset).restore(worker(preset).look(flat, 2)).shape == flat.shape


def test_snow_is_cleared_though_its_flakes_are_unknown():
    clear = worker("photos-snow-small")
    x0 = scene(96, 96) * 0.5
    x_t = degraded(clear.experiment, x0, 40)
    given = clear.look(x_t, 40)
    assert not given.is_known
    # An untrained network returns the operator's inverse.
    assert error(clear.restore(given), x0) < 0.6 * error(x_t, x0)


def test_the_floor_of_float32_runs_does_not_let_the_rounding_in():
    sharpen = worker("photos-blur-small", 3, "model.floor=1e-5")
    x0 = scene()
    given = sharpen.look(degraded(sharpen.experiment, x0, 8), 8)
    guess = (x0 + 0.03 * torch.randn(x0.shape, generator=seeds.generator(5)))[None]
    assert error(sharpen.project(guess, given)[0], x0) < 1.5 * error(guess[0], x0)


def test_a_gray_run_takes_a_colored_hole_channel_by_channel():
    fill = worker(*GAUSSIAN[:1], 1, *GAUSSIAN[2:], "degradation.fill=color", is_consistent=True)
    x = scene(120, 120)
    fields = {
        "center_row": torch.tensor([59]),
        "center_col": torch.tensor([59]),
        "color": torch.tensor([[0.5, -0.5, 0.1]]),
    }
    frozen = fill.operator.freeze(x[None], generator=seeds.generator(0), **fields)
    given = fill.look(images.quantize(fill.operator(x[None], 9, frozen), 8)[0], None)
    torch.testing.assert_close(given.frozen.color, fields["color"].T, rtol=0, atol=0.02)


def test_windows_lie_within_the_picture_around_a_place():
    x = torch.zeros(3, 100, 387)
    for place in (None, (0, 0), (99, 386), (50, 300)):
        rows, columns = photograph.around(x, 64, place)[1:]
        assert 0 <= rows.start < rows.stop <= 100
        assert rows.stop - rows.start == columns.stop - columns.start == 64
        if place:
            assert columns.start <= place[1] < columns.stop
    assert x[photograph.around(x, 1000)].shape == x.shape
