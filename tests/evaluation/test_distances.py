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
    """Images that are their own features, unrounded."""

    def images(self, indices):
        return self.pixels[indices]


def to(wanted: torch.Tensor) -> distribution.ReferenceStats:
    rows = wanted.float()
    return distribution.reference_stats(GivenFeatures(rows.shape[1]), Vectors(rows[:, :, None, None]))


def distances(found: torch.Tensor, wanted: torch.Tensor, batch: int = 1000, *, is_paired: bool = False) -> Distances:
    meter = Distances(to(wanted))
    numbers = range(len(found))
    for first, part in enumerate(found.float().split(batch)):
        meter.update(part[:, :, None, None], numbers[first * batch :][: len(part)] if is_paired else None)
    return meter


def gaussians(count: int, size: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, size, generator=seeds.generator(seed), dtype=torch.float64)


def test_frechet_distance_of_gaussians_in_closed_form():
    numbers = gaussians(200_000)
    near, far = numbers * torch.tensor([1.0, 2.0]), numbers * torch.tensor([3.0, 1.0]) + torch.tensor([1.0, -2.0])
    # Diagonal covariances: |m - m'|^2 + sum (s - s')^2.
    assert distances(near, far, 50_000).result()["fd"] == pytest.approx(5 + 4 + 1, rel=0.02)
    assert distances(near, near, 50_000).result()["fd"] == pytest.approx(0, abs=1e-6)
    turned = near @ torch.linalg.qr(gaussians(2, seed=2)).Q
    assert distances(turned, turned + 3, 50_000).result()["fd"] == pytest.approx(18, rel=1e-4)


def test_distances_are_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Module(torch.nn.Module):
        num_features = 5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    wanted, found = gaussians(200, 5).float(), gaussians(200, 5, seed=7).float() * 1.3 + 0.2
    theirs = FrechetInceptionDistance(feature=Module(), input_img_size=(5, 1, 1)).set_dtype(torch.float64)
    for rows, is_real in ((wanted, True), (found, False)):
        theirs.update(rows[:, :, None, None], real=is_real)
    ours = distances(found, wanted).result()
    assert ours["fd"] == pytest.approx(float(theirs.compute()), rel=1e-4)
    # One block, against the real one that it is held against.
    block = to(wanted).blocks[1]
    kernel = KernelInceptionDistance(feature=Module(), subsets=1, subset_size=len(block))
    kernel.update(block[:, :, None, None], real=True)
    kernel.update(found[: len(block), :, None, None], real=False)
    ours = distances(found[: len(block)], wanted).result()
    assert ours["kd"] == pytest.approx(float(kernel.compute()[0]), rel=1e-4)


def test_kernel_distance_by_its_definition_over_every_image():
    wanted, found = gaussians(450, 3), gaussians(450, 3, seed=5) + 0.5

    def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 3 + 1) ** 3

    target, values = to(wanted), []
    for number, block in enumerate(found.float().double().split(200)):
        real = target.blocks[(number + 1) % 2].double()[: len(block)]
        m = len(block)
        own = sum((k(x, x).sum() - k(x, x).trace()) / (m * (m - 1)) for x in (real, block))
        values.append((own - 2 * k(real, block).mean(), m))
    mean = sum(value * m for value, m in values) / sum(m for _, m in values)
    assert sum(m for _, m in values) == 450
    assert distances(found, wanted, 37).result()["kd"] == pytest.approx(float(mean), rel=1e-5)


def test_kernel_distance_is_unbiased_and_frechet_distance_is_not():
    found = [distances(gaussians(300, 4, seed), gaussians(4000, 4, seed + 500)).result() for seed in range(20, 60)]
    kernel = torch.tensor([row["kd"] for row in found])
    assert abs(kernel.mean()) < 3 * kernel.std() / len(found) ** 0.5 + 0.01
    assert min(row["fd"] for row in found) > 0


def test_kernel_distance_of_restored_images_is_unbiased_too():
    """Held against their own originals, near perfect restorations would come out below nothing."""
    for count in (300, 1000):
        found = []
        for seed in range(40):
            wanted = gaussians(count, 4, seed)
            target = to(wanted)
            meter, numbers = Distances(target), Vectors(wanted[:, :, None, None]).draw(count)
            meter.update((wanted + 0.01)[numbers].float()[:, :, None, None], numbers.tolist())
            found.append(meter.result()["kd"])
        kernel = torch.tensor(found)
        assert abs(kernel.mean()) < 3 * kernel.std() / len(found) ** 0.5 + 0.002, count


def test_no_distance_depends_on_the_batch():
    wanted, found = gaussians(700, 5), gaussians(650, 5, seed=7) * 1.3
    one, other = distances(found, wanted, 650), distances(found, wanted, 33)
    for key, value in one.result().items():
        assert value == pytest.approx(other.result()[key], rel=1e-9)
    assert one.intervals()["fd"] == pytest.approx(other.intervals()["fd"], rel=1e-9)


def test_the_interval_is_as_wide_as_other_images_would_make_it():
    meters = [distances(gaussians(1000, 6, seed) + 0.3, gaussians(20_000, 6, seed + 500)) for seed in range(30)]
    for key in ("fd", "kd"):
        spread = torch.tensor([meter.result()[key] for meter in meters]).std()
        widths = torch.tensor([meter.intervals()[key] for meter in meters])
        told = ((widths[:, 1] - widths[:, 0]) / 2 / 1.96).mean()
        assert 0.6 < told / spread < 1.6, key
        assert all(low <= meter.result()[key] <= high for meter, (low, high) in zip(meters, widths, strict=True))


def test_restored_images_are_resampled_with_their_originals():
    """Other images would move a set and its restorations alike: less than if only one of both were others."""
    pairs = []
    for seed in range(30):
        wanted = gaussians(600, 6, seed)
        pairs.append((wanted * 0.9 + 0.1 * gaussians(600, 6, seed + 100), wanted))
    paired = [distances(found, wanted, is_paired=True) for found, wanted in pairs]
    spread = torch.tensor([meter.result()["fd"] for meter in paired]).std()

    def told(meters: list[Distances]) -> torch.Tensor:
        ends = torch.tensor([meter.intervals()["fd"] for meter in meters])
        return ((ends[:, 1] - ends[:, 0]) / 2 / 1.96).mean()

    assert 0.6 < told(paired) / spread < 1.6
    assert told([distances(found, wanted) for found, wanted in pairs]) > 2 * told(paired)


def test_few_images_have_distances_without_an_interval_and_one_has_none():
    wanted = gaussians(60, 5)
    few = distances(gaussians(4, 5, 3), wanted)
    assert few.has_too_few_images
    assert few.result()["fd"] > 0
    assert few.intervals() == {"fd": None, "kd": None}
    assert distances(gaussians(1, 5, 3), wanted).result() == {"fd": None, "kd": None}
    assert distances(gaussians(50, 5, 3), wanted[:1]).result() == {"fd": None, "kd": None}
    assert distances(gaussians(50, 5, 3), wanted[:5]).has_too_few_images
    assert not distances(gaussians(6, 5, 3), wanted).has_too_few_images


def test_images_that_are_not_numbers_have_no_distance():
    wanted = gaussians(200, 5)
    found = gaussians(200, 5, 3)
    found[7] = torch.nan
    assert distances(found, wanted).result() == distances(found, wanted).intervals() == {"fd": None, "kd": None}


def test_other_features_than_inceptions_have_another_name():
    assert distribution.labels(GivenFeatures(3)) == {"fd": "FD-given", "kd": "KD-given"}
