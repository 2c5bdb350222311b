"""Images in shards: read by index, in any order, by any number of threads."""

from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_files import SIDE, all_shades, members_of, open_split, shades_of, tar, use_temporary_cache, write_shards

from colddiff_core import datasets, experiment
from colddiff_core.config import presets
from colddiff_core.datasets import DatasetRequest, Shards, cache, from_config
from colddiff_core.datasets.shards import dataset, opening
from colddiff_core.errors import UsageError
from colddiff_core.training import provenance


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


def test_rows_come_in_the_order_of_the_indices(tmp_path):
    shards = open_split(write_shards(tmp_path / "data", classes=3))
    assert (len(shards), shards.channels, shards.shape, shards.class_count) == (18, 3, (3, SIDE, SIDE), 3)
    assert (shards.has_labels, shards.suffixes, shards.skipped, shards.note) == (True, {".png"}, 0, "")
    assert all_shades(shards) == list(range(18))
    numbers = torch.tensor([17, 0, 5, 4, 5, 12])
    rows = shards.rows(numbers)
    assert shades_of(rows) == numbers.tolist()
    assert (rows.dtype, tuple(rows.shape)) == (torch.uint8, (6, 3, SIDE, SIDE))
    assert shards.labels_of(numbers).tolist() == [n % 3 for n in numbers.tolist()]
    assert shards.labels_of(torch.tensor([1])).dtype == torch.int64
    assert open_split(tmp_path / "data", channels=1).rows(numbers).shape[1] == 1
    for wrong in (18, -1):
        with pytest.raises(IndexError):
            shards.rows(torch.tensor([wrong]))
    shards.close()


def test_an_epoch_takes_every_record_once(tmp_path):
    shards = open_split(write_shards(tmp_path / "data"), lanes=3)
    taken = torch.cat([shards.rows(shards.order(0, step, 6)) for step in range(3)])
    assert sorted(shades_of(taken)) == list(range(18))


def test_shards_and_image_sets_are_training_sets(tmp_path):
    def needs(images: datasets.TrainingSet) -> list[object]:
        picked = images.order(1, 2, 4)
        labels = images.labels_of(picked) if images.has_labels else None
        return [len(images), images.shape, images.rows(picked).shape, labels, images.digest(3), images.class_count]

    root = write_shards(tmp_path / "data", classes=3)
    streamed, held = open_split(root), datasets.load("shards", DatasetRequest("train", SIDE, 0, root))
    one, other = needs(streamed), needs(held)
    assert one[:3] == other[:3]
    assert one[5] == other[5] == 3
    held.close()
    streamed.close()


def test_a_set_held_in_memory_has_the_images_of_the_shards_and_is_cached(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "data", classes=3)
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 8)
    images = datasets.load("shards", DatasetRequest("train", SIDE, 0, root))
    assert sorted(shades_of(images.pixels)) == list(range(18))
    assert images.labels.tolist() == [n % 3 for n in shades_of(images.pixels)]
    monkeypatch.setattr(dataset.Shards, "_start_opening", None)
    again = datasets.load("shards", DatasetRequest("train", SIDE, 0, root))
    assert torch.equal(again.pixels, images.pixels)
    monkeypatch.undo()
    monkeypatch.setattr(opening, "MAX_HELD_RECORDS", 6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert sorted(shades_of(datasets.load("shards", DatasetRequest("train", SIDE, 0, root)).pixels)) == [
        0,
        3,
        6,
        9,
        12,
        15,
    ]


def test_a_set_held_in_memory_with_one_class_and_without_classes(tmp_path):
    for classes, expected in ((1, [0] * 4), (0, None)):
        images = datasets.load(
            "shards", DatasetRequest("test", SIDE, 0, write_shards(tmp_path / str(classes), classes=classes))
        )
        assert (images.labels.tolist() if classes else images.labels) == expected
        assert shades_of(images.pixels) == [1000, 1001, 1002, 1003]


def test_two_threads_with_few_open_shards_read_the_same_images(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "data", sizes=(3,) * 30, classes=5)
    monkeypatch.setattr(dataset, "SMALL_FILE_BYTES", 0)  # as with large ones
    shards = open_split(root, lanes=2)
    wrong: list[object] = []

    def read(seed: int) -> None:
        for step in range(8):
            numbers = shards.order(seed, step, 8)
            if shades_of(shards.rows(numbers)) != numbers.tolist():
                wrong.append(step)
            if shards.labels_of(numbers).tolist() != (numbers % 5).tolist():
                wrong.append(step)
            with shards._lock:
                if len(shards._open) > 2 + dataset.SPARE_SHARDS:
                    wrong.append(step)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    before = len(os.listdir("/dev/fd"))
    shards.close()
    assert len(os.listdir("/dev/fd")) < before


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    peaks = []
    for number, count in enumerate((8, 80)):
        root = write_shards(tmp_path / str(number), sizes=(12,) * count)
        shards = open_split(root, lanes=4)
        tracemalloc.start()
        for step in range(count * 2):
            shards.rows(shards.order(0, step, 6))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        shards.close()
        peaks.append(peak)
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def test_copies_have_one_digest_and_other_shards_another(tmp_path):
    one, other = (open_split(write_shards(tmp_path / name)) for name in "ab")
    assert one.digest() == other.digest()
    (tmp_path / "b" / "train-001.tar").write_bytes(tar(members_of(0, 3)))
    assert open_split(tmp_path / "b").digest() != one.digest()
    assert provenance._metadata(one) == {"count": 18, "digest": one.digest()}


def test_training_images_are_shards_or_a_tensor(tmp_path):
    root = write_shards(tmp_path / "data", classes=3)
    changes = ["data.dataset=shards", f"data.directory={root}", "data.size=8", "data.channels=1", "data.margin=2"]
    config = presets.load("digits-blur", [*changes, "data.lanes=2"])
    streamed = from_config.load_training(config)
    assert isinstance(streamed, Shards)
    assert streamed.shape == (1, 10, 10)
    assert from_config.load_images(config, "test").pixels.shape == (4, 1, 8, 8)
    with pytest.raises(UsageError, match=r"data\.crop"):
        from_config.load_training(presets.load("digits-blur", [*changes, "data.crop=3"]))
    held = from_config.load_training(presets.load("digits-blur", ["data.size=8", "data.margin=2"]))
    assert isinstance(held, datasets.ImageSet)
    assert held.shape == (1, 10, 10)
    for images in (streamed, held):
        tried = presets.load("digits-blur", ["data.size=8", "model.classes=2", "model.width=8"])
        with pytest.raises(UsageError, match=r"Use model\.classes="):
            experiment.build(tried, 1, torch.device("cpu")).try_out(images)
    experiment.build(config, 1, torch.device("cpu")).try_out(streamed)


def test_shards_written_by_webdataset_are_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pixels = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)
    for split, chosen in (("train", range(15)), ("test", range(15, 20))):
        with webdataset.ShardWriter(f"{tmp_path}/{split}-%03d.tar", maxcount=6, verbose=0) as writer:
            for number in chosen:
                writer.write({"__key__": f"{number:04}", "png": pixels[number], "cls": number % 4, "json": {"n": 1}})
    shards = open_split(tmp_path)
    assert (len(shards), shards.class_count) == (15, 4)
    assert torch.equal(shards.rows(torch.arange(15)), torch.from_numpy(pixels[:15]).permute(0, 3, 1, 2))
    assert shards.labels_of(torch.arange(15)).tolist() == [n % 4 for n in range(15)]
