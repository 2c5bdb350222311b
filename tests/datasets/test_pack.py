"""Shards that `colddiff data pack` makes: mixed, the same bytes every time, whole or not there."""

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
from conftest import left_behind, pictures_in
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import datasets
from colddiff_core.datasets import DatasetRequest, open_shards
from colddiff_core.datasets.shards import counts
from colddiff_core.datasets.shards import pack as packing
from colddiff_core.errors import UsageError

CLASSES = ("cat", "dog", "owl")


def tree(root: Path, each: int = 8, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Write folders of classes, every image of a shade of its own; one file of each split is broken."""
    for s, split in enumerate(splits):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                shade = (100 * label + 2 * number + s, number, label)
                Image.new("RGB", (6, 5), shade).save(root / split / name / f"{number:02}.png")
        (root / split / "cat" / "00.png").write_bytes(b"broken")
    return root


@pytest.fixture
def images(in_folder: Path) -> Path:
    return tree(in_folder / "images")


def pack(*arguments: object, code: int = 0) -> None:
    assert run(["data", "pack", *map(str, arguments)]) == code


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in pictures_in(folder)}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_files_go_in_as_they_are_mixed_and_with_their_classes(images, capsys):
    pack(images, "--out-dir", "out", "--records", "10", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["train"] | {"bytes": 0} == {
        "records": 23,
        "skipped": 1,
        "shards": ["train-000000.tar", "train-000001.tar", "train-000002.tar"],
        "bytes": 0,
    }
    assert told["classes"] == list(CLASSES)
    assert pictures_in(Path("out")) == ["shards.json", *told["test"]["shards"], *told["train"]["shards"]]
    sizes = [len(members(Path("out") / name)) for name in told["train"]["shards"]]
    assert sizes == [20, 20, 6]
    found = members(Path("out/train-000000.tar"))
    sources = {path.read_bytes(): path.parent.name for path in images.rglob("train/*/*.png")}
    for name, content in found.items():
        if name.endswith(".png"):
            assert CLASSES.index(sources[content]) == int(found[name.replace(".png", ".cls")])
    assert len({value for name, value in found.items() if name.endswith(".cls")}) == 3  # mixed


def test_what_is_packed_is_read_as_the_folder_is(images):
    pack(images, "--out-dir", "out", "--records", "10")
    for split in ("train", "test"):
        request = DatasetRequest(split, 5, 0, images)
        wanted = datasets.load("folder", request)
        streamed = open_shards(DatasetRequest(split, 5, 0, Path("out")), 4)
        numbers = torch.arange(len(streamed))
        rows, labels = streamed.rows(numbers), streamed.labels_of(numbers)
        pairs = sorted(zip(rows[:, :, 0, 0].tolist(), labels.tolist(), strict=True))
        assert pairs == sorted(zip(wanted.pixels[:, :, 0, 0].tolist(), wanted.labels.tolist(), strict=True))
        assert streamed.classes == CLASSES


def test_files_without_splits_are_split_as_the_folder_is(in_folder):
    root = tree(in_folder / "images", each=20, splits=(".",))
    pack(root, "--out-dir", "out")
    pack(f"{root}/*/*.png", "--out-dir", "globbed")
    pack(root / "cat", root / "dog", root / "owl", "--out-dir", "several")
    assert bytes_in(Path("out")) == bytes_in(Path("globbed")) == bytes_in(Path("several"))
    for split in ("train", "test"):
        wanted = datasets.load("folder", DatasetRequest(split, 5, 0, root))
        found = datasets.load("shards", DatasetRequest(split, 5, 0, Path("out")))
        assert sorted(found.pixels[:, :, 0, 0].tolist()) == sorted(wanted.pixels[:, :, 0, 0].tolist())


def test_packing_twice_gives_the_same_bytes_and_another_seed_others(images):
    pack(images, "--out-dir", "one", "--records", "10")
    os.utime(images / "train" / "cat" / "01.png", (1, 1))
    pack(images, "--out-dir", "other", "--records", "10")
    assert bytes_in(Path("one")) == bytes_in(Path("other"))
    pack(images, "--out-dir", "seeded", "--records", "10", "--seed", "1")
    assert bytes_in(Path("one")).keys() == bytes_in(Path("seeded")).keys()
    assert bytes_in(Path("one"))["train-000000.tar"] != bytes_in(Path("seeded"))["train-000000.tar"]
    with tarfile.open("one/train-000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive} == {(0, 0, 0, "", "", 0o644)}


def test_a_shard_closes_before_it_is_too_large(images, monkeypatch):
    monkeypatch.setattr(packing, "MEGABYTE", 10240)
    pack(images, "--out-dir", "out", "--megabytes", "1")
    shards = sorted(Path("out").glob("train-*.tar"))
    assert [len(members(path)) for path in shards] == [8] * 5 + [6]
    assert {path.stat().st_size for path in shards} == {10240}
    found = open_shards(DatasetRequest("train", 5, 0, Path("out")), 4)
    assert len(found) == 23


@pytest.mark.parametrize("changes", [["--size", "4"], ["--channels", "1"], ["--size", "4", "--channels", "1"]])
def test_images_are_encoded_anew_where_that_is_asked(images, changes):
    pack(images, "--out-dir", "out", *changes)
    content = next(iter(members(Path("out/train-000000.tar")).values()))
    Path("one.png").write_bytes(content)
    with Image.open("one.png") as picture:
        assert picture.size == ((4, 4) if "--size" in changes else (6, 5))
        assert picture.mode == ("L" if "--channels" in changes else "RGB")
        assert picture.format == "PNG"


def test_a_known_data_set_keeps_its_splits(in_folder, capsys):
    pack("--dataset", "digits", "--size", "8", "--out-dir", "out", "--records", "500", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["train"]["records"], told["test"]["records"]) == (1497, 300)
    for split in ("train", "test"):
        wanted = datasets.load("digits", DatasetRequest(split, 8))
        found = open_shards(DatasetRequest(split, 8, 1, Path("out")), 4)
        rows, labels = found.rows(torch.arange(len(found))), found.labels_of(torch.arange(len(found)))
        for pixels, labeled in ((rows, labels), (wanted.pixels, wanted.labels)):
            assert labeled.bincount().tolist() == wanted.labels.bincount().tolist()
            assert pixels.long().sum() == wanted.pixels.long().sum()


@pytest.mark.parametrize("at", [1, 11, 19, 24, 30])
@pytest.mark.parametrize("end", ["kill", "interrupt"])
def test_a_packing_that_was_stopped_goes_on_to_the_same_bytes(images, monkeypatch, capsys, at, end):
    pack(images, "--out-dir", "wanted", "--records", "6")
    add, made = packing._add, []

    def failing(archive, place, record):
        made.append(place)
        if len(made) == at:
            raise KeyboardInterrupt
        add(archive, place, record)

    monkeypatch.setattr(packing, "_add", failing)
    pack(images, "--out-dir", "out", "--records", "6", code=130)
    told = capsys.readouterr().err
    assert "the same call with --resume" in told
    assert "shards.json" not in pictures_in(Path("out"))
    whole = [name for name in left_behind(Path("out")) if not name.startswith(".")]
    assert f"{len(whole)} whole shard" in told
    assert all((Path("out") / name).read_bytes() == (Path("wanted") / name).read_bytes() for name in whole)
    if end == "kill":
        for draft in (".train-000000-0123abcd.tar", ".test-000001-0123abcd.tar", ".shards-0123abcd.json"):
            (Path("out") / draft).write_bytes(b"half")
    monkeypatch.undo()
    monkeypatch.chdir(images.parent)
    states = {name: (Path("out") / name).stat().st_mtime_ns for name in whole}
    if whole:
        pack(images, "--out-dir", "out", "--records", "6", code=2)
        assert "go on with --resume" in capsys.readouterr().err
    pack(images, "--out-dir", "out", "--records", "6", "--resume", "--json")
    assert json.loads(capsys.readouterr().out)["train"]["skipped"] == 1
    assert bytes_in(Path("out")) == bytes_in(Path("wanted"))
    assert {name: (Path("out") / name).stat().st_mtime_ns for name in whole} == states
    assert [name for name in left_behind(Path("out")) if "0123abcd" in name] == []
    pack(images, "--out-dir", "out", "--records", "6", "--resume")
    assert "Nothing is missing" in capsys.readouterr().out


@pytest.mark.parametrize("left", [None, 0, 1000, 2048 * 6, "garbage"])
def test_a_shard_that_was_lost_or_cut_is_made_anew(images, capsys, left):
    pack(images, "--out-dir", "out", "--records", "6")
    wanted = bytes_in(Path("out"))
    path = Path("out/train-000001.tar")
    if left is None:
        path.unlink()
    else:
        path.write_bytes(b"garbage" * 2000 if left == "garbage" else path.read_bytes()[:left])
    capsys.readouterr()
    pack(images, "--out-dir", "out", "--records", "6", "--resume")
    told = capsys.readouterr().out
    assert "Nothing is missing" not in told
    assert "train: 23 images in 4 shards; left out 1 file" in told
    assert bytes_in(Path("out")) == wanted


def test_a_shard_of_megabytes_has_no_more_of_them(in_folder):
    numbers = np.random.default_rng(0)
    Path("in").mkdir()
    for number in range(120):
        Image.fromarray(numbers.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(f"in/{number}.png")
    pack("in", "--out-dir", "out", "--megabytes", "1")
    sizes = [path.stat().st_size for path in Path("out").glob("train-*.tar")]
    assert 900_000 < max(sizes) <= 1_000_000


def test_files_of_other_suffixes_go_in_as_png(in_folder, capsys):
    Path("in").mkdir()
    for number, (suffix, kind) in enumerate((("ppm", "ppm"), ("jp2", "jpeg2000"), ("", "png"), ("x", "bmp")) * 4):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(f"in/{number:02}.{suffix}".rstrip("."), kind)
    pack("in/*", "--out-dir", "out", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["train"]["records"] + told["test"]["records"] == 16
    found = [datasets.load("shards", DatasetRequest(split, 4, 0, Path("out"))) for split in ("train", "test")]
    assert sorted(shade for images in found for shade in images.pixels[:, 0, 0, 0].tolist()) == list(range(16))


def test_a_file_that_is_named_twice_is_packed_once(images):
    folder = images / "train" / "dog"
    found = packing.of_files([folder / "01.png", folder / ".." / "dog" / "01.png", folder / "02.png"])
    assert sum(map(len, found.sources.values())) == 2


def test_other_settings_and_other_files_are_not_gone_on_with(images, capsys):
    pack(images, "--out-dir", "out")
    for change, words in ((["--seed", 1], "seed was 0, now 1"), (["--size", 4], "size was 0, now 4")):
        pack(images, "--out-dir", "out", "--resume", *change, code=2)
        assert words in capsys.readouterr().err
    (images / "train" / "owl" / "07.png").unlink()
    pack(images, "--out-dir", "out", "--resume", code=2)
    assert "files was" in capsys.readouterr().err


def test_what_is_there_is_overwritten_only_by_force(images, capsys):
    pack(images, "--out-dir", "out", "--records", "4")
    pack(images, "--out-dir", "out", code=2)
    assert "exists already" in capsys.readouterr().err
    pack(images, "--out-dir", "out", "--force", "--records", "100")
    assert pictures_in(Path("out")) == ["shards.json", "test-000000.tar", "train-000000.tar"]
    for name in ("train-old.tar", "test.urls", "train-000000.tar.gz"):
        (Path("out") / name).write_bytes(b"")
        pack(images, "--out-dir", "out", "--force", code=2)
        assert f"{name} is in the way" in capsys.readouterr().err
        (Path("out") / name).unlink()


def test_files_that_cannot_be_read_are_left_out_and_counted(images, capsys):
    for number, content in enumerate((BOMB, b"", b"GIF89a")):
        (images / "train" / "dog" / f"bad{number}.png").write_bytes(content)
    os.mkfifo(images / "train" / "dog" / "fifo.png")
    pack(images, "--out-dir", "out")
    told = capsys.readouterr().out
    assert "train: 23 images in 1 shard; left out 4 files that could not be read" in told
    assert told.splitlines()[-1] == "out"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images"], "--out-dir"),
        (["--out-dir", "out"], "Name either"),
        (["images", "--dataset", "digits", "--out-dir", "out"], "Name either"),
        (["--dataset", "digits", "--out-dir", "out"], "--size"),
        (["--dataset", "digitz", "--size", "8", "--out-dir", "out"], "Did you mean 'digits'"),
        (["--dataset", "shards", "--size", "8", "--out-dir", "out"], "packed already"),
        (["images", "--data-dir", "x", "--out-dir", "out"], "--data-dir has no use"),
        (["images", "--channels", "2", "--out-dir", "out"], "1 or 3"),
        (["images", "--records", "0", "--out-dir", "out"], "--records"),
        (["absent*", "--out-dir", "out"], "absent"),
        (["images/train/dog", "absent/owl", "--out-dir", "out"], "No such file: absent/owl."),
        (["absent", "--out-dir", "out"], "No such file: absent."),
        (["empty", "--out-dir", "out"], "No images in"),
        (["images/train/dog/01.png", "--out-dir", "out"], "Only one image"),
        (["images", "--out-dir", "images/train/dog/01.png"], "is a file"),
        (["images", "--out-dir", "out", "--resume"], "nothing to go on with"),
        (["images", "--out-dir", "out", "--resume", "--force"], "Give one of them"),
        (["broken", "--out-dir", "out"], "None of the"),
    ],
)
def test_whatever_is_wrong_is_told_and_no_shard_is_left(images, capsys, arguments, words):
    Path("empty").mkdir()
    Path("broken").mkdir()
    for number in range(5):
        (Path("broken") / f"{number}.png").write_bytes(b"?")
    pack(*arguments, code=2)
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) <= 2
    assert not list(Path().rglob("*.tar"))


def test_a_split_that_is_an_archive_is_told(images, capsys):
    with tarfile.open(images / "test.tar", "w") as archive:
        archive.add(images / "test", "test")
    shutil.rmtree(images / "test")
    pack(images, "--out-dir", "out", code=2)
    assert "Unpack the archive" in capsys.readouterr().err


def test_memory_is_that_of_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 8)
    numbers = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(200):
        Image.fromarray(numbers.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{number}.png")
    splits = packing.of_tree(tmp_path / "in")
    total = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    tracemalloc.start()
    packing.pack(splits.sources["train"], "train", tmp_path, packing.ShardLimits(1000, 10**9), 0, lambda done: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < total / 4


def test_the_list_tells_what_the_shards_hold(images):
    pack(images, "--out-dir", "out", "--records", "10")
    told = json.loads((Path("out") / counts.LIST).read_text())
    assert told["classes"] == list(CLASSES)
    assert [entry["records"] for entry in told["shards"]] == [10, 10, 3, 10, 10, 3]
    (Path("out") / counts.LIST).unlink()
    places = [Path("out") / entry["name"] for entry in told["shards"]]
    for path, entry in zip(places, told["shards"], strict=True):
        index = packing.Opener().open(packing.Place(path.name, path.parent, path)).index
        assert counts.ShardCount.of(index).table() | {"name": path.name, "bytes": path.stat().st_size} == entry


def test_webdatasets_own_reader_reads_what_is_packed(images):
    webdataset = pytest.importorskip("webdataset")
    pack(images, "--out-dir", "out", "--records", "10")
    urls = sorted(str(path) for path in Path("out").glob("train-*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("torchrgb8"))
    found = open_shards(DatasetRequest("train", 5, 0, Path("out")), 4)
    numbers = torch.arange(len(found))
    assert len(samples) == len(found) == 23
    assert [sample["cls"] for sample in samples] == found.labels_of(numbers).tolist()
    corners = torch.stack([torch.as_tensor(sample["png"])[:, 0, 0] for sample in samples])
    assert torch.equal(corners, found.rows(numbers)[:, :, 0, 0])


def test_a_set_that_is_known_needs_its_files(tmp_path):
    with pytest.raises(UsageError, match="CIFAR-10 is not in"):
        packing.of_set("cifar10", DatasetRequest("train", 8, 0, tmp_path))
