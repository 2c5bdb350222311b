"""Downloaded files that are something else: a web page of a network that wants a sign-in, nothing, or a part."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest
import torch
from shard_files import members_of, tar

from colddiff_core import datasets
from colddiff_core.datasets import DatasetRequest, ImageSet
from colddiff_core.errors import MachineError, UsageError

PAGE = b"<!DOCTYPE html>\n<html><title>Sign in to the network</title>" + b"x" * 5000
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
NOTHING = {"a web page": PAGE, "empty": b"", "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n"}


def ask(name: str, root: Path, split: str = "train", *, download: bool = False) -> ImageSet:
    return datasets.load(name, DatasetRequest(split, 28, 0, root, download))


def write_mnist(root: Path, count: int = 5, ending: str = "") -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    pixels = bytes(number % 251 for number in range(count * 784))
    for prefix in ("train", "t10k"):
        for name, content in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">iiii", 2051, count, 28, 28) + pixels),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">ii", 2049, count) + bytes(range(count))),
        ):
            (raw / (name + ending)).write_bytes(gzip.compress(content) if ending else content)
    return raw


@pytest.fixture
def no_network(monkeypatch):
    from torchvision.datasets import MNIST

    def download(self):
        reason = "<urlopen error [Errno -3] Temporary failure in name resolution>"
        tried = [f"Tried {address}, got:\n{reason}" for address in ("https://a.org/mnist/", "http://b.org/mnist/")]
        raise RuntimeError("\n".join([f"Error downloading {IMAGES}.gz:", *tried, ""]))

    monkeypatch.setattr(MNIST, "download", download)


@pytest.mark.parametrize("name", [IMAGES, LABELS, f"{IMAGES}.gz", f"{LABELS}.gz"])
@pytest.mark.parametrize("kind", [*NOTHING, "cut short", "damaged"])
def test_a_damaged_mnist_file_is_named(tmp_path, name, kind, no_network):
    raw = write_mnist(tmp_path, ending=".gz" if name.endswith("gz") else "")
    content = (raw / name).read_bytes()
    spoilt = {"cut short": content[:-3], "damaged": content[:12] + b"\xff" * 3 + content[12:]}
    (raw / name).write_bytes((NOTHING | spoilt)[kind])
    words = "damaged" if kind == "damaged" and name.endswith("gz") else kind.replace("damaged", "(damaged|cut short)")
    with pytest.raises(UsageError, match=f"MNIST cannot be read: .*{name} is .*({words}|no idx file)") as refusal:
        ask("mnist", tmp_path)
    assert len(str(refusal.value).splitlines()) == 2
    if name.endswith("gz"):  # the download replaces it
        with pytest.raises(MachineError, match=f"{name} is .*and could not be downloaded: Temporary failure"):
            ask("mnist", tmp_path, download=True)
    else:
        with pytest.raises(UsageError, match=name) as refusal:
            ask("mnist", tmp_path, download=True)
        assert "Delete it and run the command again" in refusal.value.remedy


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_is_read_as_torchvision_reads_it(tmp_path, ending):
    from torchvision.datasets import MNIST

    write_mnist(tmp_path / "plain")
    write_mnist(tmp_path / "given", ending=ending)
    for split in ("train", "test"):
        expected = MNIST(str(tmp_path / "plain"), train=split == "train")
        images = ask("mnist", tmp_path / "given", split)
        assert torch.equal(images.pixels[:, 0], expected.data)
        assert torch.equal(images.labels, expected.targets)
        assert images.labels.dtype == expected.targets.dtype


def test_a_failed_mnist_download_takes_two_lines(tmp_path, no_network):
    with pytest.raises(MachineError) as refusal:
        ask("mnist", tmp_path, download=True)
    lines = str(refusal.value).splitlines()
    assert len(lines) == 2
    assert "http" not in lines[0]
    assert lines[0].endswith("could not be downloaded: Temporary failure in name resolution.")


def test_files_of_different_lengths_are_named(tmp_path):
    raw = write_mnist(tmp_path)
    (raw / LABELS).write_bytes(struct.pack(">ii", 2049, 3) + bytes(3))
    with pytest.raises(UsageError, match=f"{IMAGES} has 5 images, and {LABELS} 3 labels"):
        ask("mnist", tmp_path)


@pytest.mark.parametrize("kind", [*NOTHING, "cut short", "a pipe"])
def test_a_damaged_cifar10_file_is_named(tmp_path, kind):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(bytes(3073 * 2))
    assert len(ask("cifar10", tmp_path)) == 10
    path = folder / "data_batch_3.bin"
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes((NOTHING | {"cut short": bytes(3073 * 2 - 1)})[kind])
    words = "Cannot read .*batch_3.bin: not an ordinary" if kind == "a pipe" else f"data_batch_3.bin is .*{kind}"
    with pytest.raises(UsageError, match=words) as refusal:
        ask("cifar10", tmp_path)
    assert "npack the archive again" in refusal.value.remedy


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar10"), ("celeba", "celeba"), ("afhq", "afhq")])
@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("kind", NOTHING)
def test_an_archive_that_is_something_else_is_named(tmp_path, name, folder, ending, kind):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / f"train{ending}").write_bytes(NOTHING[kind])
    with pytest.raises(UsageError, match=rf"Cannot read .*train{ending}: it is .*{kind}") as refusal:
        ask(name, tmp_path)
    assert "Delete it and download it again" in refusal.value.remedy


@pytest.mark.parametrize("kind", NOTHING)
def test_a_damaged_list_of_celebas_splits_is_named(tmp_path, kind):
    from PIL import Image

    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_bytes(NOTHING[kind])
    with pytest.raises(UsageError, match=rf"list_eval_partition.txt is .*{kind}"):
        ask("celeba", tmp_path)
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 2\n")
    with pytest.raises(UsageError, match="names none of the images"):
        ask("celeba", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "celeba", "afhq", "folder", "shards"])
@pytest.mark.parametrize("kind", ["file", "pipe", "device"])
def test_a_file_as_the_data_folder_is_refused(tmp_path, name, kind):
    place = Path("/dev/null") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "file":
        place.write_bytes(b"x")
    with pytest.raises(UsageError, match="is not a folder"):
        ask(name, place, download=True)


@pytest.mark.parametrize("cut", [100, 512 + 20, 3 * 1024 + 100, 3 * 1024 + 512 + 20])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["folder", "afhq", "celeba", "cifar10"])
def test_an_archive_that_was_cut_is_named(tmp_path, name, cut, packed):
    """An archive of images is decoded as a whole, so one that is cut is refused; shards use what is there."""
    content = tar(members_of(0, 5))
    place = tmp_path if name == "folder" else tmp_path / name
    place.mkdir(exist_ok=True)
    whole = gzip.compress(content, 0) if packed else content[: 5 * 1024]  # some writers leave out the end
    for split in ("train", "test"):
        (place / f"{split}.tar").write_bytes(whole)
    assert len(ask(name, tmp_path)) == 5
    end = cut + (512 if packed else 0)
    (place / "train.tar").write_bytes(whole[:end])
    with pytest.raises(UsageError, match=r"Cannot read .*train\.tar") as refusal:
        ask(name, tmp_path)
    assert len(str(refusal.value).splitlines()) == 2
