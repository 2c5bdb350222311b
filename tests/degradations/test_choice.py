"""The choice of the operator that degraded a picture."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from colddiff_core import degradations, seeds
from colddiff_core.config import presets
from colddiff_core.config.fields import setting
from colddiff_core.degradations import Degradation, Estimate
from colddiff_core.degradations.estimation.choice import LEAST_EVIDENCE, choose
from colddiff_core.errors import UsageError
from colddiff_core.images import jpeg_round_trip, quantize

PRESETS = ("photos-blur", "photos-pixelate", "photos-mask", "photos-desaturate", "photos-snow")


@functools.cache
def operators() -> dict[str, Degradation]:
    built = [presets.load(preset).degradation for preset in PRESETS]
    return {each.name: degradations.build(each.name, **each.parameters) for each in built}


@functools.cache
def photograph(index: int = 0) -> Tensor:
    from sklearn.datasets import load_sample_images

    pixels = torch.tensor(load_sample_images().images[index])
    return pixels.permute(2, 0, 1)[None, :, 160:256, 200:328].float() / 127.5 - 1


def degrade(name: str, x0: Tensor, t: int) -> Tensor:
    op = operators()[name]
    return quantize(op(x0, t, op.freeze(x0, generator=seeds.generator(t))), 8)


def gray(x: Tensor) -> Tensor:
    return quantize(x.mean(1, keepdim=True).expand_as(x), 8)


@pytest.mark.parametrize(
    ("name", "t"),
    [
        *[("blur", 2), ("blur", 32), ("pixelate", 1), ("pixelate", 2), ("holes", 1), ("holes", 20)],
        *[("desaturate", 1), ("desaturate", 20), ("snow", 1), ("snow", 50)],
    ],
)
def test_the_operator_is_found_from_the_picture(name, t):
    choice = choose(degrade(name, photograph(), t), operators())
    assert choice.name == name
    assert set(choice.estimates) == set(operators())
    assert choice.estimates[name].t > 0


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("quality", [0, 50, 90])
def test_an_undegraded_photograph_shows_no_trace(index, quality):
    x = photograph(index)
    assert choose(jpeg_round_trip(x, torch.tensor([quality])) if quality else x, operators()).name is None


def test_a_black_and_white_photograph_lacks_color():
    assert choose(gray(photograph(0)), operators()).name == "desaturate"


@pytest.mark.parametrize("name", ["blur", "pixelate", "holes", "snow"])
def test_a_black_and_white_photograph_can_have_a_clearer_trace(name):
    op = operators()[name]
    assert choose(gray(degrade(name, photograph(0), -(-op.steps // 2))), operators()).name == name


def test_a_gray_sky_is_no_hole():
    sky = torch.linspace(120, 136, 64).view(1, 1, 64, 1).expand(1, 3, 64, 64).clone()
    sky[:, :, 40:] += torch.rand((1, 1, 24, 64), generator=seeds.generator(0)) * 60
    estimate = operators()["holes"].estimate(quantize(sky / 127.5 - 1, 8))
    assert estimate.t > 0
    assert estimate.evidence < 0


@pytest.mark.parametrize("quality", [10, 20, 50])
def test_blocks_of_a_compressed_file_are_no_trace(quality):
    down, right = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
    smooth = torch.stack([0.3 * (down + right), 0.15 * down * right, 0.12 * right])[None] - 0.9
    estimate = operators()["pixelate"].estimate(jpeg_round_trip(smooth, torch.tensor([quality])))
    assert "no severity" in estimate.trace
    assert estimate.evidence <= 0


def test_blocks_of_a_size_that_no_severity_has_are_blocks():
    blocks = torch.nn.functional.interpolate(photograph(0), size=(20, 26), mode="area")
    x_t = quantize(blocks.repeat_interleave(5, -1).repeat_interleave(5, -2)[..., :96, :128], 8)
    assert choose(x_t, operators()).name == "pixelate"


@pytest.mark.parametrize("side", [1, 2, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiny_pictures_show_no_trace(side, channels):
    drawn = torch.rand((1, channels, side, side), generator=seeds.generator(side)) * 2 - 1
    assert choose(quantize(drawn, 8), operators()).name is None


@pytest.mark.parametrize("level", [0, 127, 128, 255])
def test_one_color_shows_no_trace(level):
    assert choose(torch.full((1, 3, 40, 56), level / 127.5 - 1), operators()).name is None
    assert (
        choose((torch.tensor([level, 60, 200]) / 127.5 - 1).view(1, 3, 1, 1).expand(1, 3, 40, 56), operators()).name
        is None
    )


def test_noise_shows_no_trace():
    noise = torch.rand((1, 3, 96, 128), generator=seeds.generator(0)) * 2 - 1
    assert choose(quantize(noise, 8), operators()).name is None


def test_a_black_and_white_drawing_is_at_most_without_color():
    drawing = torch.ones(1, 3, 96, 128)
    drawing[..., 20:60, 30:33] = drawing[..., 57:60, 30:90] = -1
    assert choose(drawing, operators()).name == "desaturate"
    assert choose(drawing[:, :1], operators()).name is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedEstimate(Degradation):
    """An operator of another package, with a fixed estimate."""

    name = "fixed"
    has_estimate = True
    evidence: float = setting(0.0, "evidence of the estimate")
    found: int = setting(1, "severity of the estimate; below 0 raises an error")

    def _estimate(self, x_t: Tensor) -> Estimate:
        if self.found < 0:
            raise UsageError("Too small.", "Use a larger picture.")
        return Estimate(self.found, 0, 2, 0.9, "fixed", evidence=self.evidence)


def test_the_clearest_trace_wins_whatever_its_operator_is_called():
    asked = {
        "a": FixedEstimate(evidence=20.0),
        "b": FixedEstimate(evidence=30.0),
        "unseen": FixedEstimate(evidence=90.0, found=0),
        "silent": FixedEstimate(evidence=99.0, found=-1),
    }
    choice = choose(photograph(0), asked)
    assert choice.name == "b"
    assert list(choice.estimates) == ["a", "b", "unseen"]
    assert choose(photograph(0), {"a": FixedEstimate(evidence=LEAST_EVIDENCE - 0.1)}).name is None
    assert choose(photograph(0), {"noise": degradations.build("noise")}).estimates == {}
    assert choose(photograph(0), {}).name is None
