"""A cache entry is used only if it is intact and its files have not changed."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import PIL
import pytest
import torch
from cache_files import are_equal, load, pack_archives, record_decoded, use_temporary_cache, write_images
from PIL import Image

from colddiff_core import datasets
from colddiff_core.datasets import cache


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    return record_decoded(monkeypatch)


def edit(root: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "train" / "dog" / "01.png")


def touch(root: Path) -> None:
    path = root / "train" / "dog" / "01.png"
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-20] + b"x" + data[-19:])
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def rename_class(root: Path) -> None:
    (root / "train" / "owl").rename(root / "train" / "ape")


def swap(root: Path) -> None:
    folder = root / "train" / "cat"
    (folder / "05.png").rename(folder / "05.tmp")
    (folder / "07.png").rename(folder / "05.png")
    (folder / "05.tmp").rename(folder / "07.png")


def mend(root: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(root / "train" / "cat" / "03.png")


CHANGES = {
    "edited": edit,
    "a byte edited": touch,
    "added": lambda root: Image.new("RGB", (8, 8)).save(root / "train" / "dog" / "new.bmp"),
    "removed": lambda root: (root / "train" / "dog" / "00.jpg").unlink(),
    "renamed": lambda root: (root / "train" / "dog" / "00.jpg").rename(root / "train" / "dog" / "zz.jpg"),
    "swapped": swap,
    "a class renamed": rename_class,
    "moved to another class": lambda root: (root / "train" / "dog" / "00.jpg").rename(root / "train/owl/zz.jpg"),
    "a broken one mended": mend,
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_file_rebuilds_the_entry(tmp_path, kept, monkeypatch, decoded, change):
    root = write_images(tmp_path / "data")
    before = load(root)
    pixels = before.pixels.clone()
    CHANGES[change](root)
    decoded.clear()
    after = load(root)
    assert len(decoded) == len(list((root / "train").rglob("*.*")))
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 10_000)
    assert are_equal(after, load(root))
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 8)
    decoded.clear()
    assert are_equal(after, load(root))
    assert decoded == []
    assert torch.equal(before.pixels, pixels)  # a mapped old version survives
    assert sorted(path.suffix for path in kept.iterdir()) == [".json", ".npy"]  # the cache does not grow


def test_a_changed_archive_is_decoded_again(tmp_path, kept, decoded):
    root = write_images(tmp_path / "data")
    pack_archives(root, outer=True)
    before = load(root)
    with tarfile.open(root / "train.tar.gz", "w:gz") as archive:
        for name, shade in (("cat", 3), ("dog", 5)):
            for number in range(6):
                stream = io.BytesIO()
                Image.new("RGB", (8, 8), (shade, shade, shade)).save(stream, "png")
                member = tarfile.TarInfo(f"train/{name}/{number}.png")
                member.size = stream.tell()
                stream.seek(0)
                archive.addfile(member, stream)
    after = load(root)
    assert after.pixels[:, 0, 0, 0].tolist() == [3, 5] * 6
    assert len(before) == 25
    decoded.clear()
    assert are_equal(load(root), after)
    assert decoded == []


@pytest.mark.parametrize("version", ["pillow", "ours"])
def test_another_version_of_the_decoder_rebuilds_the_entry(tmp_path, monkeypatch, decoded, version):
    root = write_images(tmp_path / "data")
    load(root)
    decoded.clear()
    if version == "pillow":
        monkeypatch.setattr(PIL, "__version__", "0.1")
    else:
        monkeypatch.setattr(cache, "DECODING", cache.DECODING + 1)
    load(root)
    assert len(decoded) == 26


def rewrite(path: Path, change) -> None:
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def keep_times(path: Path, data: bytes) -> None:
    """Overwrite a file without changing its size and modification time."""
    before = path.stat()
    path.write_bytes(data.ljust(before.st_size, b"\0")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE = {
    "pixels truncated": lambda npy, rest: npy.write_bytes(npy.read_bytes()[:-1]),
    "pixels empty": lambda npy, rest: npy.write_bytes(b""),
    "pixels gone": lambda npy, rest: npy.unlink(),
    "pixels overwritten": lambda npy, rest: npy.write_bytes(npy.read_bytes()[:-9] + b"!" * 9),
    "pixels not an array": lambda npy, rest: keep_times(npy, b"PK\x03\x04"),
    "pixels of another shape": lambda npy, rest: keep_times(npy, npy.read_bytes().replace(b"3, 8, 8", b"8, 3, 8")),
    "pixels of another type": lambda npy, rest: keep_times(npy, npy.read_bytes().replace(b"|u1", b"|i1")),
    "pixels pickled": lambda npy, rest: keep_times(npy, npy.read_bytes().replace(b"'|u1'", b"'|O' ")),
    "metadata gone": lambda npy, rest: rest.unlink(),
    "metadata empty": lambda npy, rest: rest.write_bytes(b""),
    "metadata not text": lambda npy, rest: rest.write_bytes(b"\xff\xfe"),
    "metadata truncated": lambda npy, rest: rest.write_text(rest.read_text()[:-5]),
    "metadata a list": lambda npy, rest: rest.write_text("[]"),
    "metadata without classes": lambda npy, rest: rewrite(rest, lambda metadata: metadata.pop("classes")),
    "labels too few": lambda npy, rest: rewrite(rest, lambda metadata: metadata["labels"].pop()),
    "labels not numbers": lambda npy, rest: rewrite(rest, lambda metadata: metadata.update(labels=["a"])),
    "labels too large": lambda npy, rest: rewrite(rest, lambda metadata: metadata.update(labels=[2**70])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_rebuilt(tmp_path, kept, decoded, damage):
    root = write_images(tmp_path / "data")
    before = load(root)
    before = datasets.ImageSet(before.pixels.clone(), before.labels, before.classes, before.skipped, before.suffixes)
    (npy,), (rest,) = kept.glob("*.npy"), kept.glob("*.json")
    copy = tmp_path / "copy.npy"  # truncating a mapped file would kill the process
    shutil.copy2(npy, copy)
    copy.replace(npy)
    DAMAGE[damage](npy, rest)
    decoded.clear()
    assert are_equal(load(root), before)
    assert len(decoded) == 26
    decoded.clear()
    assert are_equal(load(root), before)
    assert decoded == []


def test_pixels_and_metadata_of_two_writers_do_not_match(tmp_path, kept, decoded):
    root = write_images(tmp_path / "data")
    load(root)
    (npy,) = kept.glob("*.npy")
    pixels = npy.read_bytes()
    npy.unlink()
    npy.write_bytes(pixels)  # as another process would: same size, another time
    decoded.clear()
    load(root)
    assert len(decoded) == 26
