"""Crops of large pictures at full resolution: they cover every window, are reproducible, and need little memory."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_files import record_decoded, use_temporary_cache
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from colddiff_core import datasets, experiment
from colddiff_core.config import presets
from colddiff_core.datasets import DatasetRequest, cache, crops, decoding, from_config, photos
from colddiff_core.datasets.picture_files import find_pictures
from colddiff_core.errors import UsageError
from colddiff_core.training import start
from colddiff_core.training.loader import BatchLoader

SIZE = 16


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    return record_decoded(monkeypatch)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed)).save(path)
    return path


def ask(root: Path, split="train", *, size: int = SIZE, crop: int = 5, **values) -> datasets.ImageSet:
    return datasets.load("folder", DatasetRequest(split, size, values.pop("channels", 0), root, crop=crop, **values))


def photographs(root: Path, *, splits=("train", "test"), classes=("cat", "dog"), count: int = 3) -> Path:
    """Write distinct pictures of 40 to 60 pixels, with a folder per class."""
    for number, (split, name, i) in enumerate(itertools.product(splits, classes, range(count))):
        write(root / split / name / f"{i}.png", 40 + 7 * i, 60 - 5 * i, number)
    return root


def matches(picture: np.ndarray, tile: torch.Tensor) -> list[tuple[int, int]]:
    """Return where in a picture (H, W, C) a tile (C, S, S) appears."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, tuple(tile.shape[1:]), (0, 1))
    corners = np.argwhere((windows[..., 0, 0] == tile[:, 0, 0].numpy()).all(2)).tolist()
    return [(row, column) for row, column in corners if (windows[row, column] == tile.numpy()).all()]


def places(picture: np.ndarray, tiles: torch.Tensor) -> list[tuple[int, int]]:
    """Return where in a picture (H, W, C) tiles (N, C, S, S) appear first; raises IndexError if one does not."""
    return [matches(picture, tile)[0] for tile in tiles]


@given(st.integers(5, 40), st.integers(5, 40), st.integers(1, 8), st.integers(0, 9))
def test_every_window_lies_within_a_tile(height, width, size, margin):
    side = size + margin
    tiles = crops.corners((height, width), DatasetRequest("train", side, crop=10_000, margin=margin), "a")
    assert len(set(tiles)) == len(tiles)
    if min(height, width) < side:
        assert tiles == []
        return
    assert tiles == sorted(tiles)
    assert all(0 <= top <= height - side and 0 <= left <= width - side for top, left in tiles)
    reached = {(top + i, left + j) for top, left in tiles for i in range(margin + 1) for j in range(margin + 1)}
    assert reached == set(itertools.product(range(height - size + 1), range(width - size + 1)))


@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 4), st.integers(1, 30))
def test_tiles_are_distinct_and_at_most_as_many_as_requested(height, width, margin, crop):
    every = crops.corners((height, width), DatasetRequest("train", 8, crop=100_000, margin=margin), "a")
    tiles = crops.corners((height, width), DatasetRequest("train", 8, crop=crop, margin=margin), "a")
    assert len(tiles) == min(crop, len(every))
    assert len(set(tiles)) == len(tiles)
    assert set(tiles) <= set(every)


def test_drawn_tiles_cover_the_whole_picture_and_depend_on_the_name():
    request = DatasetRequest("train", 64, crop=400)
    one, again, other = (crops.corners((4000, 6000), request, name) for name in ("a/1", "a/1", "a/2"))
    assert one == again
    assert one == sorted(one)
    assert len(set(one) & set(other)) < 10
    quarters = np.bincount([2 * (top > 3936 // 2) + (left > 5936 // 2) for top, left in one], minlength=4)
    assert quarters.min() > 60


@pytest.mark.parametrize("form", ["folders", "archives"])
def test_tiles_are_the_pixels_of_their_own_file(tmp_path, form):
    root = photographs(tmp_path / "data")
    pictures = {path: np.array(Image.open(path)) for path in sorted(root.rglob("*.png"))}
    before = ask(root)
    if form == "archives":
        for split in ("train", "test"):
            with tarfile.open(root / f"{split}.tar", "w") as archive:
                for path in sorted((root / split).rglob("*.png")):
                    archive.add(path, path.relative_to(root / split))
            shutil.rmtree(root / split)
    tiles = {split: ask(root, split) for split in ("train", "test")}
    assert torch.equal(tiles["train"].pixels, before.pixels)
    assert torch.equal(tiles["train"].labels, before.labels)
    for split, images_of in tiles.items():
        assert images_of.pixels.shape == (2 * 3 * 5, 3, SIZE, SIZE)
        assert (images_of.classes, images_of.skipped) == (("cat", "dog"), 0)
        for label, name in enumerate(images_of.classes):
            own = images_of.pixels[images_of.labels == label]
            paths = [path for path in pictures if path.parts[-3:-1] == (split, name)]
            for path, part in zip(paths, own.split(5), strict=True):
                assert len(set(places(pictures[path], part))) == 5


def test_upright_and_gray_as_whole_pictures_are(tmp_path):
    turned = Image.fromarray(noise(20, 30))
    exif = turned.getexif()
    exif[274] = 6
    for name in ("a", "b"):
        turned.save(tmp_path / f"{name}.png", exif=exif)
    upright = np.array(ImageOps.exif_transpose(turned))
    assert len(places(upright, ask(tmp_path, crop=9).pixels)) == 9
    gray = ask(tmp_path, crop=9, channels=1)
    assert gray.channels == 1
    places(np.array(ImageOps.exif_transpose(turned).convert("L"))[..., None], gray.pixels)


def test_no_photograph_is_in_both_splits(tmp_path):
    for number in range(12):
        write(tmp_path / f"{number}.png", 30, 30, number)
    sets = [ask(tmp_path, split, crop=4) for split in ("train", "test")]
    assert sum(map(len, sets)) == 12 * 4
    pictures = [noise(30, 30, number) for number in range(12)]
    sources = [
        {n for n, picture in enumerate(pictures) if any(matches(picture, x) for x in one.pixels)} for one in sets
    ]
    assert not sources[0] & sources[1]
    assert len(sources[0] | sources[1]) == 12


def test_each_crop_and_margin_has_its_own_cache_entry(tmp_path, kept, decoded):
    root = photographs(tmp_path / "data")
    requests = [{"crop": 5}, {"crop": 6}, {"crop": 6, "margin": 3}, {"crop": 0}]
    tiles = [ask(root, **one) for one in requests]
    assert len({one.digest() for one in tiles}) == 4
    assert len(decoded) == 4 * 6
    assert len(list(kept.glob("*.npy"))) == 3  # six whole pictures are too few to cache
    decoded.clear()
    for one, before in zip(requests[:3], tiles, strict=False):
        again = ask(root, **one)
        assert torch.equal(again.pixels, before.pixels)
        assert torch.equal(again.labels, before.labels)
    assert decoded == []
    write(root / "train" / "cat" / "0.png", 50, 50, 99)
    assert not torch.equal(ask(root).pixels, tiles[0].pixels)
    assert len(decoded) == 6


def test_a_margin_alone_changes_no_entry(tmp_path):
    entries = [cache.key(tmp_path, DatasetRequest("train", 8, margin=margin), 3, ()) for margin in (0, 2)]
    assert entries[0] == entries[1]


def test_pictures_are_decoded_a_few_at_a_time(tmp_path, monkeypatch):
    for number in range(12):
        write(tmp_path / "train" / f"{number}.png", 300, 400, number)
    write(tmp_path / "test" / "0.png", 20, 20)
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 256)
    each = 300 * 400 * 3
    monkeypatch.setattr(decoding, "MAX_CHUNK_BYTES", 2 * each)
    paths = find_pictures(tmp_path / "train").paths
    entries = (decoding.Entry(path, ".") for path in paths)
    chunks = [len(chunk) for chunk in decoding._chunks(entries, DatasetRequest("train", SIZE, crop=50))]
    assert chunks == [3, 3, 3, 3]
    assert [
        len(chunk) for chunk in decoding._chunks(map(decoding.Entry, paths, "." * 12), DatasetRequest("train", SIZE))
    ] == [12]
    ask(tmp_path, "test", crop=1)  # imports and first-call costs
    tracemalloc.start()
    tiles = ask(tmp_path, crop=50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(tiles) == 12 * 50
    assert peak < 8 * each  # decoding all twelve pictures at once would take more


def test_many_tiles_of_one_picture_are_written_in_portions(tmp_path, monkeypatch):
    for split in ("train", "test"):
        write(tmp_path / split / "0.png", 150, 150)
    added = []
    add = cache.CacheDraft.add
    monkeypatch.setattr(cache.CacheDraft, "add", lambda draft, pixels: added.append(len(pixels)) or add(draft, pixels))
    monkeypatch.setattr(decoding, "MAX_CHUNK_BYTES", 5 * 3 * SIZE**2)
    tiles = ask(tmp_path, crop=23)
    assert added == [5, 5, 5, 5, 3]
    there = places(noise(150, 150), tiles.pixels)
    expected = crops.corners((150, 150), DatasetRequest("train", SIZE, crop=23), "0.png")
    assert sorted(there) == expected
    assert there != expected  # shuffled: the first images are not all of one corner


def test_pictures_that_are_too_small_are_left_out_and_counted(tmp_path):
    root = photographs(tmp_path / "data", classes=("cat",))
    write(root / "train" / "cat" / "small.png", SIZE - 1, 90)
    write(root / "train" / "cat" / "fits.png", SIZE, SIZE, 7)
    (root / "train" / "cat" / "cut.png").write_bytes(b"cut")
    tiles = ask(root)
    assert (len(tiles), tiles.skipped) == (3 * 5 + 1, 2)
    config = presets.load("digits-blur", ["data.size=12", "data.margin=4", "data.crop=5"])
    note = from_config.left_out(config.data, tiles, "training")
    first = "cat/cut.png (not an image), cat/small.png (only 90 x 15 pixels)"
    assert note == f"left out 2 training files that could not be read or have no window of 16 x 16 pixels: {first}"
    assert from_config.left_out(config.data, ask(root, "test"), "test") == ""
    whole = presets.load("digits-blur").data
    assert from_config.left_out(whole, tiles, "test") == f"left out 2 test files that could not be read: {first}"
    with pytest.raises(UsageError, match=r"No readable image in .* has at least 99 x 99 pixels \(6 images tried"):
        ask(root, size=99)


def test_an_image_of_the_tile_size_is_its_only_tile(tmp_path):
    for split, label in itertools.product(("train", "test"), "ab"):
        write(tmp_path / "cifar10" / split / label / "0.png", 32, 32, ord(label))
    whole, tiles = (datasets.load("cifar10", DatasetRequest("train", 32, 3, tmp_path, crop=crop)) for crop in (0, 4))
    assert torch.equal(whole.pixels, tiles.pixels)
    assert torch.equal(whole.labels, tiles.labels)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_sets_without_sizes_of_their_own_refuse_a_crop(tmp_path, name):
    with pytest.raises(UsageError, match=rf"data\.crop does not work with {name}") as refusal:
        datasets.load(name, DatasetRequest("train", 8, directory=tmp_path, download=False, crop=1))
    assert "afhq, celeba, cifar10, folder, photos" in str(refusal.value)
    with pytest.raises(UsageError, match=r"data\.crop"):
        start.check_names(presets.load("digits-blur", ["data.crop=1", f"data.dataset={name}"]))


def test_cifar_in_its_binary_version_refuses_a_crop(tmp_path):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(UsageError, match=r"data\.crop does not work with the CIFAR-10 binary version"):
        datasets.load("cifar10", DatasetRequest("train", 32, directory=tmp_path, crop=1))


def test_training_sees_every_window_and_testing_the_centers(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "test"):
        write(root / split / "0.png", 11, 9)
    changes = ["data.dataset=folder", f"data.directory={root}", "data.size=4", "data.margin=2", "data.crop=99"]
    config = presets.load("digits-blur", changes)
    train = from_config.load_images(config, "train", has_margin=True)
    test = from_config.load_images(config, "test")
    assert (train.pixels.shape, test.pixels.shape) == ((3 * 2, 3, 6, 6), (3 * 2, 3, 4, 4))
    assert torch.equal(test.pixels, train.pixels[..., 1:5, 1:5])
    feed = BatchLoader(train, torch.device("cpu"), size=4, flip=False)
    taken = feed.take(torch.arange(6).repeat(200), feed.draw(1200, torch.Generator().manual_seed(0)))
    pixels = ((taken + 1) * 127.5).round().to(torch.uint8)
    assert set(places(noise(11, 9), pixels)) == set(itertools.product(range(8), range(6)))


def test_a_second_data_set_is_not_cropped():
    changes = ["data.size=12", "data.dataset=folder", "data.crop=5", "degradation.name=animorph", "data.second=digits"]
    built = experiment.build(presets.load("digits-noise", changes), 1, torch.device("cpu"))
    assert built.second is not None
    assert len(built.second) == 1497


def test_photos_come_with_packages_that_are_not_imported(monkeypatch):
    pytest.importorskip("skimage")
    for name in ("skimage", "sklearn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    train, test = (
        datasets.load("photos", DatasetRequest(split, 64, crop=20, margin=16)) for split in ("train", "test")
    )
    assert (train.pixels.shape, test.pixels.shape) == ((7 * 20, 3, 64, 64), (3 * 20, 3, 64, 64))
    assert (train.skipped, train.labels, train.classes) == (0, None, ())
    assert not {"skimage", "sklearn"} & set(sys.modules)
    assert datasets.required_package("photos") == "scikit-image"


def test_photo_splits_are_disjoint_and_gray_photos_are_for_gray():
    pytest.importorskip("skimage")
    named = [{*itertools.chain(*photos.COLORED[split].values())} for split in ("train", "test")]
    assert not named[0] & named[1]
    whole = {
        (split, channels): datasets.load("photos", DatasetRequest(split, 24, channels))
        for split, channels in itertools.product(("train", "test"), (0, 1, 3))
    }
    assert {asked: len(tiles) for asked, tiles in whole.items()} == {
        ("train", 0): 7,
        ("train", 1): 11,
        ("train", 3): 7,
        ("test", 0): 3,
        ("test", 1): 3,
        ("test", 3): 3,
    }
    assert all(tiles.skipped == 0 and tiles.channels == (asked[1] or 3) for asked, tiles in whole.items())
    colored = whole["train", 3].pixels.float()
    assert ((colored.amax(1) - colored.amin(1)).amax((1, 2)) > 30).all()
    assert len({tuple(x.flatten().tolist()) for split in ("train", "test") for x in whole[split, 3].pixels}) == 10


def test_photos_name_the_package_they_need(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name))
    with pytest.raises(UsageError, match="'photos' needs scikit-image") as refusal:
        datasets.load("photos", DatasetRequest("train", 32))
    assert "colddiff[photos]" in str(refusal.value)
