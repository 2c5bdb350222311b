"""Record counts: from shards.json, from the cache, or counted once."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from shard_files import (
    all_shades,
    members_of,
    open_split,
    shades_of,
    tar,
    use_temporary_cache,
    write_counts_file,
    write_shards,
    write_urls,
)

from colddiff_core.datasets.shards import counts
from colddiff_core.errors import ColddiffWarning, UsageError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


def test_commands_are_counted_once(tmp_path):
    root = write_urls(write_shards(tmp_path / "data"), "pipe:echo x >> ../ran; cat train-001.tar")
    for _ in range(3):
        assert len(open_split(root)) == 7
    assert (tmp_path / "ran").read_text() == "x\n"


def test_of_concurrent_processes_one_counts(tmp_path):
    root = write_urls(write_shards(tmp_path / "data"), "pipe:echo x >> ../ran; sleep .3; cat train-001.tar")
    lengths: list[int] = []
    threads = [threading.Thread(target=lambda: lengths.append(len(open_split(root)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [7] * 4
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_without_a_writable_cache_shards_are_counted_each_time(tmp_path):
    root = write_shards(tmp_path / "data")
    (tmp_path / "cache").mkdir(mode=0o500)
    assert [len(open_split(root)) for _ in range(2)] == [18, 18]


def test_a_changed_shard_is_counted_again(tmp_path):
    root = write_shards(tmp_path / "data")
    assert len(open_split(root)) == 18
    (root / "train-001.tar").write_bytes(tar(members_of(0, 2)))
    assert len(open_split(root)) == 13


def test_counts_are_read_from_shards_json(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "data", classes=3)
    write_counts_file(root)
    monkeypatch.setattr(counts, "ShardOpener", None)
    shards = open_split(root)
    assert (len(shards), shards.class_count, shards.classes, shards.suffixes) == (18, 3, ("a", "b", "c"), {".png"})
    assert all_shades(shards) == list(range(18))
    write_urls(root, "pipe:cat train-{000..002}.tar")
    assert all_shades(open_split(root)) == list(range(18))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff"),
        lambda path: path.write_text(path.read_text().replace('"records": 5', '"records": -5')),
        lambda path: path.write_text(path.read_text().replace('"records": 5', '"records": "5"')),
        lambda path: path.write_text(path.read_text().replace('"bytes": ', '"bytes": 1')),
        lambda path: path.write_text(path.read_text().replace(".png", ".exe")),
    ],
)
def test_a_damaged_shards_json_is_ignored(tmp_path, damage):
    root = write_shards(tmp_path / "data", classes=3)
    write_counts_file(root)
    damage(root / counts.COUNTS_FILE)
    assert all_shades(open_split(root)) == list(range(18))


def test_only_the_shard_of_a_damaged_entry_is_counted(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "data", classes=3)
    text = write_counts_file(root)
    text["shards"][2]["records"] = None
    (root / counts.COUNTS_FILE).write_text(json.dumps(text))
    scanned, names = counts._scanned, []
    monkeypatch.setattr(counts, "_scanned", lambda places: names.extend(p.name for p in places) or scanned(places))
    assert all_shades(open_split(root)) == list(range(18))
    assert names == ["train-001.tar"]


def test_a_shard_with_a_wrong_count_is_skipped(tmp_path):
    root = write_shards(tmp_path / "data", classes=3)
    text = write_counts_file(root)
    text["shards"][2]["records"] = 9
    (root / counts.COUNTS_FILE).write_text(json.dumps(text))
    shards = open_split(root)
    assert len(shards) == 20
    with pytest.warns(ColddiffWarning, match="train-001.tar holds 7 records of 3 classes, where 9 of 3"):
        rows = shards.rows(torch.tensor([0, 5, 6, 13]))
    assert shades_of(rows) == [0, 12, 13, 14]
    assert shards.skipped == 9


def test_a_shard_with_unlisted_classes_is_skipped(tmp_path):
    root = write_shards(tmp_path / "data", classes=3)
    text = write_counts_file(root, classes=2)
    (root / counts.COUNTS_FILE).write_text(json.dumps(text | {"classes": ["a", "b"]}))
    with pytest.raises(UsageError, match="of 3 classes, where 5 of 2"):
        open_split(root).rows(torch.tensor([0]))


@pytest.mark.parametrize("is_told", [False, True])
def test_a_changed_command_is_counted_again(tmp_path, is_told):
    root = write_urls(write_shards(tmp_path / "data"), "train-000.tar", "pipe:cat ../train-001.tar")
    (tmp_path / "train-001.tar").write_bytes((root / "train-001.tar").read_bytes())
    if is_told:
        write_counts_file(root)
    assert len(open_split(root)) == 12
    (tmp_path / "train-001.tar").write_bytes(tar(members_of(20, 3)))
    expected = rf"where 7 of 0 were counted: {f'remove {root}/shards.json and ' if is_told else ''}start again; other"
    for _ in range(2 if is_told else 1):
        with pytest.warns(ColddiffWarning, match=expected):
            assert len(all_shades(open_split(root))) == 12
    (root / counts.COUNTS_FILE).unlink(missing_ok=True)
    assert all_shades(open_split(root)) == [*range(5), 20, 21, 22]


def test_two_commands_with_one_archive_name_are_both_counted(tmp_path):
    root = write_shards(tmp_path / "data")
    write_counts_file(root)
    (tmp_path / "train-001.tar").write_bytes(tar(members_of(20, 3)))
    write_urls(root, "train-000.tar", "pipe:cat train-001.tar", "pipe:cat ../train-001.tar")
    assert all_shades(open_split(root)) == [*range(12), 20, 21, 22]
