"""Evaluation as a whole: over all images, of the sampled x_0, whatever the batch; and that known flaws would show."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import finish, make_trainer
from test_fidelity import ssim_by_hand

from colddiff_core import datasets, images, runs, sampling, seeds
from colddiff_core.evaluation import distances as distribution
from colddiff_core.evaluation import evaluate
from colddiff_core.evaluation.evaluate import EvaluationSettings
from colddiff_core.evaluation.metrics import MetricAccumulator, Reference
from colddiff_core.inference import open_run

COUNT, T = 30, 5


class PixelFeatures:
    """Features that can be worked out by hand: the first pixels of an image."""

    name, size = "FD-pixels", 6

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, 70 : 70 + self.size].cpu()

    def metadata(self) -> dict:
        return {"kind": "pixels"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A network that x_t alone goes into, so that its last x0_hat is far from the sampled x_0."""
    path = tmp_path_factory.mktemp("plain") / "run"
    finish(make_trainer(path, "model.inputs=plain", "model.consistent=false", "train.precision=float32"))
    made = open_run.open_run(runs.Run(path), device="cpu").experiment
    return made


@pytest.fixture(scope="module")
def reference(built):
    test = datasets.load("digits", datasets.DatasetRequest("test", built.config.data.size))
    return Reference(test, lambda: test, target=distribution.reference_stats(PixelFeatures(), test))


def frechet_by_hand(found: np.ndarray, wanted: np.ndarray) -> float:
    """Heusel et al. 2017, with the eigenvalues of the product itself."""
    s, s_ = np.cov(found.T), np.cov(wanted.T)
    cross = np.sqrt(np.linalg.eigvals(s @ s_).astype(complex)).real.sum()
    return float(((found.mean(0) - wanted.mean(0)) ** 2).sum() + np.trace(s) + np.trace(s_) - 2 * cross)


@pytest.fixture(scope="module")
def by_hand(built, reference):
    """What TACoS comes to, written out: one image at a time, Algorithm 2, clamped, then the definitions."""
    made, originals = [], []
    for k in reference.test.draw(COUNT).tolist():
        x0 = reference.test.images(slice(k, k + 1))
        frozen = built.operator.freeze(x0, generator=seeds.image_generators(0, [k]))
        x = built.operator(x0, T, frozen)
        for s in range(T, 0, -1):
            with torch.no_grad():
                x0_hat = built.restorer(x, s, frozen)
            x = x - built.operator(x0_hat, s, frozen) + built.operator(x0_hat, s - 1, frozen)
        made.append(x)
        originals.append(x0)
    raw, x0 = torch.cat(made), torch.cat(originals)
    assert raw.abs().max() > 1.02, "a run whose outputs stay in the range could not show that they are clamped"
    x = raw.clamp(-1, 1)
    pixels = PixelFeatures()
    every = reference.test.images(slice(None))
    return {
        "rmse": float(((x - x0) / 2).double().square().mean().sqrt()),
        "ssim": ssim_by_hand(x, x0),
        "fd": frechet_by_hand(pixels(x).double().numpy(), pixels(every).double().numpy()),
    }


def check(built, reference, by_hand, batch_size: int = 8) -> None:
    """Assert that an evaluation of sampled images agrees with the figures worked out by hand."""
    settings = EvaluationSettings(T, COUNT, batch_size=batch_size)
    outcome = evaluate.evaluate(built, reference, settings, ("sampled",))["sampled"]
    for key, value in by_hand.items():
        assert outcome.figures[key] == pytest.approx(value, rel=1e-3), key


def test_the_sampled_images_are_what_is_measured(built, reference, by_hand):
    check(built, reference, by_hand)


def _last_x0_hat(monkeypatch):
    true = sampling.last

    def last(steps):
        step = true(steps)
        return dataclasses.replace(step, x=step.x0_hat)

    monkeypatch.setattr(sampling, "last", last)


def _no_first_image(monkeypatch):
    true, seen = MetricAccumulator.update, []

    def update(self, x, numbers, count):
        drop = 0 if seen else 1
        seen.append(True)
        true(self, x[drop:], numbers[drop:], count - drop)

    monkeypatch.setattr(MetricAccumulator, "update", update)


def _uninitialized_rows(monkeypatch):
    true = distribution.Moments.update

    def update(self, features, numbers):
        rows = features.clone()
        rows[6:] = 1e-3
        true(self, rows, numbers)

    monkeypatch.setattr(distribution.Moments, "update", update)


def _unclamped(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "clamp", lambda self, *bounds, **named: self)


@pytest.mark.parametrize("flaw", [_last_x0_hat, _no_first_image, _uninitialized_rows, _unclamped])
def test_flaws_of_published_evaluations_would_show(flaw, built, reference, by_hand, monkeypatch):
    flaw(monkeypatch)
    with pytest.raises(AssertionError):
        check(built, reference, by_hand)


def test_no_figure_depends_on_the_batch(built, reference):
    both = [EvaluationSettings(T, COUNT, batch_size=size) for size in (COUNT, 7)]
    found = [evaluate.evaluate(built, reference, settings) for settings in both]
    assert set(found[0]) == {"degraded", "direct", "sampled", "naive"}
    for column, outcome in found[0].items():
        for metric in ("rmse", "psnr", "ssim", "fd", "kd"):
            value = outcome.figures[metric]
            assert math.isfinite(value)
            assert value == pytest.approx(found[1][column].figures[metric], rel=1e-2, abs=1e-4)
    exact = [outcomes["degraded"] for outcomes in found]
    for metric in ("rmse", "psnr", "ssim", "fd", "kd"):
        assert exact[0].figures[metric] == pytest.approx(exact[1].figures[metric], rel=1e-6)
        if exact[0].intervals[metric]:
            assert exact[0].intervals[metric] == pytest.approx(exact[1].intervals[metric], rel=1e-5)


def test_images_of_a_photograph_have_8_bits(built, reference):
    rounded = evaluate.restore(built, reference, EvaluationSettings(T, 4, is_8bit=True), None, shown=4).degraded
    exact = evaluate.restore(built, reference, EvaluationSettings(T, 4), None, shown=4).degraded
    torch.testing.assert_close(rounded, images.to_floats(images.to_bytes(exact)), rtol=0, atol=1e-6)
    assert not torch.equal(rounded, exact)


def test_too_few_images_are_flagged(built, reference):
    for count, has_too_few_images in ((PixelFeatures.size, True), (PixelFeatures.size + 1, False)):
        assert (
            evaluate.restore(built, reference, EvaluationSettings(T, count), None).has_too_few_images
            == has_too_few_images
        )


def test_accumulated_sums_do_not_grow_with_the_images(built, reference):
    def kept(count: int) -> int:
        meter = MetricAccumulator(dataclasses.replace(reference, test=reference.test), has_originals=True)
        for first in range(0, count, 50):
            numbers = torch.arange(first, first + 50) % len(reference.test)
            meter.update(reference.test.images(numbers) * 0.9, numbers)
        distances, rows = meter.distances, meter.fidelity.rows
        tensors = [distances.moments.products, distances.moments.total, distances.pending, *rows]
        return sum(tensor.numel() for tensor in tensors)

    assert kept(2000) - kept(1000) <= 1000 * 3 + distribution.BLOCK * PixelFeatures.size
