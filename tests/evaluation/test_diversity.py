"""Distances between images, against values worked out by hand, and the classifier."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import datasets, seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation import classifier, diversity

CPU = torch.device("cpu")


def test_nearest_neighbors_finds_the_image_and_its_distance(monkeypatch):
    monkeypatch.setattr(diversity, "CHUNK_IMAGES", 7)
    train = ImageSet(torch.randint(256, (20, 1, 6, 6), generator=seeds.generator(1)).to(torch.uint8))
    nearest = diversity.nearest_neighbors(train.images(torch.tensor([11, 3])) + 0.02, train)
    assert nearest.number.tolist() == [11, 3]
    torch.testing.assert_close(nearest.distance, torch.full((2,), 0.01), rtol=0, atol=2e-3)


def test_pairwise_distance_of_three_flat_images():
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    assert diversity.pairwise_distance(images) == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert diversity.pairwise_distance(images[:1]) == 0


@pytest.fixture
def splits():
    return [datasets.load("digits", datasets.DatasetRequest(split, 12)) for split in ("train", "test")]


LONG = pytest.param(classifier.STEPS, classifier.BATCH, marks=pytest.mark.slow)


@pytest.mark.parametrize(("steps", "batch"), [(120, 32), LONG])
def test_a_classifier_learns_the_digits(tmp_path, monkeypatch, splits, steps, batch):
    monkeypatch.setattr(classifier, "STEPS", steps)
    monkeypatch.setattr(classifier, "BATCH", batch)
    network = classifier.load_or_train(*splits, tmp_path, "digits", CPU)
    assert float(network.accuracy) > 0.9
    with torch.no_grad():
        scores = network(splits[1].images(slice(None)))
        features = network.features(splits[1].images(slice(None)))
    assert float((scores.argmax(1) == splits[1].labels).double().mean()) == pytest.approx(float(network.accuracy))
    assert features.shape == (300, classifier.FEATURES)


def test_a_classifier_is_cached(tmp_path, monkeypatch, splits):
    monkeypatch.setattr(classifier, "STEPS", 5)
    steps_seen = []
    network = classifier.load_or_train(*splits, tmp_path, "digits", CPU, lambda *seen: steps_seen.append(seen))
    assert steps_seen[-1] == (5, 5)
    steps_seen.clear()
    again = classifier.load_or_train(*splits, tmp_path, "digits", CPU, lambda *seen: steps_seen.append(seen))
    assert not steps_seen
    assert torch.equal(again.head.weight, network.head.weight)
    assert len(list(tmp_path.iterdir())) == 1
    next(tmp_path.iterdir()).write_bytes(b"cut")
    once_more = classifier.load_or_train(*splits, tmp_path, "digits", CPU)
    assert torch.equal(once_more.head.weight, network.head.weight)
