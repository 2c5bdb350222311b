"""What hands training images to the loop: the set's own, cropped and mirrored by the step's numbers, on any path."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from colddiff_core import devices, experiment, seeds
from colddiff_core.config import presets
from colddiff_core.datasets import ImageSet, from_config
from colddiff_core.images import to_floats
from colddiff_core.models import memory
from colddiff_core.training import passes
from colddiff_core.training.loader import BatchLoader
from colddiff_core.training.step import Stepper

CPU = torch.device("cpu")
CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.fixture(params=["resident", "ahead", "gathered when asked for"])
def path(request, monkeypatch) -> str:
    """Which of its paths a feed takes; the background thread is the same without a GPU."""
    if request.param != "resident":
        monkeypatch.setattr(devices, "fits", lambda pixels, device: False)
    return request.param


@pytest.fixture
def images() -> ImageSet:
    """Images of 11 pixels, each pixel of its own value or nearly so."""
    return ImageSet(torch.randint(0, 256, (40, 3, 11, 11), generator=seeds.generator(0), dtype=torch.uint8))


def take(made: BatchLoader, path: str, *parts: torch.Tensor, seed: int = 1) -> torch.Tensor:
    numbers = seeds.generator(seed)
    if path == "ahead":
        for part in parts:
            made.ahead(part)
    return torch.cat([made.take(part, made.draw(len(part), numbers)).cpu() for part in parts])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_without_crop_or_flip_images_are_the_sets_own(images, path, device):
    made = BatchLoader(images, torch.device(device), size=11, flip=False)
    picked = torch.tensor([3, 39, 3, 0])
    found = take(made, path, picked)
    assert made.is_resident == (path == "resident")
    assert torch.equal(found, images.images(picked))
    assert found.dtype == torch.float32


def test_nothing_is_drawn_where_nothing_is_random(images):
    numbers = seeds.generator(1)
    made = BatchLoader(images, CPU, size=11, flip=False)
    made.take(torch.arange(4), made.draw(4, numbers))
    assert torch.equal(numbers.get_state(), seeds.generator(1).get_state())


def test_mirroring_is_drawn_as_it_always_was(images, path):
    picked = torch.arange(40)
    found = take(BatchLoader(images, CPU, size=11, flip=True), path, picked)
    x0 = images.images(picked)
    mirrored = torch.rand(40, generator=seeds.generator(1)) < 0.5
    assert 0 < mirrored.sum() < 40
    assert torch.equal(found, torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(-1), x0))


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_windows_are_cut_after_mirroring(images, path, device):
    picked = torch.arange(40)
    found = take(BatchLoader(images, torch.device(device), size=8, flip=True), path, picked)
    numbers = seeds.generator(1)
    mirrored = torch.rand(40, generator=numbers) < 0.5
    corners = torch.randint(4, (40, 2), generator=numbers)
    for x, whole, is_mirrored, (top, left) in zip(found, images.images(picked), mirrored, corners, strict=True):
        window = whole[:, top : top + 8, left : left + 8]
        assert torch.equal(x, window.flip(-1) if is_mirrored else window)


def test_windows_reach_every_place_and_no_further():
    margin, size = 3, 5
    sheet = torch.arange((size + margin) ** 2, dtype=torch.uint8).view(1, 1, size + margin, size + margin)
    made = BatchLoader(ImageSet(sheet), CPU, size=size, flip=False)
    found = made.take(torch.zeros(400, dtype=torch.int64), made.draw(400, seeds.generator(1)))
    values = ((found + 1) * 127.5).round().long()[:, 0]
    assert (values[:, 0, 1:] - values[:, 0, :-1] == 1).all()  # no window runs over an edge
    assert (values[:, 1:] - values[:, :-1] == size + margin).all()
    assert len(values[:, 0, 0].unique()) == (margin + 1) ** 2


@pytest.mark.parametrize(("size", "flip"), [(11, True), (8, False)])
def test_a_batch_in_parts_is_the_batch(images, path, size, flip):
    picked = torch.randperm(40, generator=seeds.generator(2))
    made = BatchLoader(images, CPU, size=size, flip=flip)
    whole = take(made, path, picked)
    for width in (1, 7, 16):
        assert torch.equal(take(made, path, *picked.split(width)), whole)


def test_images_announced_but_not_taken_are_skipped(images, monkeypatch):
    monkeypatch.setattr(devices, "fits", lambda pixels, device: False)
    made = BatchLoader(images, CPU, size=11, flip=False)
    wanted = [torch.tensor([1, 2]), torch.tensor([3, 4, 5])]
    for announced in (torch.tensor([9]), wanted[0], torch.tensor([8, 8]), wanted[1]):
        made.ahead(announced)
    for picked in (*wanted, torch.tensor([6])):
        assert torch.equal(made.take(picked, made.draw(len(picked), seeds.generator(1))), images.images(picked))


def test_gathering_goes_on_beside_the_loop(images, monkeypatch):
    monkeypatch.setattr(devices, "fits", lambda pixels, device: False)
    made = BatchLoader(images, CPU, size=11, flip=False)
    sent, gathered = made._send, threading.Event()

    def send(indices):
        assert threading.current_thread() is not threading.main_thread()
        found = sent(indices)
        gathered.set()
        return found

    monkeypatch.setattr(made, "_send", send)
    made.ahead(torch.tensor([1, 2]))
    assert gathered.wait(10)  # before it is asked for


@pytest.mark.parametrize("is_told", [True, False])
def test_an_error_in_the_thread_is_raised_when_images_are_taken(images, monkeypatch, is_told):
    monkeypatch.setattr(devices, "fits", lambda pixels, device: False)
    made = BatchLoader(images, CPU, size=11, flip=False)
    absent, there = torch.tensor([40]), torch.tensor([0])
    if is_told:
        made.ahead(absent)
        made.ahead(there)
    with pytest.raises(IndexError):
        made.take(absent, made.draw(len(absent), seeds.generator(1)))
    assert torch.equal(made.take(there, made.draw(len(there), seeds.generator(1))), images.images(there))


def test_images_that_are_too_small_are_refused(images):
    with pytest.raises(ValueError, match="no window of 12"):
        BatchLoader(images, CPU, size=12, flip=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pixels_beyond_the_share_of_a_gpu_stay_off_it(images, monkeypatch):
    device = torch.device("cuda")
    assert BatchLoader(images, device, size=11, flip=False).is_resident
    monkeypatch.setattr(devices, "RESIDENT_SHARE", 0.0)
    assert not BatchLoader(images, device, size=11, flip=False).is_resident


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_a_gpu(images, path):
    made = BatchLoader(images, torch.device("cuda"), size=8, flip=True)
    take(made, path, torch.arange(4))
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.ahead(torch.arange(9))
        made.take(torch.arange(9), made.draw(9, seeds.generator(1)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_margin_is_loaded_and_only_training_sees_it():
    config = presets.load("digits-blur", ["data.size=12", "data.margin=3"])
    plain = presets.load("digits-blur", ["data.size=15"])
    whole = from_config.load_images(config, "train", has_margin=True)
    assert torch.equal(whole.pixels, from_config.load_images(plain, "train").pixels)
    for split in ("train", "test"):
        found = from_config.load_images(config, split)
        assert found.pixels.shape[1:] == (1, 12, 12)
        assert torch.equal(found.pixels, from_config.load_images(plain, split).pixels[..., 1:13, 1:13])
    assert presets.load("digits-blur").data.margin == 0


def test_a_set_is_kept_on_a_device_that_has_room_and_picked_from_wherever_it_is(images, monkeypatch):
    elsewhere, picked = torch.device("meta"), torch.tensor([3, 39, 3, 0])
    assert images.kept_on(elsewhere).pixels.device == elsewhere
    assert images.images(picked, elsewhere).device == elsewhere
    assert torch.equal(images.images(picked, CPU), to_floats(images.pixels[picked]))
    monkeypatch.setattr(devices, "fits", lambda pixels, device: False)
    assert images.kept_on(elsewhere) is images


def test_training_keeps_the_second_data_set_on_the_device(monkeypatch):
    built = experiment.build(presets.load("digits-animorph"), 1, CPU)
    kept = ImageSet(torch.zeros(5, 1, 16, 16, dtype=torch.uint8))
    monkeypatch.setattr(ImageSet, "kept_on", lambda images, device: kept if device == built.device else images)
    assert Stepper(built, kept, pytest.fail).experiment.second is kept
    assert built.second is not kept  # in sampling it stays where it is


def test_a_second_data_set_on_the_gpu_reduces_the_budget_of_passes(monkeypatch):
    built = experiment.build(presets.load("digits-animorph"), 1, CPU)
    monkeypatch.setattr(passes, "follow_memory", lambda device: True)
    pixels, gib = 3 << 28, 1 << 30

    def taken(first: int, second: int) -> int:
        """Return by how many bytes two data sets of these sizes reduce the budget of passes on a GPU with 2 GiB."""
        kept = ImageSet(torch.empty(second, 1, 1, 1, dtype=torch.uint8))
        rooms = []
        with monkeypatch.context() as patch:
            patch.setattr(memory, "total_bytes", lambda device: 2 * gib)
            patch.setattr(memory, "training_batch_size", lambda *given: rooms.append(given[-1]) or 1)
            passes.most_images(dataclasses.replace(built, second=kept), first)
            passes.most_images(dataclasses.replace(built, second=None), 0)
        return rooms[1] - rooms[0]

    assert taken(0, 1000) == 1000
    assert taken(1 << 20, 1000) == (1 << 20) + 1000
    assert taken(pixels, gib // 2) == pixels + gib // 2
    assert taken(pixels, pixels) == pixels  # too large to be kept beside the first
    assert taken(2 * gib, gib) == gib


def test_a_second_data_set_has_no_margin():
    overrides = ["data.size=12", "data.margin=3", "degradation.name=animorph", "data.second=digits"]
    built = experiment.build(presets.load("digits-noise", overrides), 1, CPU)
    assert built.second is not None
    assert built.second.pixels.shape[1:] == (1, 12, 12)
    built.try_out(from_config.load_images(built.config, "train", has_margin=True))
