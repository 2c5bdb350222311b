"""RMSE, PSNR and SSIM, against explicit formulas and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import metrics as skimage

from colddiff_core import seeds
from colddiff_core.errors import UsageError
from colddiff_core.evaluation import bootstrap
from colddiff_core.evaluation.fidelity import PSNR_LIMIT, Fidelity


def pair(count: int = 5, size: int = 20):
    numbers = seeds.generator(0)
    a = torch.rand(count, 3, size, size, generator=numbers) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=numbers)).clamp(-1, 1)


def ssim_by_hand(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return SSIM as in Wang et al. 2004 on [0, 1]: 11 x 11 Gaussian window, sigma 1.5, no padding."""
    a, b = (a.double() + 1) / 2, (b.double() + 1) / 2
    line = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window.expand(x.shape[1], 1, 11, 11), groups=x.shape[1])

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean())


def measured(a: torch.Tensor, b: torch.Tensor) -> Fidelity:
    meter = Fidelity()
    meter.update(a[:2], b[:2])
    meter.update(a[2:], b[2:])
    return meter


def test_definitions():
    a, b = pair()
    results = measured(a, b).result()
    squared = ((a - b) / 2).double().square()
    assert results["rmse"] == pytest.approx(squared.mean().sqrt().item(), rel=1e-6)
    per_image = -10 * squared.mean((1, 2, 3)).log10()
    assert results["psnr"] == pytest.approx(per_image.mean().item(), rel=1e-5)
    assert results["ssim"] == pytest.approx(ssim_by_hand(a, b), abs=1e-5)


def test_ssim_of_flat_images_in_closed_form():
    # Without variance SSIM is (2 m n + C1) / (m^2 + n^2 + C1), m and n on [0, 1].
    meter = Fidelity()
    meter.update(torch.full((1, 1, 16, 16), -0.5), torch.full((1, 1, 16, 16), 0.5))
    assert meter.result()["ssim"] == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_match_scikit_image_where_definitions_agree(channels):
    a, b = (x[:, :channels] for x in pair(size=33))
    results = measured(a, b).result()
    expected = []
    for x, y in zip(a, b, strict=True):
        one, other = ((z.numpy().astype(np.float64) + 1) / 2 for z in (x, y))
        ssim = skimage.structural_similarity(
            one, other, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        expected.append((skimage.peak_signal_noise_ratio(one, other, data_range=1), ssim))
    psnr, ssim = np.mean(expected, axis=0)
    assert results["psnr"] == pytest.approx(psnr, rel=1e-5)
    assert results["ssim"] == pytest.approx(ssim, abs=1e-5)


def test_perfect_images_and_images_smaller_than_the_window():
    a, _ = pair(size=8)
    meter = Fidelity()
    meter.update(a, a)
    assert meter.result() == {"rmse": 0.0, "psnr": PSNR_LIMIT, "ssim": None}
    assert meter.intervals() == {"rmse": (0, 0), "psnr": (PSNR_LIMIT, PSNR_LIMIT), "ssim": None}


def test_outputs_are_clamped_to_the_pixel_range():
    meter = Fidelity()
    meter.update(torch.full((1, 1, 12, 12), 7.0), torch.ones(1, 1, 12, 12))
    assert meter.result()["rmse"] == 0


def test_images_of_mixed_sizes_are_refused():
    with pytest.raises(UsageError, match="2x3x20x20 and 2x3x16x16"):
        Fidelity().update(torch.zeros(2, 3, 20, 20), torch.zeros(2, 3, 16, 16))


def test_intervals_cover_the_truth_at_their_level():
    numbers, held = seeds.generator(3), 0
    for _ in range(100):
        squares = torch.randn(60, 1, generator=numbers, dtype=torch.float64).square()  # of mean 1
        ((low, high),) = bootstrap.intervals(squares, torch.sqrt)
        held += low <= 1 <= high
    assert 86 <= held <= 99


def test_an_interval_ends_two_standard_errors_to_each_side():
    values = torch.randn(2000, 1, generator=seeds.generator(4), dtype=torch.float64)
    ((low, high),) = bootstrap.intervals(values, lambda means: means)
    error = float(values.std()) / len(values) ** 0.5
    for end, sign in ((low, -1), (high, 1)):
        assert (end - float(values.mean())) * sign == pytest.approx(1.96 * error, rel=0.08)


@pytest.mark.parametrize("count", [2, 7, 260, 5000, bootstrap.DRAWN_VALUES])
def test_resamples_drawn_together_are_those_drawn_one_by_one(count, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 20)
    values = torch.randn(count, 3, generator=seeds.generator(5), dtype=torch.float64)
    found = []
    bootstrap.intervals(values, lambda means: found.append(means) or means)
    numbers = seeds.generator("bootstrap", count)
    wanted = [values[torch.randint(count, (count,), generator=numbers)].mean(0) for _ in range(20)]
    assert torch.equal(found[0], torch.stack(wanted))


def test_one_image_has_no_interval():
    a, b = pair(count=1)
    meter = Fidelity()
    meter.update(a, b)
    assert set(meter.intervals().values()) == {None}


def test_a_perceptual_distance_is_averaged():
    a, b = pair()
    meter = Fidelity(perceptual=lambda images, originals: (images - originals).abs().amax((1, 2, 3)))
    meter.update(a, b)
    assert meter.result()["lpips"] == pytest.approx(float((a - b).abs().amax((1, 2, 3)).mean()))
    low, high = meter.intervals()["lpips"]
    assert low < meter.result()["lpips"] < high
