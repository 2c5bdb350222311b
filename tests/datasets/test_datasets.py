"""The data sets: fixed splits, broken files counted, absent ones explained."""

from __future__ import annotations

import shutil
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from colddiff_core import datasets
from colddiff_core.datasets import ImageSet
from colddiff_core.errors import MachineError, UsageError


def folder_of(path, count: int, sub: str = "") -> None:
    (path / sub).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (10, 8), (i * 7 % 256, i, 0)).save(path / sub / f"{i}.png")


def ask(name: str, split: str, **values) -> datasets.ImageSet:
    return datasets.load(name, datasets.DatasetRequest(split, values.pop("size", 8), **values))


def test_digits_split_every_sixth_image():
    train, test = ask("digits", "train"), ask("digits", "test")
    assert (len(train), len(test)) == (1497, 300)
    assert train.pixels.dtype == torch.uint8
    assert (train.channels, ask("digits", "test", channels=3).channels) == (1, 3)
    assert ask("digits", "test", size=16).pixels.shape == (300, 1, 16, 16)
    assert test.labels[:4].tolist() == [0, 6, 2, 8]
    assert train.classes == test.classes == tuple("0123456789")
    batch = test.images(torch.tensor([3, 1]))
    assert batch.dtype == torch.float32
    assert (batch.min(), batch.max()) == (-1, 1)


def test_folder_holds_out_a_tenth_that_does_not_move(tmp_path):
    folder_of(tmp_path, 60, "a")
    before = ask("folder", "test", directory=tmp_path)
    assert 1 <= len(before) <= 15
    assert len(before) + len(ask("folder", "train", directory=tmp_path)) == 60
    folder_of(tmp_path, 60, "b")
    after = ask("folder", "test", directory=tmp_path)
    kept = {tuple(pixels.flatten().tolist()) for pixels in after.pixels}
    assert {tuple(pixels.flatten().tolist()) for pixels in before.pixels} <= kept
    assert before.channels == 3
    assert ask("folder", "test", directory=tmp_path, channels=1).channels == 1


def test_folder_uses_existing_splits(tmp_path):
    folder_of(tmp_path, 5, "train")
    folder_of(tmp_path, 2, "test")
    assert (len(ask("folder", "train", directory=tmp_path)), len(ask("folder", "test", directory=tmp_path))) == (5, 2)


def test_two_images_are_one_of_each(tmp_path):
    folder_of(tmp_path, 2)
    assert (len(ask("folder", "train", directory=tmp_path)), len(ask("folder", "test", directory=tmp_path))) == (1, 1)


def test_broken_files_are_skipped_and_counted(tmp_path):
    folder_of(tmp_path, 9, "train")
    folder_of(tmp_path, 1, "test")
    data = (tmp_path / "train" / "3.png").read_bytes()
    (tmp_path / "train" / "3.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "train" / "zero.jpg").write_bytes(b"")
    (tmp_path / "train" / "note.txt").write_text("not an image")
    images = ask("folder", "train", directory=tmp_path)
    assert (len(images), images.skipped) == (8, 2)


@pytest.mark.parametrize("kind", ["absent", "empty", "one", "broken"])
def test_a_folder_without_images_is_an_error(tmp_path, kind):
    root = tmp_path / "pictures"
    if kind != "absent":
        folder_of(root, 1 if kind == "one" else 0)
    if kind == "broken":
        for i in range(4):
            (root / f"{i}.png").write_text("broken")
    with pytest.raises(UsageError, match="pictures"):
        ask("folder", "train", directory=root)


def test_an_unknown_data_set_is_named():
    with pytest.raises(UsageError, match="Unknown dataset 'minst'") as refusal:
        ask("minst", "train")
    assert "Did you mean 'mnist'" in str(refusal.value)


def write_mnist(root, count: int) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(count * 784, dtype=np.int64).astype(np.uint8)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + bytes(range(count)))


def test_mnist_is_read_in_place(tmp_path):
    write_mnist(tmp_path, 5)
    images = ask("mnist", "train", size=32, directory=tmp_path)
    assert images.pixels.shape == (5, 1, 32, 32)
    assert images.labels.tolist() == [0, 1, 2, 3, 4]
    assert images.classes == tuple("0123456789")
    assert torch.equal(
        ask("mnist", "test", size=28, directory=tmp_path).pixels.flatten()[:256], torch.arange(256).byte()
    )


def test_a_failed_mnist_download_is_explained(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    def no_network(self):
        raise RuntimeError("network unreachable")

    monkeypatch.setattr(MNIST, "download", no_network)
    with pytest.raises(MachineError, match="could not be downloaded: network unreachable") as refusal:
        ask("mnist", "train", directory=tmp_path)
    assert "--data-dir" in str(refusal.value)
    with pytest.raises(UsageError, match="is not in"):
        ask("mnist", "train", directory=tmp_path, download=False)


def test_truncated_mnist_is_explained(tmp_path):
    write_mnist(tmp_path, 5)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsageError, match="cannot be read"):
        ask("mnist", "train", directory=tmp_path)


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar10"), ("celeba", "celeba"), ("afhq", "afhq")])
@pytest.mark.parametrize("form", ["folders", "archives"])
def test_fetched_sets_are_read_in_their_published_layouts(tmp_path, name, folder, form):
    root = tmp_path / folder
    folder_of(root, 4, "train/cat")
    folder_of(root, 2, "val/cat" if name == "afhq" else "test/cat")
    if form == "archives":
        for split in ("train", "test"):
            source = root / ("val" if split == "test" and name == "afhq" else split)
            with tarfile.open(root / f"{split}.tar.gz", "w:gz") as archive:
                archive.add(source, split)
            shutil.rmtree(source)
    train, test = ask(name, "train", directory=tmp_path), ask(name, "test", directory=tmp_path)
    assert (len(train), len(test), train.channels) == (4, 2, 3)


@pytest.mark.parametrize(("name", "title"), [("cifar10", "CIFAR-10"), ("celeba", "CelebA"), ("afhq", "AFHQ")])
def test_a_missing_set_explains_how_to_get_it(tmp_path, name, title):
    with pytest.raises(UsageError, match=f"{title} is not in") as refusal:
        ask(name, "train", directory=tmp_path)
    assert "Unpack" in str(refusal.value)
    assert "--data-dir" in str(refusal.value)


def test_cifar_in_its_binary_version(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    record = np.arange(3073, dtype=np.int64).astype(np.uint8)
    record[0] = 7
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        record.tofile(folder / name)
    train = ask("cifar10", "train", size=32, directory=tmp_path)
    assert (len(train), train.labels.tolist()) == (5, [7] * 5)
    assert (train.classes[7], len(train.classes)) == ("horse", 10)
    assert train.pixels[0].flatten()[:5].tolist() == [1, 2, 3, 4, 5]
    assert ask("cifar10", "test", size=32, channels=1, directory=tmp_path).channels == 1
    (folder / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(UsageError, match="cut short"):
        ask("cifar10", "test", directory=tmp_path)


def test_celebas_own_splits(tmp_path):
    folder_of(tmp_path / "celeba", 6, "img_align_celeba")
    rows = [f"{i}.png {0 if i < 3 else 1 if i == 3 else 2}" for i in range(6)]
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(rows))
    assert len(ask("celeba", "train", directory=tmp_path)) == 3
    assert len(ask("celeba", "test", directory=tmp_path)) == 2


@pytest.mark.parametrize("form", ["hashed", "folders", "archives"])
def test_folders_are_classes_and_every_split_numbers_them_alike(tmp_path, form):
    shades = {"cat": 40, "dog": 120, "owl": 200}
    splits = ("train", "test") if form != "hashed" else (".",)
    for split in splits:
        for name, shade in shades.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(20 if name != "owl" else 1):
                Image.new("L", (8, 8), shade).save(tmp_path / split / name / f"{number}.png")
        (tmp_path / split / "cat" / "cut.png").write_bytes(b"")
    if form == "archives":
        for split in splits:
            with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
                archive.add(tmp_path / split, split)
            shutil.rmtree(tmp_path / split)
    sets = [datasets.load("folder", datasets.DatasetRequest(split, 8, 1, tmp_path)) for split in ("train", "test")]
    for images in sets:
        expected = torch.tensor(list(shades.values()))[images.labels]
        assert torch.equal(images.pixels[:, 0, 0, 0].long(), expected)
    assert sets[0].classes == sets[1].classes == ("cat", "dog", "owl")
    assert sum(images.skipped for images in sets) == len(splits)


def test_a_truncated_archive_is_named(tmp_path):
    folder_of(tmp_path / "source", 4)
    (tmp_path / "afhq").mkdir()
    with tarfile.open(tmp_path / "afhq" / "train.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "source", "train")
    path = tmp_path / "afhq" / "train.tar.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match=r"train\.tar\.gz"):
        ask("afhq", "train", directory=tmp_path)


def test_real_mnist(shared):
    if not (shared / "data" / "MNIST").is_dir():
        pytest.skip("needs ../shared/data/MNIST, which is absent")
    test = ask("mnist", "test", size=32, directory=shared / "data")
    assert test.pixels.shape == (10_000, 1, 32, 32)
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_the_first_images_of_folders_are_of_all_classes(tmp_path):
    for label, count in (("a", 4), ("b", 2), ("c", 3)):
        for number in range(count):
            path = tmp_path / "cifar10" / "test" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 50 * number + 10 * "abc".index(label)).save(path)
    images = datasets.load("cifar10", datasets.DatasetRequest("test", 8, 1, tmp_path))
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 2, 0]
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 50, 60, 70, 100, 120, 150]
    assert images.note == ""


def test_cifar10_from_jpeg_files_is_noted(tmp_path):
    for label in "ab":
        path = tmp_path / "cifar10-jpeg" / "test" / label / "0.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    assert datasets.load("cifar10", datasets.DatasetRequest("test", 8, 3, tmp_path)).note == "JPEG"


def test_a_draw_covers_the_whole_set_and_every_class():
    images = ImageSet(torch.zeros(10_000, 1, 2, 2, dtype=torch.uint8))
    few, more = images.draw(1000), images.draw(2000)
    assert torch.equal(few, more[:1000])
    assert len(few.unique()) == 1000
    for groups in (few % 10, few // 1000):  # classes that take turns; classes one after another
        assert groups.bincount(minlength=10).min() > 60
        assert groups.bincount(minlength=10).max() < 140
    assert torch.equal(images.draw(20_000).sort().values, torch.arange(10_000))
