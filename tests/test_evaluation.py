"""The figures: by the paper's definitions, over all images, whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from colddiff_core import datasets, evaluation, experiment, runs, seeds
from colddiff_core.evaluation import PSNR_LIMIT, Fidelity


def pair(count: int = 5, size: int = 20):
    numbers = seeds.generator(0)
    a = torch.rand(count, 3, size, size, generator=numbers) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=numbers)).clamp(-1, 1)


def ssim_by_hand(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wang et al. 2004 on [0, 1]: 11 x 11 Gaussian window, sigma 1.5, no padding."""
    a, b = (a.double() + 1) / 2, (b.double() + 1) / 2
    line = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window.expand(x.shape[1], 1, 11, 11), groups=x.shape[1])

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean())


def test_definitions():
    a, b = pair()
    meter = Fidelity()
    meter.update(a[:2], b[:2])
    meter.update(a[2:], b[2:])
    found = meter.result()
    squared = ((a - b) / 2).double().square()
    assert found["rmse"] == pytest.approx(squared.mean().sqrt().item(), rel=1e-6)
    per_image = -10 * squared.mean((1, 2, 3)).log10()
    assert found["psnr"] == pytest.approx(per_image.mean().item(), rel=1e-5)
    assert found["ssim"] == pytest.approx(ssim_by_hand(a, b), abs=1e-5)


def test_perfect_images_and_images_smaller_than_the_window():
    a, _ = pair(size=8)
    meter = Fidelity()
    meter.update(a, a)
    assert meter.result() == {"rmse": 0.0, "psnr": PSNR_LIMIT, "ssim": None}


def test_outputs_are_clamped_to_the_pixel_range():
    meter = Fidelity()
    meter.update(torch.full((1, 1, 12, 12), 7.0), torch.ones(1, 1, 12, 12))
    assert meter.result()["rmse"] == 0


def test_no_figure_depends_on_the_batch(tiny_run):
    run = runs.Run(tiny_run)
    built, _ = experiment.open_run(run, torch.device("cpu"))
    images = datasets.load("digits", datasets.Request("test", built.config.data.size))
    found = [evaluation.evaluate(built, images, t=5, count=7, batch_size=size) for size in (7, 3)]
    assert set(found[0]) == {"degraded", "direct", "sampled", "naive"}
    for column, figures in found[0].items():
        for metric, value in figures.items():
            assert math.isfinite(value)
            assert value == pytest.approx(found[1][column][metric], rel=1e-2)
    assert found[0]["degraded"] == pytest.approx(found[1]["degraded"], rel=1e-6)
