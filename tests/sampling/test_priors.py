"""Where generation starts: what the priors promise."""

from __future__ import annotations

import os

import pytest
import torch

from colddiff_core import degradations, seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.errors import UsageError
from colddiff_core.sampling import fitting, priors

SIDE, CHANNELS, COUNT = 8, 3, 60
OPERATORS = {
    "gmm": degradations.build("blur", steps=5, kernel_size=5, final_mean=True),
    "gaussian": degradations.build("pixelate", steps=2, mode="area"),
    "color": degradations.build("mask", steps=40, std=1.0, growth=1.0, fill="color"),
    "normal": degradations.build("noise", steps=50),
    "images": degradations.build("animorph", steps=50),
    "degraded": degradations.build("snow", steps=5),
}


def pictures() -> ImageSet:
    return ImageSet(torch.randint(256, (COUNT, CHANNELS, SIDE, SIDE), generator=seeds.generator(3)).to(torch.uint8))


def source(name: str, images=pictures) -> priors.PriorSource:
    op = OPERATORS[name]

    def freeze(x0, generators):
        others = {op.second_field: x0.flip(-1)} if op.second_field else {}
        return op.freeze(x0, generator=generators, **others)

    return priors.PriorSource(op, (CHANNELS, SIDE, SIDE), images, freeze, lambda x, generators: x, pictures())


def drawn(name: str, folder, numbers, noise: float = 0.0, components: int | None = None) -> priors.InitialState:
    prior, here = priors.find(name, OPERATORS[name]), source(name)
    weights = fitting.load_or_fit(prior, here, folder, components)
    return priors.draw(prior, here, weights, seeds.image_generators(1, numbers, "prior"), noise)


def test_every_prior_is_some_operators_and_every_operator_has_one():
    assert sorted(OPERATORS) == priors.names()
    for name in degradations.names():
        op = degradations.build(name)
        assert priors.find(None, op).name == op.priors[0]
        assert "degraded" in op.priors
    assert {name: op.priors[0] for name, op in OPERATORS.items()} == {name: name for name in OPERATORS}


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_an_image_does_not_depend_on_how_many_are_drawn(name, tmp_path):
    many, few = drawn(name, tmp_path, range(7), noise=0.1), drawn(name, tmp_path, [4], noise=0.1)
    assert torch.equal(many.x[4:5], few.x)
    assert many.x.shape == (7, CHANNELS, SIDE, SIDE)
    assert many.x.dtype == torch.float32
    for field in vars(few.frozen):
        assert torch.equal(getattr(many.frozen, field)[4:5], getattr(few.frozen, field))
    assert not torch.equal(many.x[0], many.x[1])


@pytest.mark.parametrize("name", ["gmm", "gaussian", "color", "normal", "images"])
def test_the_draw_is_what_the_operator_ends_in(name, tmp_path):
    """Degrading the draw itself to the end changes nothing: it is among the operator's last images."""
    start = drawn(name, tmp_path, range(5))
    op = OPERATORS[name]
    torch.testing.assert_close(op(start.base, op.steps, start.frozen), start.base, rtol=0, atol=2e-2)


def test_one_gaussian_has_the_mean_and_covariance_of_the_channel_means(tmp_path):
    prior, here = priors.find("gmm", OPERATORS["gmm"]), source("gmm")
    weights = fitting.load_or_fit(prior, here, tmp_path, None)
    means = pictures().images(slice(None)).mean((2, 3))
    torch.testing.assert_close(weights["means"][0], means.mean(0), rtol=0, atol=1e-5)
    covariance = (weights["factors"] @ weights["factors"].mT)[0]
    torch.testing.assert_close(covariance, torch.cov(means.T, correction=0), rtol=0, atol=1e-5)
    many = drawn("gmm", tmp_path, range(4000)).base[:, :, 0, 0]
    torch.testing.assert_close(many.mean(0), means.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(torch.cov(many.T), covariance, rtol=0.15, atol=1e-4)


def test_components_find_groups(tmp_path):
    dark = torch.full((COUNT, CHANNELS, SIDE, SIDE), 20, dtype=torch.uint8)
    dark[: COUNT // 3] = 220
    dark += torch.randint(9, dark.shape, generator=seeds.generator(2)).to(torch.uint8)
    here = source("gmm", lambda: ImageSet(dark))
    prior = priors.find("gmm", OPERATORS["gmm"])
    weights = fitting.load_or_fit(prior, here, tmp_path, 2)
    start = priors.draw(prior, here, weights, seeds.image_generators(1, range(900)), 0.0)
    bright = (start.base[:, 0, 0, 0] > 0).double().mean()
    assert abs(float(bright) - 1 / 3) < 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gmm-2.safetensors"]


def test_a_prior_is_fitted_once_and_a_damaged_one_again(tmp_path):
    def gone() -> ImageSet:
        raise AssertionError("the training images were asked for")

    first = drawn("gaussian", tmp_path, range(3))
    prior, without = priors.find("gaussian", OPERATORS["gaussian"]), source("gaussian", gone)
    weights = fitting.load_or_fit(prior, without, tmp_path, None)
    again = priors.draw(prior, without, weights, seeds.image_generators(1, range(3), "prior"), 0.0)
    assert torch.equal(first.x, again.x)
    kept = tmp_path / "gaussian-1.safetensors"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])
    drawn("gaussian", tmp_path, range(3))
    assert kept.read_bytes() == whole


def test_a_pipe_in_place_of_a_prior_is_not_waited_for(tmp_path):
    first = drawn("gaussian", tmp_path, range(3))
    kept = tmp_path / "gaussian-1.safetensors"
    kept.unlink()
    os.mkfifo(kept)
    assert torch.equal(drawn("gaussian", tmp_path, range(3)).x, first.x)


def test_noise_breaks_the_symmetry_and_nothing_else(tmp_path):
    perfect, broken = drawn("gmm", tmp_path, range(3)), drawn("gmm", tmp_path, range(3), noise=0.5)
    assert torch.equal(perfect.x, perfect.base)
    assert torch.equal(perfect.base, broken.base)
    assert float(perfect.x.std((2, 3)).max()) < 1e-6
    assert 0.3 < float((broken.x - broken.base).std()) < 0.7


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_between_two_starts_the_ends_are_the_starts(name, tmp_path):
    ends = drawn(name, tmp_path, range(2), noise=0.1)
    way = priors.between(priors.find(name, OPERATORS[name]), OPERATORS[name], ends, 5)
    assert len(way.x) == 5
    torch.testing.assert_close(way.x[[0, 4]], ends.x, rtol=0, atol=1e-5)
    for field in vars(ends.frozen):
        torch.testing.assert_close(getattr(way.frozen, field)[[0, 4]], getattr(ends.frozen, field), rtol=0, atol=1e-5)
    if name == "normal":  # no draw is shorter than its neighbors, as on a straight line
        assert float(way.x[2].norm()) > 0.9 * float(way.x[0].norm())


@pytest.mark.parametrize(
    ("name", "operator", "words"),
    [("gmm", "normal", "Use one of: normal"), ("gm", "gmm", "Did you mean 'gmm'"), ("color", "degraded", "degraded")],
)
def test_a_prior_that_does_not_fit_is_refused(name, operator, words):
    with pytest.raises(UsageError) as refusal:
        priors.find(name, OPERATORS[operator])
    assert words in str(refusal.value)


def test_too_many_components_and_components_of_nothing_are_refused(tmp_path):
    for name, count in (("gmm", COUNT + 1), ("normal", 2)):
        prior = priors.find(name, OPERATORS[name])
        with pytest.raises(UsageError, match="component"):
            fitting.load_or_fit(prior, source(name), tmp_path, count)
    assert list(tmp_path.iterdir()) == []


def test_one_image_is_no_distribution(tmp_path):
    one = ImageSet(pictures().pixels[:1])
    with pytest.raises(UsageError, match="one training image"):
        fitting.load_or_fit(priors.find("gmm", OPERATORS["gmm"]), source("gmm", lambda: one), tmp_path, None)
