"""Images decoded once: the same pixels with and without the cache."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import pytest
import torch
from cache_files import (
    CLASSES,
    are_equal,
    decode_literally,
    load,
    pack_archives,
    record_decoded,
    use_temporary_cache,
    write_images,
)
from PIL import Image

from colddiff_core import images
from colddiff_core.datasets import cache
from colddiff_core.datasets.picture_files import find_pictures


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    return record_decoded(monkeypatch)


@pytest.mark.parametrize(
    ("form", "channels"),
    [*itertools.product(["folders", "archives"], [0, 1, 3]), ("archives with the split's folder", 0)],
)
def test_images_are_the_same_with_and_without_a_cache(tmp_path, kept, monkeypatch, decoded, channels, form):
    root = write_images(tmp_path / "data")
    expected = {split: decode_literally(root, split, channels) for split in ("train", "test")}
    if form != "folders":
        pack_archives(root, outer=form != "archives")
    for split in ("train", "test"):
        pixels, labels = expected[split]
        monkeypatch.setattr(cache, "CHUNK_IMAGES", 10_000)
        plain = load(root, split, channels)
        assert len(list(kept.glob("*"))) == (0 if split == "train" else 2)
        monkeypatch.setattr(cache, "CHUNK_IMAGES", 8)
        assert torch.equal(plain.pixels, pixels)
        assert plain.pixels.dtype == torch.uint8
        assert plain.labels.tolist() == labels
        assert (plain.classes, plain.skipped, plain.suffixes) == (tuple(CLASSES), 1, {".png", ".jpg"})
        first = load(root, split, channels)
        decoded.clear()
        second = load(root, split, channels)
        assert decoded == []
        assert are_equal(plain, first)
        assert are_equal(plain, second)


def test_images_without_classes_keep_their_order(tmp_path, decoded):
    root = write_images(tmp_path / "data", classes={"": 19})
    expected, _ = decode_literally(root, "train", 3)
    for _ in range(2):
        loaded = load(root)
        assert torch.equal(loaded.pixels, expected)
        assert (loaded.labels, loaded.classes, loaded.skipped) == (None, (), 1)
    assert len(decoded) == 19


def test_splits_sizes_and_channels_have_entries_of_their_own(tmp_path, kept, decoded):
    root = write_images(tmp_path / "data")
    requests = [("train", 0, 8), ("test", 0, 8), ("train", 1, 8), ("train", 0, 12)]
    loaded = [load(root, *one) for one in requests]
    decoded.clear()
    assert all(are_equal(load(root, *one), before) for one, before in zip(requests, loaded, strict=True))
    assert are_equal(load(root, "train", 3), loaded[0])  # for files, 0 means color
    assert decoded == []
    assert len(list(kept.glob("*.npy"))) == len(list(kept.glob("*.json"))) == len(requests)


def test_hashed_splits_are_cached_and_number_classes_over_all_files(tmp_path, decoded):
    root = write_images(tmp_path / "data", splits=(".",), classes={"a": 30, "b": 60})
    before = load(root)
    decoded.clear()
    assert are_equal(load(root), before)
    assert decoded == []
    (root / "aa").mkdir()  # a new class with a single test image renumbers the training classes too
    for number in range(1000):
        path = root / "aa" / f"{number}.png"
        if files_rank(path, root) < 0.1:
            Image.new("L", (8, 8)).save(path)
            break
    assert load(root).classes == ("a", "aa", "b")


def files_rank(path: Path, root: Path) -> float:
    from colddiff_core.datasets.folder import rank

    return rank(path.relative_to(root).as_posix())


def test_writing_to_loaded_pixels_leaves_the_cache_unchanged(tmp_path):
    root = write_images(tmp_path / "data")
    for _ in range(2):
        loaded = load(root)
        before = loaded.pixels.clone()
        loaded.pixels.zero_()
        assert torch.equal(load(root).pixels, before)


def test_a_small_set_is_not_cached(tmp_path, kept):
    root = write_images(tmp_path / "data", classes={"a": 4, "b": 4})
    load(root)
    pack_archives(root, outer=True)
    load(root)
    assert not kept.exists()


@pytest.mark.parametrize("form", ["folders", "archives"])
def test_memory_is_bounded_by_the_chunk(tmp_path, form):
    root = write_images(tmp_path / "data", splits=("test",))
    for number in range(160):
        path = root / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(path)
    if form == "archives":
        pack_archives(root, outer=False)
    tracemalloc.start()
    loaded = load(root, size=128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded.pixels.nbytes == 160 * 3 * 128 * 128
    assert peak < loaded.pixels.nbytes / 4


def test_images_are_listed_in_the_order_of_their_paths(tmp_path):
    """Same order as `sorted(root.rglob("*"))`; a folder that is there under its own name is not listed twice."""
    for name in (
        "b/2.png",
        "b-1.png",
        "a/x/1.JPG",
        "a/.hidden.png",
        ".thumbs/1.webp",
        "a b/3.gif",
        "b/note.txt",
        "Z.tif",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "1.png").write_bytes(b"")
    (tmp_path / "linked.png").symlink_to(tmp_path / "Z.tif")
    (tmp_path / "gone.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    expected = [
        path
        for path in sorted(tmp_path.rglob("*"))
        if path.suffix.lower() in images.SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    loaded = find_pictures(tmp_path).paths
    assert loaded == expected
    assert len(loaded) == 8
    assert find_pictures(tmp_path / "absent").paths == []
