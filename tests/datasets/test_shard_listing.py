"""Finding the shards of a folder: archives, lists, ranges and commands."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from shard_files import SIDE, all_shades, members_of, open_split, tar, use_temporary_cache, write_shards, write_urls

from colddiff_core.datasets import DatasetRequest, open_shards
from colddiff_core.datasets.shards import listing
from colddiff_core.errors import UsageError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


def test_without_test_shards_a_fixed_part_is_held_out(tmp_path):
    root = write_shards(tmp_path / "data", sizes=(2,) * 20)
    (root / "test-000.tar").unlink()
    train, test = all_shades(open_split(root)), all_shades(open_split(root, "test"))
    assert sorted(train + test) == list(range(40))
    assert 2 <= len(test) <= 12
    for number in range(1, 20):
        (root / f"train-{number:03}.tar").unlink()
    with pytest.raises(UsageError, match="none to test on"):
        open_split(root)


def test_lists_may_hold_files_commands_and_ranges(tmp_path):
    root = write_shards(tmp_path / "data")
    (tmp_path / "elsewhere.tar").write_bytes(tar(members_of(50, 2)))
    (root / "train-002.tar").write_bytes(gzip.compress((root / "train-002.tar").read_bytes()))
    write_urls(root, "# ours", "", "train-{000..001}.tar", f"{tmp_path}/elsewhere.tar", "pipe:cat train-002.tar")
    shards = open_split(root)
    assert all_shades(shards) == [*range(12), 50, 51, *range(12, 18)]
    assert all_shades(shards) == [*range(12), 50, 51, *range(12, 18)]
    assert not list((tmp_path / "cache" / "colddiff" / "spool").iterdir())
    write_urls(root, "pipe: gzip -dc < train-002.tar")
    assert all_shades(open_split(root)) == list(range(12, 18))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{2..1}/{0..1}", ["2/0", "2/1", "1/0", "1/1"]),
        ("pipe:echo ${x} {a..c}", ["pipe:echo ${x} {a..c}"]),
    ],
)
def test_ranges_expand_to_every_number(line, expected):
    assert list(listing.expand_ranges(line)) == expected


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["train-{0..99999999999}.tar"], "more than"),
        (["train-000.tar", "train-000.tar"], "twice"),
        (["https://host/a.tar"], "pipe:curl -s -L https://host/a.tar"),
        (["absent.tar"], "Cannot read .*absent.tar: No such file"),
        (["pipe:echo oh dear >&2; exit 3"], "exit code 3, oh dear"),
        (["pipe:head -c 3000 train-000.tar; exit 1"], "exit code 1"),
        (["pipe:echo garbage"], "exit code 0"),
        (["pipe:true"], "exit code 0"),
        (["# nothing"], "No shards"),
    ],
)
def test_a_bad_list_is_an_error(tmp_path, lines, words):
    root = write_urls(write_shards(tmp_path / "data"), *lines)
    with pytest.raises(UsageError, match=words):
        open_split(root)


def test_a_binary_list_and_a_fifo_shard_are_errors(tmp_path):
    root = write_shards(tmp_path / "data")
    os.mkfifo(root / "fifo.tar")
    with pytest.raises(UsageError, match="regular file"):
        open_split(write_urls(root, "fifo.tar"))
    (root / "train.urls").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        open_split(root)


def test_commands_need_consent(tmp_path):
    root = write_urls(write_shards(tmp_path / "data"), "train-000.tar", "pipe:touch ../ran; cat train-001.tar")
    with pytest.raises(UsageError, match="--data-dir"):
        open_split(root, download=False)
    assert len(open_split(root, "test", download=False)) == 4
    assert not (tmp_path / "ran").exists()


def test_a_missing_folder_is_an_error(tmp_path):
    for place, words in ((None, "needs a folder"), (tmp_path / "absent", "No such folder"), (tmp_path, "No shards")):
        with pytest.raises(UsageError, match=words):
            open_shards(DatasetRequest("train", SIDE, 0, place), 4)
