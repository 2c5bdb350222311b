"""Writing cache entries: full disks, read-only folders, concurrent writers, killed writers."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_files import are_equal, decode_literally, load, record_decoded, use_temporary_cache, write_images

from colddiff_core import datasets, files
from colddiff_core.datasets import cache


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    return record_decoded(monkeypatch)


def refuse(*names: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "trouble", ["a file in the way", "no room", "full at the third chunk", "full at last", "no rest"]
)
def test_without_a_writable_cache_images_stay_in_memory(tmp_path, kept, monkeypatch, decoded, trouble):
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
    loaded = load(root)
    pixels, labels = decode_literally(root, "train", 3)
    assert torch.equal(loaded.pixels, pixels)
    assert loaded.labels.tolist() == labels
    assert len(decoded) == 26  # once: a failed write loses nothing
    assert [path.suffix for path in tmp_path.glob("cache/colddiff/decoded/*")] == [".npy"] * (trouble == "no rest")
    monkeypatch.undo()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_folder_is_not_an_error(tmp_path, kept):
    root = write_images(tmp_path / "data")
    kept.mkdir(parents=True)
    kept.chmod(0o500)
    assert len(load(root)) == 25
    kept.chmod(0o700)


def test_pixels_larger_than_memory_are_mapped_read_only(tmp_path, monkeypatch, recwarn):
    root = write_images(tmp_path / "data")
    before = load(root)
    mapped = np.lib.format.open_memmap

    def scarce(path, mode):
        if mode == "c":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return mapped(path, mode=mode)

    monkeypatch.setattr(np.lib.format, "open_memmap", scarce)
    assert are_equal(load(root), before)
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_concurrent_writers_all_get_the_right_images(tmp_path, kept, monkeypatch, decoded):
    root = write_images(tmp_path / "data")
    expected, _ = decode_literally(root, "train", 3)
    start = threading.Barrier(4)
    loaded: list[datasets.ImageSet] = []

    def build() -> None:
        start.wait()
        loaded.append(load(root))

    dumps, waits = json.dumps, iter((0.6, 0.4, 0.2, 0.0))

    def slowly(metadata):  # the first to write pixels is the last to write metadata
        time.sleep(next(waits))
        return dumps(metadata)

    monkeypatch.setattr(cache.json, "dumps", slowly)
    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [torch.equal(one.pixels, expected) for one in loaded] == [True] * 4
    decoded.clear()
    assert torch.equal(load(root).pixels, expected)
    assert decoded == []  # pixels and metadata of different writers would not match
    assert sorted(path.suffix for path in kept.iterdir()) == [".json", ".npy"]


def test_only_stale_drafts_are_removed(tmp_path, kept):
    kept.mkdir(parents=True)
    old, new = (files.beside(kept / f"{digit * 32}.npy") for digit in "01")
    for path in (old, new):
        path.write_bytes(b"half")
    then = time.time() - 2 * cache.STALE_SECONDS
    os.utime(old, (then, then))
    load(write_images(tmp_path / "data"))
    assert (old.exists(), new.exists()) == (False, True)
