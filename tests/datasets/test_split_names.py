"""How people name the parts of a data set: val is held out, never trained on; classes are not called train/a."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import datasets
from colddiff_core.datasets import ImageSet, folder
from colddiff_core.errors import ColddiffWarning, UsageError

HELD_OUT = ("val", "valid", "validation", "test", "Val", "VALIDATION", "Test", "testing", "val2017")


def write_split(root: Path, name: str, shade: int, each: int = 4) -> None:
    """Write two classes of pictures of one shade: the shade says which split they are of."""
    for label in "ab":
        (root / name / label).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            Image.new("L", (8, 8), shade).save(root / name / label / f"{number}.png")


def ask(root: Path, split: str) -> ImageSet:
    return datasets.load("folder", datasets.DatasetRequest(split, 8, 1, root))


def shades(images: ImageSet) -> set[int]:
    return set(images.pixels[:, 0, 0, 0].tolist())


def as_archive(root: Path, name: str) -> None:
    with tarfile.open(root / f"{name}.tar", "w") as archive:
        archive.add(root / name, name)
    shutil.rmtree(root / name)


@pytest.mark.parametrize(("training", "held_out"), zip(["train", "Train", "training"] * 3, HELD_OUT, strict=True))
@pytest.mark.parametrize("form", ["folders", "archives"])
def test_the_held_out_part_is_never_trained_on(tmp_path, training, held_out, form):
    write_split(tmp_path, training, 10)
    write_split(tmp_path, held_out, 200, 2)
    if form == "archives":
        as_archive(tmp_path, training)
        as_archive(tmp_path, held_out)
    train, test = ask(tmp_path, "train"), ask(tmp_path, "test")
    assert (len(train), len(test)) == (8, 4)
    assert (shades(train), shades(test)) == ({10}, {200})
    assert train.classes == test.classes == ("a", "b")
    assert not train.remarks


@pytest.mark.parametrize("held_out", HELD_OUT)
def test_pack_keeps_the_held_out_part(in_folder, capsys, held_out):
    write_split(in_folder / "pictures", "train", 10)
    write_split(in_folder / "pictures", held_out, 200, 2)
    assert run(["data", "pack", "pictures", "--out-dir", "out", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["train"]["records"], made["test"]["records"], made["classes"]) == (8, 4, ["a", "b"])


@pytest.mark.parametrize("lacking", ["train", "val"])
def test_a_split_without_a_class_numbers_the_others_alike(tmp_path, lacking):
    write_split(tmp_path, "train", 10)
    write_split(tmp_path, "val", 200)
    shutil.rmtree(tmp_path / lacking / "a")
    train, test = ask(tmp_path, "train"), ask(tmp_path, "test")
    assert train.classes == test.classes == ("a", "b")
    assert (ask(tmp_path, "test") if lacking == "val" else train).labels.tolist() == [1] * 4


def test_a_held_out_part_without_class_folders_leaves_the_others_their_classes(tmp_path):
    write_split(tmp_path, "train", 10)
    (tmp_path / "val").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), 200).save(tmp_path / "val" / f"{number}.png")
    assert ask(tmp_path, "train").classes == ("a", "b")
    assert ask(tmp_path, "test").labels is None


def test_what_is_not_used_is_said(tmp_path):
    write_split(tmp_path, "train", 10)
    write_split(tmp_path, "val", 100, 1)
    write_split(tmp_path, "test", 200, 2)
    write_split(tmp_path, "extra", 50)
    with pytest.warns(ColddiffWarning, match="train is trained on, test is held out; not used: extra, val"):
        train = ask(tmp_path, "train")
    assert (shades(train), shades(ask(tmp_path, "test"))) == ({10}, {200})


def test_train_alone_is_the_whole(tmp_path):
    write_split(tmp_path, "train", 10, 20)
    (tmp_path / "README.md").write_text("about")
    with pytest.warns(ColddiffWarning, match="has no test or val: a tenth of train is held out"):
        train, test = ask(tmp_path, "train"), ask(tmp_path, "test")
    assert len(train) + len(test) == 40
    assert len(test) >= 1
    assert train.classes == test.classes == ("a", "b")


def test_test_alone_is_not_trained_on(tmp_path, capsys, monkeypatch):
    write_split(tmp_path / "pictures", "test", 200)
    with pytest.raises(UsageError, match="has only test, which is held out, and nothing to train on"):
        ask(tmp_path / "pictures", "train")
    assert shades(ask(tmp_path / "pictures", "test")) == {200}
    monkeypatch.chdir(tmp_path)
    assert run(["data", "pack", "pictures", "--out-dir", "out"]) == 2
    assert "nothing to train on" in capsys.readouterr().err
    assert not Path("out").exists()
    as_archive(tmp_path / "pictures", "test")
    with pytest.raises(UsageError, match="nothing to train on"):
        ask(tmp_path / "pictures", "train")


def test_an_archive_to_train_on_needs_one_to_test_on(tmp_path):
    write_split(tmp_path, "train", 10)
    as_archive(tmp_path, "train")
    with pytest.raises(UsageError, match=r"only train\.tar.*nothing to test on") as refusal:
        ask(tmp_path, "train")
    assert "test.tar" in refusal.value.remedy


def test_a_class_may_be_called_train_or_valid(tmp_path):
    """A train is a vehicle, and valid the opposite of invalid."""
    for name in ("train", "plane"):
        (tmp_path / "vehicles" / name).mkdir(parents=True)
        for number in range(9):
            Image.new("L", (8, 8), 9).save(tmp_path / "vehicles" / name / f"{number}.png")
    assert ask(tmp_path / "vehicles", "train").classes == ("plane", "train")
    shutil.move(tmp_path / "vehicles" / "train", tmp_path / "vehicles" / "valid")
    with pytest.warns(ColddiffWarning, match="has valid but no train: valid counts as a class"):
        assert ask(tmp_path / "vehicles", "train").classes == ("plane", "valid")


def test_a_folder_around_the_splits_is_looked_into(tmp_path):
    write_split(tmp_path / "outer" / "inner", "train", 10)
    write_split(tmp_path / "outer" / "inner", "val", 200, 2)
    (tmp_path / "outer" / "README.md").write_text("about")
    train, test = ask(tmp_path, "train"), ask(tmp_path, "test")
    assert (shades(train), shades(test), train.classes) == ({10}, {200}, ("a", "b"))


def test_splits_in_several_folders_are_warned_about(tmp_path):
    for name in ("first", "second"):
        write_split(tmp_path / name, "train", 10)
        write_split(tmp_path / name, "val", 200)
    with pytest.warns(ColddiffWarning, match="first/val/a and the like are trained on too"):
        ask(tmp_path, "train")


def test_an_archive_beside_pictures_is_said_not_to_be_used(tmp_path):
    write_split(tmp_path, "train", 10)
    as_archive(tmp_path, "train")
    write_split(tmp_path, "others", 50)
    with pytest.warns(ColddiffWarning, match=r"train\.tar is not used, because there is no test or val"):
        assert shades(ask(tmp_path, "train")) == {50}


def test_one_folder_for_both_splits_is_refused(tmp_path):
    write_split(tmp_path, "train", 10)
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(UsageError, match="are the same"):
        ask(tmp_path, "train")


def test_pictures_beside_class_folders_are_said(tmp_path):
    write_split(tmp_path, ".", 10, 20)
    Image.new("L", (8, 8), 9).save(tmp_path / "y.png")
    (tmp_path / "c" / "deeper").mkdir(parents=True)
    with pytest.warns(ColddiffWarning) as said:
        train = ask(tmp_path, "train")
    text = "\n".join(str(warning.message) for warning in said)
    assert train.classes == ()
    assert "1 picture in no subfolder, so a, b are not taken for classes" in text
    assert "left out 1 folder without pictures (c)" in text


def test_the_hashed_split_of_usual_files_stays(tmp_path):
    """These names were held out by version 0.2."""
    names = [f"{label}/{number}.png" for label in "ab" for number in range(30)]
    assert sorted(folder.held_out(names)) == sorted(folder.held_out([*names, "c/new.jp2"]) - {"c/new.jp2"})
    write_split(tmp_path, ".", 10, 30)
    held = {name for name in names if folder.rank(name) < folder.TEST_SHARE}
    (tmp_path / "a" / "new.jfif").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    assert len(ask(tmp_path, "test")) == len(held) + (folder.rank("a/new.jfif") < folder.TEST_SHARE)
