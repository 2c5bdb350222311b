"""Images decoded once: the same pixels, never stale, never half-written, and no error where nothing can be kept."""

from __future__ import annotations

import collections
import errno
import io
import json
import os
import shutil
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from colddiff_core import datasets, images
from colddiff_core.datasets import cache, decoding
from colddiff_core.errors import ColddiffError

CLASSES = {"cat": 20, "dog": 9, "owl": 14}


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    """The folder that decoded images are kept in, of this test alone; sets of more than eight images are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 8)
    monkeypatch.setattr(cache, "RESERVE_BYTES", 0)
    return tmp_path / "cache" / "colddiff" / "decoded"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files decoded so far."""
    seen: list[str] = []

    def counting(path, **values):
        seen.append(path.name)
        return images.read_bytes(path, **values)

    monkeypatch.setattr(decoding, "read_bytes", counting)
    return seen


def write_images(root: Path, *, classes=CLASSES, splits=("train", "test"), broken: bool = True) -> Path:
    """Write noise of all sizes in folders that are classes, some files of it broken."""
    numbers = np.random.default_rng(0)
    for split in splits:
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = numbers.integers(0, 256, (9 + i % 3, 8 + i % 5, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02}.{'png' if i % 2 else 'jpg'}")
        if broken:
            (root / split / next(iter(classes)) / "03.png").write_bytes(b"broken")
    return root


def ask(root: Path, split: str = "train", channels: int = 0, size: int = 8) -> datasets.ImageSet:
    return datasets.load("folder", datasets.DatasetRequest(split, size, channels, root))


def expected(root: Path, split: str, channels: int) -> tuple[torch.Tensor, list[int]]:
    """Return pixels and labels, put together literally: a class after the other, then sorted into turns."""
    turns: collections.Counter[str] = collections.Counter()
    rows = []
    for path in sorted((root / split).rglob("*.*g")):
        try:
            pixels = images.read_bytes(path, size=8, channels=channels or 3)
        except ColddiffError:
            continue
        rows.append((turns[path.parent.name], path.parent.name, torch.from_numpy(pixels)))
        turns[path.parent.name] += 1
    rows.sort(key=lambda row: row[:2])
    classes = sorted(turns)
    return torch.stack([row[2] for row in rows]), [classes.index(row[1]) for row in rows]


def same(one: datasets.ImageSet, other: datasets.ImageSet) -> bool:
    labels = (one.labels is None) == (other.labels is None) and (
        one.labels is None or (torch.equal(one.labels, other.labels) and one.labels.dtype == other.labels.dtype)
    )
    rest = ("classes", "skipped", "suffixes", "note")
    return labels and torch.equal(one.pixels, other.pixels) and all(getattr(one, k) == getattr(other, k) for k in rest)


def pack(root: Path, outer: bool) -> None:
    for split in ("train", "test"):
        with tarfile.open(root / f"{split}.tar.gz", "w:gz") as archive:
            for path in sorted((root / split).rglob("*.*")):
                archive.add(path, path.relative_to(root if outer else root / split))
        shutil.rmtree(root / split)


@pytest.mark.parametrize("channels", [0, 1, 3])
@pytest.mark.parametrize("form", ["folders", "archives", "archives with the split's folder"])
def test_images_are_the_same_without_a_cache_and_from_it(tmp_path, kept, monkeypatch, decoded, channels, form):
    root = write_images(tmp_path / "data")
    wanted = {split: expected(root, split, channels) for split in ("train", "test")}
    if form != "folders":
        pack(root, outer=form != "archives")
    for split in ("train", "test"):
        pixels, labels = wanted[split]
        monkeypatch.setattr(cache, "CHUNK_IMAGES", 10_000)
        plain = ask(root, split, channels)
        assert len(list(kept.glob("*"))) == (0 if split == "train" else 2)
        monkeypatch.setattr(cache, "CHUNK_IMAGES", 8)
        assert torch.equal(plain.pixels, pixels)
        assert plain.pixels.dtype == torch.uint8
        assert plain.labels.tolist() == labels
        assert (plain.classes, plain.skipped, plain.suffixes) == (tuple(CLASSES), 1, {".png", ".jpg"})
        first = ask(root, split, channels)
        decoded.clear()
        second = ask(root, split, channels)
        assert decoded == []
        assert same(plain, first)
        assert same(plain, second)


def test_images_without_classes_keep_their_order(tmp_path, decoded):
    root = write_images(tmp_path / "data", classes={"": 19})
    wanted, _ = expected(root, "train", 3)
    for _ in range(2):
        found = ask(root)
        assert torch.equal(found.pixels, wanted)
        assert (found.labels, found.classes, found.skipped) == (None, (), 1)
    assert len(decoded) == 19


def test_splits_sizes_and_channels_are_kept_apart_and_gray_is_not_color(tmp_path, kept, decoded):
    root = write_images(tmp_path / "data")
    asked = [("train", 0, 8), ("test", 0, 8), ("train", 1, 8), ("train", 0, 12)]
    found = [ask(root, *one) for one in asked]
    decoded.clear()
    assert all(same(ask(root, *one), before) for one, before in zip(asked, found, strict=True))
    assert same(ask(root, "train", 3), found[0])  # 0 is color, of files
    assert decoded == []
    assert len(list(kept.glob("*.npy"))) == len(list(kept.glob("*.json"))) == len(asked)


def test_hashed_splits_are_kept_and_number_classes_by_all_files(tmp_path, decoded):
    root = write_images(tmp_path / "data", splits=(".",), classes={"a": 30, "b": 60})
    before = ask(root)
    decoded.clear()
    assert same(ask(root), before)
    assert decoded == []
    (root / "aa").mkdir()  # a class more, whose one image is a test image: the numbers move all the same
    for number in range(1000):
        path = root / "aa" / f"{number}.png"
        if files_rank(path, root) < 0.1:
            Image.new("L", (8, 8)).save(path)
            break
    assert ask(root).classes == ("a", "aa", "b")


def files_rank(path: Path, root: Path) -> float:
    from colddiff_core.datasets.folder import rank

    return rank(path.relative_to(root).as_posix())


def test_what_has_been_handed_out_can_be_written_to_and_the_cache_stays(tmp_path):
    root = write_images(tmp_path / "data")
    for _ in range(2):
        found = ask(root)
        before = found.pixels.clone()
        found.pixels.zero_()
        assert torch.equal(ask(root).pixels, before)


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
def test_any_change_of_a_file_has_all_decoded_anew(tmp_path, kept, monkeypatch, decoded, change):
    root = write_images(tmp_path / "data")
    before = ask(root)
    pixels = before.pixels.clone()
    CHANGES[change](root)
    decoded.clear()
    after = ask(root)
    assert len(decoded) == len(list((root / "train").rglob("*.*")))
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 10_000)
    assert same(after, ask(root))
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 8)
    decoded.clear()
    assert same(after, ask(root))
    assert decoded == []
    assert torch.equal(before.pixels, pixels)  # who holds the old ones keeps them
    assert sorted(path.suffix for path in kept.iterdir()) == [".json", ".npy"]  # and the cache has not grown


def test_an_archive_that_changed_is_decoded_anew(tmp_path, kept, decoded):
    root = write_images(tmp_path / "data")
    pack(root, outer=True)
    before = ask(root)
    with tarfile.open(root / "train.tar.gz", "w:gz") as archive:
        for name, shade in (("cat", 3), ("dog", 5)):
            for number in range(6):
                stream = io.BytesIO()
                Image.new("RGB", (8, 8), (shade, shade, shade)).save(stream, "png")
                member = tarfile.TarInfo(f"train/{name}/{number}.png")
                member.size = stream.tell()
                stream.seek(0)
                archive.addfile(member, stream)
    after = ask(root)
    assert after.pixels[:, 0, 0, 0].tolist() == [3, 5] * 6
    assert len(before) == 42
    decoded.clear()
    assert same(ask(root), after)
    assert decoded == []


@pytest.mark.parametrize("version", ["pillow", "ours"])
def test_another_way_of_decoding_has_all_decoded_anew(tmp_path, monkeypatch, decoded, version):
    root = write_images(tmp_path / "data")
    ask(root)
    decoded.clear()
    if version == "pillow":
        monkeypatch.setattr(PIL, "__version__", "0.1")
    else:
        monkeypatch.setattr(cache, "DECODING", cache.DECODING + 1)
    ask(root)
    assert len(decoded) == 43


def rewrite(path: Path, change) -> None:
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def keep_times(path: Path, data: bytes) -> None:
    """Write other bytes into a file so that its size and time tell nothing of it."""
    before = path.stat()
    path.write_bytes(data.ljust(before.st_size, b"\0")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE = {
    "pixels cut short": lambda npy, rest: npy.write_bytes(npy.read_bytes()[:-1]),
    "pixels empty": lambda npy, rest: npy.write_bytes(b""),
    "pixels gone": lambda npy, rest: npy.unlink(),
    "pixels written over": lambda npy, rest: npy.write_bytes(npy.read_bytes()[:-9] + b"!" * 9),
    "pixels no array": lambda npy, rest: keep_times(npy, b"PK\x03\x04"),
    "pixels of another shape": lambda npy, rest: keep_times(npy, npy.read_bytes().replace(b"3, 8, 8", b"8, 3, 8")),
    "pixels of another type": lambda npy, rest: keep_times(npy, npy.read_bytes().replace(b"|u1", b"|i1")),
    "pixels pickled": lambda npy, rest: keep_times(npy, npy.read_bytes().replace(b"'|u1'", b"'|O' ")),
    "rest gone": lambda npy, rest: rest.unlink(),
    "rest empty": lambda npy, rest: rest.write_bytes(b""),
    "rest no text": lambda npy, rest: rest.write_bytes(b"\xff\xfe"),
    "rest cut short": lambda npy, rest: rest.write_text(rest.read_text()[:-5]),
    "rest a list": lambda npy, rest: rest.write_text("[]"),
    "rest without classes": lambda npy, rest: rewrite(rest, lambda told: told.pop("classes")),
    "labels too few": lambda npy, rest: rewrite(rest, lambda told: told["labels"].pop()),
    "labels no numbers": lambda npy, rest: rewrite(rest, lambda told: told.update(labels=["a"])),
    "labels too large": lambda npy, rest: rewrite(rest, lambda told: told.update(labels=[2**70])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_anew(tmp_path, kept, decoded, damage):
    root = write_images(tmp_path / "data")
    before = ask(root)
    before = datasets.ImageSet(before.pixels.clone(), before.labels, before.classes, before.skipped, before.suffixes)
    (npy,), (rest,) = kept.glob("*.npy"), kept.glob("*.json")
    copy = tmp_path / "copy.npy"  # a map of what is cut short underneath it would end the process
    shutil.copy2(npy, copy)
    copy.replace(npy)
    DAMAGE[damage](npy, rest)
    decoded.clear()
    assert same(ask(root), before)
    assert len(decoded) == 43
    decoded.clear()
    assert same(ask(root), before)
    assert decoded == []


def test_pixels_and_rest_of_two_builders_do_not_pass_for_one(tmp_path, kept, decoded):
    root = write_images(tmp_path / "data")
    ask(root)
    (npy,) = kept.glob("*.npy")
    pixels = npy.read_bytes()
    npy.unlink()
    npy.write_bytes(pixels)  # as another process would have: of the same size, at another time
    decoded.clear()
    ask(root)
    assert len(decoded) == 43


def refuse(*names: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "trouble", ["a file in the way", "no room", "full at the third chunk", "full at last", "no rest"]
)
def test_where_nothing_can_be_kept_images_are_held_in_memory(tmp_path, kept, monkeypatch, decoded, trouble):
    root = write_images(tmp_path / "data")
    written = cache._write
    calls = []

    def failing(file, pixels):
        calls.append(len(pixels))
        if len(calls) == (3 if trouble == "full at the third chunk" else 7):
            file.write(b"a part")
            refuse()
        written(file, pixels)

    if trouble == "a file in the way":
        (tmp_path / "cache").write_text("not a folder")
    elif trouble == "no room":
        monkeypatch.setattr(cache, "RESERVE_BYTES", 2**80)
    elif trouble == "no rest":
        monkeypatch.setattr(cache.json, "dumps", refuse)
    else:
        monkeypatch.setattr(cache, "_write", failing)
    found = ask(root)
    pixels, labels = expected(root, "train", 3)
    assert torch.equal(found.pixels, pixels)
    assert found.labels.tolist() == labels
    assert len(decoded) == 43  # once: what was decoded is not lost where it cannot be written
    assert [path.suffix for path in tmp_path.glob("cache/colddiff/decoded/*")] == [".npy"] * (trouble == "no rest")
    monkeypatch.undo()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_folder_that_is_read_only_is_no_error(tmp_path, kept):
    root = write_images(tmp_path / "data")
    kept.mkdir(parents=True)
    kept.chmod(0o500)
    assert len(ask(root)) == 42
    kept.chmod(0o700)


def test_pixels_larger_than_memory_are_mapped_read_only(tmp_path, monkeypatch, recwarn):
    root = write_images(tmp_path / "data")
    before = ask(root)
    mapped = np.lib.format.open_memmap

    def scarce(path, mode):
        if mode == "c":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return mapped(path, mode=mode)

    monkeypatch.setattr(np.lib.format, "open_memmap", scarce)
    assert same(ask(root), before)
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_a_small_set_is_not_kept(tmp_path, kept):
    root = write_images(tmp_path / "data", classes={"a": 4, "b": 4})
    ask(root)
    pack(root, outer=True)
    ask(root)
    assert not kept.exists()


@pytest.mark.parametrize("form", ["folders", "archives"])
def test_memory_is_that_of_a_chunk(tmp_path, form):
    root = write_images(tmp_path / "data", splits=("test",))
    for number in range(400):
        path = root / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(path)
    if form == "archives":
        pack(root, outer=False)
    tracemalloc.start()
    found = ask(root, size=64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.pixels.nbytes == 400 * 3 * 64 * 64
    assert peak < found.pixels.nbytes / 4


def test_those_that_build_at_once_all_have_it_right(tmp_path, kept, monkeypatch, decoded):
    root = write_images(tmp_path / "data")
    wanted, _ = expected(root, "train", 3)
    start = threading.Barrier(4)
    found: list[datasets.ImageSet] = []

    def build() -> None:
        start.wait()
        found.append(ask(root))

    dumps, waits = json.dumps, iter((0.6, 0.4, 0.2, 0.0))

    def slowly(told):  # who writes the pixels first writes the rest last
        time.sleep(next(waits))
        return dumps(told)

    monkeypatch.setattr(cache.json, "dumps", slowly)
    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [torch.equal(one.pixels, wanted) for one in found] == [True] * 4
    decoded.clear()
    assert torch.equal(ask(root).pixels, wanted)
    assert decoded == []  # the pixels of one and the rest of another would be none
    assert sorted(path.suffix for path in kept.iterdir()) == [".json", ".npy"]


def test_drafts_of_the_killed_are_swept_and_those_at_work_are_not(tmp_path, kept):
    kept.mkdir(parents=True)
    old, new = kept / ".0123-dead.npy", kept / ".4567-live.npy"
    for path in (old, new):
        path.write_bytes(b"half")
    then = time.time() - 2 * cache.STALE_SECONDS
    os.utime(old, (then, then))
    ask(write_images(tmp_path / "data"))
    assert (old.exists(), new.exists()) == (False, True)


def test_images_are_listed_in_the_order_of_their_paths(tmp_path):
    """As `sorted(root.rglob("*"))` has it: folders by parts of the path, links to folders not followed."""
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
    wanted = [
        path
        for path in sorted(tmp_path.rglob("*"))
        if path.suffix.lower() in images.SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    found = decoding.list_images(tmp_path)
    assert found == wanted
    assert len(found) == 8
    assert decoding.list_images(tmp_path / "absent") == []
