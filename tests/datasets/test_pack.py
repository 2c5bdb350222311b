"""Shards packed by `colddiff data pack`: shuffled, reproducible, complete or absent."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from bombs import BOMB
from conftest import pictures_in
from pack_files import CLASSES, bytes_in, members_of, run_pack, write_tree
from PIL import Image

from colddiff_core import datasets
from colddiff_core.datasets import DatasetRequest, open_shards
from colddiff_core.datasets.shards import archive, counts, pack, sources
from colddiff_core.datasets.shards.listing import ShardLocation
from colddiff_core.errors import UsageError


@pytest.fixture
def images(in_folder: Path) -> Path:
    return write_tree(in_folder / "images")


def test_files_are_packed_unchanged_shuffled_and_with_their_classes(images, capsys):
    run_pack(images, "--out-dir", "out", "--records", "10", "--json")
    output = json.loads(capsys.readouterr().out)
    assert output["train"] | {"bytes": 0} == {
        "records": 23,
        "skipped": 1,
        "skipped_files": ["cat/00.png (not an image)"],
        "shards": ["train-000000.tar", "train-000001.tar", "train-000002.tar"],
        "bytes": 0,
    }
    assert output["classes"] == list(CLASSES)
    assert pictures_in(Path("out")) == ["shards.json", *output["test"]["shards"], *output["train"]["shards"]]
    sizes = [len(members_of(Path("out") / name)) for name in output["train"]["shards"]]
    assert sizes == [20, 20, 6]
    packed = members_of(Path("out/train-000000.tar"))
    sources = {path.read_bytes(): path.parent.name for path in images.rglob("train/*/*.png")}
    for name, content in packed.items():
        if name.endswith(".png"):
            assert CLASSES.index(sources[content]) == int(packed[name.replace(".png", ".cls")])
    assert len({value for name, value in packed.items() if name.endswith(".cls")}) == 3  # mixed


def test_packed_images_are_those_of_the_folder(images):
    run_pack(images, "--out-dir", "out", "--records", "10")
    for split in ("train", "test"):
        request = DatasetRequest(split, 5, 0, images)
        expected = datasets.load("folder", request)
        streamed = open_shards(DatasetRequest(split, 5, 0, Path("out")), 4)
        numbers = torch.arange(len(streamed))
        rows, labels = streamed.rows(numbers), streamed.labels_of(numbers)
        pairs = sorted(zip(rows[:, :, 0, 0].tolist(), labels.tolist(), strict=True))
        assert pairs == sorted(zip(expected.pixels[:, :, 0, 0].tolist(), expected.labels.tolist(), strict=True))
        assert streamed.classes == CLASSES


def test_files_are_split_as_the_data_set_folder_splits_them(in_folder):
    root = write_tree(in_folder / "images", each=20, splits=(".",))
    run_pack(root, "--out-dir", "out")
    run_pack(f"{root}/*/*.png", "--out-dir", "globbed")
    run_pack(root / "cat", root / "dog", root / "owl", "--out-dir", "several")
    assert bytes_in(Path("out")) == bytes_in(Path("globbed")) == bytes_in(Path("several"))
    for split in ("train", "test"):
        expected = datasets.load("folder", DatasetRequest(split, 5, 0, root))
        packed = datasets.load("shards", DatasetRequest(split, 5, 0, Path("out")))
        assert sorted(packed.pixels[:, :, 0, 0].tolist()) == sorted(expected.pixels[:, :, 0, 0].tolist())


def test_same_seed_same_bytes(images):
    run_pack(images, "--out-dir", "one", "--records", "10")
    os.utime(images / "train" / "cat" / "01.png", (1, 1))
    run_pack(images, "--out-dir", "other", "--records", "10")
    assert bytes_in(Path("one")) == bytes_in(Path("other"))
    run_pack(images, "--out-dir", "seeded", "--records", "10", "--seed", "1")
    assert bytes_in(Path("one")).keys() == bytes_in(Path("seeded")).keys()
    assert bytes_in(Path("one"))["train-000000.tar"] != bytes_in(Path("seeded"))["train-000000.tar"]
    with tarfile.open("one/train-000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive} == {(0, 0, 0, "", "", 0o644)}


def test_a_shard_ends_before_its_size_limit(images, monkeypatch):
    monkeypatch.setattr(pack, "MEGABYTE_BYTES", 10240)
    run_pack(images, "--out-dir", "out", "--megabytes", "1")
    shards = sorted(Path("out").glob("train-*.tar"))
    assert [len(members_of(path)) for path in shards] == [8] * 5 + [6]
    assert {path.stat().st_size for path in shards} == {10240}
    shards = open_shards(DatasetRequest("train", 5, 0, Path("out")), 4)
    assert len(shards) == 23


@pytest.mark.parametrize("changes", [["--size", "4"], ["--channels", "1"], ["--size", "4", "--channels", "1"]])
def test_scaled_and_gray_images_are_stored_as_png(images, changes):
    run_pack(images, "--out-dir", "out", *changes)
    content = next(iter(members_of(Path("out/train-000000.tar")).values()))
    Path("one.png").write_bytes(content)
    with Image.open("one.png") as picture:
        assert picture.size == ((4, 4) if "--size" in changes else (6, 5))
        assert picture.mode == ("L" if "--channels" in changes else "RGB")
        assert picture.format == "PNG"


def test_a_known_data_set_keeps_its_splits(in_folder, capsys):
    run_pack("--dataset", "digits", "--size", "8", "--out-dir", "out", "--records", "500", "--json")
    output = json.loads(capsys.readouterr().out)
    assert (output["train"]["records"], output["test"]["records"]) == (1497, 300)
    for split in ("train", "test"):
        expected = datasets.load("digits", DatasetRequest(split, 8))
        shards = open_shards(DatasetRequest(split, 8, 1, Path("out")), 4)
        indices = torch.arange(len(shards))
        rows, labels = shards.rows(indices), shards.labels_of(indices)
        for pixels, labeled in ((rows, labels), (expected.pixels, expected.labels)):
            assert labeled.bincount().tolist() == expected.labels.bincount().tolist()
            assert pixels.long().sum() == expected.pixels.long().sum()


def test_megabytes_limit_the_size_of_a_shard(in_folder):
    numbers = np.random.default_rng(0)
    Path("in").mkdir()
    for number in range(120):
        Image.fromarray(numbers.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"in/{number}.png")
    run_pack("in", "--out-dir", "out", "--megabytes", "1")
    sizes = [path.stat().st_size for path in Path("out").glob("train-*.tar")]
    assert 900_000 < max(sizes) <= 1_000_000


def test_other_formats_are_stored_as_png(in_folder, capsys):
    Path("in").mkdir()
    for number, (suffix, kind) in enumerate((("ppm", "ppm"), ("jp2", "jpeg2000"), ("", "png"), ("x", "bmp")) * 4):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(f"in/{number:02}.{suffix}".rstrip("."), kind)
    run_pack("in/*", "--out-dir", "out", "--json")
    output = json.loads(capsys.readouterr().out)
    assert output["train"]["records"] + output["test"]["records"] == 16
    packed = [datasets.load("shards", DatasetRequest(split, 4, 0, Path("out"))) for split in ("train", "test")]
    assert sorted(shade for images in packed for shade in images.pixels[:, 0, 0, 0].tolist()) == list(range(16))


def test_a_file_named_twice_is_packed_once(images):
    folder = images / "train" / "dog"
    packed = sources.from_files([folder / "01.png", folder / ".." / "dog" / "01.png", folder / "02.png"])
    assert sum(map(len, packed.sources.values())) == 2


def test_unreadable_files_are_left_out_and_counted(images, capsys):
    for number, content in enumerate((BOMB, b"", b"GIF89a")):
        (images / "train" / "dog" / f"bad{number}.png").write_bytes(content)
    os.mkfifo(images / "train" / "dog" / "fifo.png")
    run_pack(images, "--out-dir", "out")
    output = capsys.readouterr().out
    assert "train: 23 images in 1 shard; left out 4 files that could not be read" in output
    assert output.splitlines()[-1] == "out"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images"], "--out-dir"),
        (["--out-dir", "out"], "not both"),
        (["images", "--dataset", "digits", "--out-dir", "out"], "not both"),
        (["--dataset", "digits", "--out-dir", "out"], "--size"),
        (["--dataset", "digitz", "--size", "8", "--out-dir", "out"], "Did you mean 'digits'"),
        (["--dataset", "shards", "--size", "8", "--out-dir", "out"], "packed already"),
        (["images", "--data-dir", "x", "--out-dir", "out"], "--data-dir needs --dataset"),
        (["images", "--channels", "2", "--out-dir", "out"], "1 for gray or 3"),
        (["images", "--records", "0", "--out-dir", "out"], "--records"),
        (["absent*", "--out-dir", "out"], "absent"),
        (["images/train/dog", "absent/owl", "--out-dir", "out"], "No such file: absent/owl."),
        (["absent", "--out-dir", "out"], "No such file: absent."),
        (["empty", "--out-dir", "out"], "No images in"),
        (["images/train/dog/01.png", "--out-dir", "out"], "Only one image"),
        (["images", "--out-dir", "images/train/dog/01.png"], "is a file"),
        (["images", "--out-dir", "out", "--resume"], "nothing to resume"),
        (["images", "--out-dir", "out", "--resume", "--force"], "Give one of them"),
        (["broken", "--out-dir", "out"], "None of the"),
    ],
)
def test_an_error_leaves_no_shard(images, capsys, arguments, words):
    Path("empty").mkdir()
    Path("broken").mkdir()
    for number in range(5):
        (Path("broken") / f"{number}.png").write_bytes(b"?")
    run_pack(*arguments, code=2)
    output = capsys.readouterr().err
    assert words in output
    assert len(output.splitlines()) <= 2
    assert not list(Path().rglob("*.tar"))


def test_a_split_that_is_an_archive_is_an_error(images, capsys):
    with tarfile.open(images / "test.tar", "w") as archive:
        archive.add(images / "test", "test")
    shutil.rmtree(images / "test")
    run_pack(images, "--out-dir", "out", code=2)
    assert "Unpack the archive" in capsys.readouterr().err


def test_packing_needs_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "CHUNK_FILES", 8)
    numbers = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(200):
        Image.fromarray(numbers.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{number}.png")
    splits = sources.from_folder(tmp_path / "in")
    total = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    tracemalloc.start()
    pack.pack_split(splits.sources["train"], "train", tmp_path, pack.ShardLimits(1000, 10**9), 0, lambda done: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < total / 4


def test_shards_json_has_the_counts_of_the_shards(images):
    run_pack(images, "--out-dir", "out", "--records", "10")
    contents = json.loads((Path("out") / counts.COUNTS_FILE).read_text())
    assert contents["classes"] == list(CLASSES)
    assert [entry["records"] for entry in contents["shards"]] == [10, 10, 3, 10, 10, 3]
    (Path("out") / counts.COUNTS_FILE).unlink()
    places = [Path("out") / entry["name"] for entry in contents["shards"]]
    for path, entry in zip(places, contents["shards"], strict=True):
        index = archive.ShardOpener().open(ShardLocation(path.name, path.parent, path)).index
        assert counts.ShardCount.of(index).to_json() | {"name": path.name, "bytes": path.stat().st_size} == entry


def test_webdataset_reads_packed_shards(images):
    webdataset = pytest.importorskip("webdataset")
    run_pack(images, "--out-dir", "out", "--records", "10")
    urls = sorted(str(path) for path in Path("out").glob("train-*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("torchrgb8"))
    shards = open_shards(DatasetRequest("train", 5, 0, Path("out")), 4)
    indices = torch.arange(len(shards))
    assert len(samples) == len(shards) == 23
    assert [sample["cls"] for sample in samples] == shards.labels_of(indices).tolist()
    corners = torch.stack([torch.as_tensor(sample["png"])[:, 0, 0] for sample in samples])
    assert torch.equal(corners, shards.rows(indices)[:, :, 0, 0])


def test_a_data_set_needs_its_files(tmp_path):
    with pytest.raises(UsageError, match="CIFAR-10 is not in"):
        sources.from_dataset("cifar10", DatasetRequest("train", 8, 0, tmp_path))
