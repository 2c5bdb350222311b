"""Broken records, failing shards and a failing machine: others stand in, or an error says what to do."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bombs import BOMB
from shard_files import (
    SIDE,
    all_shades,
    members_of,
    open_split,
    png,
    shades_of,
    tar,
    use_temporary_cache,
    write_shards,
    write_urls,
)

from colddiff_core import datasets
from colddiff_core.datasets import DatasetRequest, cache
from colddiff_core.datasets.shards import archive, dataset, listing
from colddiff_core.errors import ColddiffWarning, MachineError, UsageError
from colddiff_core.training.log_meter import UnreadableImages


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


BROKEN = {
    "no image": b"not a picture",
    "empty": b"",
    "a bomb": BOMB,
    "cut": png(3, 64)[:60],
    "without an image": None,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_next_readable_record_replaces_a_broken_one(tmp_path, kind):
    root = write_shards(tmp_path / "data", classes=2)
    members = members_of(0, 5, 2)
    for broken in (2, 3, 4):  # the last ones, so that the search wraps around
        members[2 * broken] = (f"{broken:06}.{'png' if BROKEN[kind] is not None else 'txt'}", BROKEN[kind] or b"")
    (root / "train-000.tar").write_bytes(tar(members))
    shards = open_split(root)
    assert shards.labels_of(torch.tensor([3, 1])).tolist() == [0, 1]
    assert all_shades(shards) == [0, 1, 0, 0, 0, *range(5, 18)]
    assert shards.labels_of(torch.arange(6)).tolist() == [0, 1, 0, 0, 0, 1]
    assert shards.skipped == 3
    all_shades(shards)
    assert shards.skipped == 3
    other = open_split(root)  # another process, which reads in another order
    assert shades_of(other.rows(torch.tensor([4, 3, 2]))) == [0, 0, 0]
    images = datasets.load("shards", DatasetRequest("train", SIDE, 0, root))
    assert (len(images), images.skipped) == (15, 3)
    assert images.labels.tolist() == [n % 2 for n in shades_of(images.pixels)]


def test_the_next_shard_replaces_one_without_readable_records(tmp_path):
    root = write_shards(tmp_path / "data")
    (root / "train-001.tar").write_bytes(tar([(f"{i}.png", b"?") for i in range(7)]))
    shards = open_split(root)
    assert all_shades(shards) == [*range(5), 12, 13, 14, 15, 16, 17, 12, *range(12, 18)]
    assert shards.skipped == 7
    for number in range(3):
        (root / f"train-{number:03}.tar").write_bytes(tar([(f"{i}.png", b"?") for i in range(3)]))
    with pytest.raises(UsageError, match="None of the 9 records can be read"):
        open_split(root).rows(torch.tensor([4]))
    with pytest.raises(UsageError, match=r"No readable image in .* \(9 images tried"):
        datasets.load("shards", DatasetRequest("train", SIDE, 0, root))


def test_a_shard_that_opens_slowly_is_reported(tmp_path, monkeypatch):
    root = write_urls(write_shards(tmp_path / "data"), "pipe:test -e ../slow && sleep .3; cat train-001.tar")
    shards = open_split(root)
    (tmp_path / "slow").touch()
    monkeypatch.setattr(dataset, "SLOW_OPEN_SECONDS", 0.02)
    with pytest.warns(ColddiffWarning, match=r"waiting for 'pipe:.* for 0 s") as warned:
        assert shades_of(shards.rows(torch.tensor([0, 1]))) == [5, 6]
    assert len(warned) == 1


def test_the_highest_count_of_all_processes_is_reported():
    met = SimpleNamespace(skipped=0, skipped_files=("image 2 of 'train-0.tar' (truncated)",))
    ranks = SimpleNamespace(sum=lambda tensor: tensor * 2, all_max=lambda *values: values)
    unreadable = UnreadableImages(met, ranks)
    assert unreadable.message() == ""
    met.skipped = 300
    first = "image 2 of 'train-0.tar' (truncated) and 299 more"
    assert unreadable.message() == f"unreadable training images so far: 300 ({first}); other images are used instead"
    assert unreadable.message() == ""


def test_a_shard_is_skipped_only_while_it_is_missing(tmp_path):
    root = write_shards(tmp_path / "data")
    shards = open_split(root)
    content = (root / "train-001.tar").read_bytes()
    (root / "train-001.tar").unlink()
    with pytest.warns(ColddiffWarning, match="train-001.tar: No such file or directory; other images"):
        assert all_shades(shards) == [*range(5), 12, 13, 14, 15, 16, 17, 12, *range(12, 18)]
    assert shards.skipped == 7
    assert shards.rows(torch.tensor([5])) is not None
    (root / "train-001.tar").write_bytes(content)
    shards._open.clear()  # so that it is opened again
    assert all_shades(shards) == list(range(18))
    assert shards.skipped == 0


def test_a_command_that_fails_later_is_skipped_with_a_warning(tmp_path):
    root = write_urls(write_shards(tmp_path / "data"), "train-000.tar", "pipe:test -e ../ok && cat train-001.tar")
    (tmp_path / "ok").touch()
    shards = open_split(root)
    (tmp_path / "ok").unlink()
    with pytest.warns(ColddiffWarning, match="failed: exit code 1"):
        assert all_shades(shards) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert shards.skipped == 7
    write_urls(root, "pipe:test -e ../ok && cat train-001.tar")
    (tmp_path / "ok").touch()
    alone = open_split(root)
    (tmp_path / "ok").unlink()
    with pytest.raises(UsageError, match="exit code 1"):
        alone.rows(torch.tensor([0]))


def test_a_set_held_in_memory_without_a_failed_shard_is_not_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 2)
    root = write_urls(write_shards(tmp_path / "data"), "train-000.tar", "pipe:test -e ../ok && cat train-001.tar")
    (tmp_path / "ok").touch()
    request = DatasetRequest("train", SIDE, 0, root)
    open_split(root)
    (tmp_path / "ok").unlink()
    with pytest.warns(ColddiffWarning, match="failed: exit code 1; its images are left out"):
        assert sorted(shades_of(datasets.load("shards", request).pixels)) == list(range(5))
    (tmp_path / "ok").touch()
    assert sorted(shades_of(datasets.load("shards", request).pixels)) == list(range(12))
    write_urls(root, "pipe:test -e ../ok && cat train-002.tar")
    open_split(root)
    (tmp_path / "ok").unlink()
    with pytest.raises(UsageError, match=r"None of the 6 records can be read.*exit code 1"):
        datasets.load("shards", request)


def test_a_full_disk_is_not_a_broken_shard(tmp_path, monkeypatch):
    root = write_urls(write_shards(tmp_path / "data"), "pipe:cat train-001.tar")
    shards = open_split(root)
    monkeypatch.setattr(cache, "RESERVE_BYTES", 2**80)
    with pytest.raises(MachineError, match="Cannot write"):
        shards.rows(torch.tensor([0]))
    monkeypatch.setattr(cache, "RESERVE_BYTES", 0)
    assert shades_of(shards.rows(torch.tensor([0]))) == [5]


def test_too_many_open_files_are_not_a_broken_shard(tmp_path, monkeypatch):
    shards = open_split(write_shards(tmp_path / "data"))

    def refuse(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(archive.os, "open", refuse)
        with pytest.raises(MachineError, match="Too many open files") as refusal:
            shards.rows(torch.tensor([0]))
    assert "data.lanes" in str(refusal.value)
    assert all_shades(shards) == list(range(18))


@pytest.mark.parametrize("what", ["_spool", "Popen", "dup", "folder"])
def test_errors_of_the_machine_name_the_remedy(tmp_path, monkeypatch, what):
    shards = open_split(write_urls(write_shards(tmp_path / "data"), "pipe:cat train-001.tar"))

    def refuse(*arguments, **values):
        raise OSError(errno.EACCES if what == "folder" else errno.EMFILE, "Refused")

    with monkeypatch.context() as patch:
        if what in ("_spool", "folder"):
            patch.setattr(archive.tempfile, "TemporaryFile", refuse)
        else:
            patch.setattr(archive.os if what == "dup" else archive.subprocess, what, refuse)
        expected = f"Cannot write {tmp_path}.*spool: Refused" if what == "folder" else "Cannot read pipe:.*: Refused"
        with pytest.raises(MachineError, match=expected) as refusal:
            shards.rows(torch.tensor([0]))
    assert ("permissions" if what == "folder" else "data.lanes") in refusal.value.remedy
    assert shades_of(shards.rows(torch.tensor([0]))) == [5]


@pytest.mark.parametrize("parts", [[1 << 20] * 130, [1 << 20] * 63 + [2 << 20] + [1 << 19] * 130])
def test_free_space_is_checked_at_intervals_whatever_the_chunk_size(tmp_path, monkeypatch, parts):
    written, checks = 0, []
    monkeypatch.setattr(cache, "check_free_space", lambda *_: checks.append(written))
    with archive._spool(listing.ShardLocation("pipe:", tmp_path)) as (_, keep):
        for part in parts:
            keep(bytes(part))
            written += part
    assert checks[0] == 0
    gaps = [after - before for before, after in zip(checks, [*checks[1:], written], strict=True)]
    assert max(gaps) < (64 << 20) + max(parts)
    assert min(gaps[:-1], default=64 << 20) >= 64 << 20


def test_closing_kills_running_commands(tmp_path):
    root = write_urls(write_shards(tmp_path / "data"), "pipe:test -e ../slow && sleep 60; cat train-001.tar")
    shards = open_split(root)
    (tmp_path / "slow").touch()
    threading.Timer(0.3, shards.close).start()
    begun = time.monotonic()
    with pytest.raises(UsageError, match="closed while"):
        shards.rows(torch.tensor([0]))
    assert time.monotonic() - begun < 10
