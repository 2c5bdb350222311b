"""Distances between distributions, against closed forms and against torchmetrics."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation import distances as distribution
from colddiff_core.evaluation.distances import Distances


class GivenFeatures:
    """Features that are the images themselves."""

    name = "FD-given"

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def metadata(self) -> dict:
        return {"kind": "given"}


class Vectors(ImageSet):
    """Images that are not rounded, to serve as their own features."""

    def images(self, indices):
        return self.pixels[indices]


def stats_of(real: torch.Tensor) -> distribution.ReferenceStats:
    rows = real.float()
    return distribution.reference_stats(GivenFeatures(rows.shape[1]), Vectors(rows[:, :, None, None]))


def distances(
    generated: torch.Tensor,
    real: torch.Tensor | distribution.ReferenceStats,
    batch: int = 1000,
    *,
    is_paired: bool = False,
) -> Distances:
    meter = Distances(stats_of(real) if isinstance(real, torch.Tensor) else real)
    numbers = range(len(generated))
    for first, part in enumerate(generated.float().split(batch)):
        meter.update(part[:, :, None, None], numbers[first * batch :][: len(part)] if is_paired else None)
    return meter


def gaussians(count: int, size: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, size, generator=seeds.generator(seed), dtype=torch.float64)


def test_frechet_distance_of_gaussians_in_closed_form():
    numbers = gaussians(2000)
    numbers -= numbers.mean(0)
    numbers = (
        numbers @ torch.linalg.inv(torch.linalg.cholesky(numbers.T.cov())).T
    )  # mean exactly 0, covariance exactly 1
    near, far = numbers * torch.tensor([1.0, 2.0]), numbers * torch.tensor([3.0, 1.0]) + torch.tensor([1.0, -2.0])
    # Diagonal covariances: |m - m'|^2 + sum (s - s')^2.
    assert distances(near, far, 500).result()["fd"] == pytest.approx(5 + 4 + 1, rel=1e-4)
    assert distances(near, near, 500).result()["fd"] == pytest.approx(0, abs=1e-6)
    turned = near @ torch.linalg.qr(gaussians(2, seed=2)).Q
    assert distances(turned, turned + 3, 500).result()["fd"] == pytest.approx(18, rel=1e-4)


def test_distances_match_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Module(torch.nn.Module):
        num_features = 5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    real, generated = gaussians(200, 5).float(), gaussians(200, 5, seed=7).float() * 1.3 + 0.2
    theirs = FrechetInceptionDistance(feature=Module(), input_img_size=(5, 1, 1)).set_dtype(torch.float64)
    for rows, is_real in ((real, True), (generated, False)):
        theirs.update(rows[:, :, None, None], real=is_real)
    ours = distances(generated, real).result()
    assert ours["fd"] == pytest.approx(float(theirs.compute()), rel=1e-4)
    # One block, against the real block that it is compared with.
    block = stats_of(real).blocks[1]
    kernel = KernelInceptionDistance(feature=Module(), subsets=1, subset_size=len(block))
    kernel.update(block[:, :, None, None], real=True)
    kernel.update(generated[: len(block), :, None, None], real=False)
    ours = distances(generated[: len(block)], real).result()
    assert ours["kd"] == pytest.approx(float(kernel.compute()[0]), rel=1e-4)


def test_kernel_distance_matches_its_definition():
    real, generated = gaussians(450, 3), gaussians(450, 3, seed=5) + 0.5

    def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 3 + 1) ** 3

    target, values = stats_of(real), []
    for number, block in enumerate(generated.float().double().split(200)):
        other = target.blocks[(number + 1) % 2].double()[: len(block)]
        m = len(block)
        own = sum((k(x, x).sum() - k(x, x).trace()) / (m * (m - 1)) for x in (other, block))
        values.append((own - 2 * k(other, block).mean(), m))
    mean = sum(value * m for value, m in values) / sum(m for _, m in values)
    assert sum(m for _, m in values) == 450
    assert distances(generated, real, 37).result()["kd"] == pytest.approx(float(mean), rel=1e-5)


def test_kernel_distance_is_unbiased_and_frechet_distance_is_not():
    generated = [distances(gaussians(300, 4, seed), gaussians(4000, 4, seed + 500)).result() for seed in range(20, 60)]
    kernel = torch.tensor([row["kd"] for row in generated])
    assert abs(kernel.mean()) < 3 * kernel.std() / len(generated) ** 0.5 + 0.01
    assert min(row["fd"] for row in generated) > 0


def test_kernel_distance_of_restored_images_is_unbiased_too():
    """Compared with their own originals, near perfect restorations would have negative distances."""
    for count in (300, 1000):
        generated = []
        for seed in range(40):
            real = gaussians(count, 4, seed)
            target = stats_of(real)
            meter, numbers = Distances(target), Vectors(real[:, :, None, None]).draw(count)
            meter.update((real + 0.01)[numbers].float()[:, :, None, None], numbers.tolist())
            generated.append(meter.result()["kd"])
        kernel = torch.tensor(generated)
        assert abs(kernel.mean()) < 3 * kernel.std() / len(generated) ** 0.5 + 0.002, count


def test_no_distance_depends_on_the_batch():
    real, generated = gaussians(700, 5), gaussians(650, 5, seed=7) * 1.3
    one, other = distances(generated, real, 650), distances(generated, real, 33)
    for key, value in one.result().items():
        assert value == pytest.approx(other.result()[key], rel=1e-9)
    assert one.intervals()["fd"] == pytest.approx(other.intervals()["fd"], rel=1e-9)


def test_the_interval_is_as_wide_as_the_spread_over_samples():
    real = stats_of(gaussians(20_000, 6, 500))
    meters = [distances(gaussians(1000, 6, seed) + 0.3, real) for seed in range(16)]
    results, intervals = [meter.result() for meter in meters], [meter.intervals() for meter in meters]
    for key in ("fd", "kd"):
        spread = torch.tensor([result[key] for result in results]).std()
        widths = torch.tensor([ends[key] for ends in intervals])
        estimate = ((widths[:, 1] - widths[:, 0]) / 2 / 1.96).mean()
        assert 0.6 < estimate / spread < 1.6, key
        assert all(low <= result[key] <= high for result, (low, high) in zip(results, widths, strict=True))


def test_restored_images_are_resampled_with_their_originals():
    """A resample moves a set and its restorations together, so the interval is narrower than for unpaired images."""
    pairs = []
    for seed in range(16):
        real = gaussians(600, 6, seed)
        pairs.append((real * 0.9 + 0.1 * gaussians(600, 6, seed + 100), real))
    paired = [distances(generated, real, is_paired=True) for generated, real in pairs]
    spread = torch.tensor([meter.result()["fd"] for meter in paired]).std()

    def deviation(meters: list[Distances]) -> torch.Tensor:
        ends = torch.tensor([meter.intervals()["fd"] for meter in meters])
        return ((ends[:, 1] - ends[:, 0]) / 2 / 1.96).mean()

    together = deviation(paired[:4])
    assert 0.6 < together / spread < 1.6
    assert deviation([distances(generated, real) for generated, real in pairs[:4]]) > 2 * together


def test_few_images_have_distances_without_an_interval_and_one_has_none():
    real = gaussians(60, 5)
    few = distances(gaussians(4, 5, 3), real)
    assert few.has_too_few_images
    assert few.result()["fd"] > 0
    assert few.intervals() == {"fd": None, "kd": None}
    assert distances(gaussians(1, 5, 3), real).result() == {"fd": None, "kd": None}
    assert distances(gaussians(50, 5, 3), real[:1]).result() == {"fd": None, "kd": None}
    assert distances(gaussians(50, 5, 3), real[:5]).has_too_few_images
    assert not distances(gaussians(6, 5, 3), real).has_too_few_images


def test_images_that_are_not_finite_have_no_distance():
    real = gaussians(200, 5)
    generated = gaussians(200, 5, 3)
    generated[7] = torch.nan
    assert distances(generated, real).result() == distances(generated, real).intervals() == {"fd": None, "kd": None}


def test_only_inception_features_are_called_fid():
    assert distribution.labels(GivenFeatures(3)) == {"fd": "FD-given", "kd": "KD-given"}
