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
        (["{1..10000}/{1..10000}.tar"], "more than"),
        (["{1..1000000}" * 3], "more than"),
        (["{1..1000000}" + "x" * 100_000], "characters"),
        (["a.tar", "b\0.tar"], "which no file is called"),
        (["{0..0}" * 3000], "Cannot read"),
        (["http://host/a;touch b"], "curl -s -L 'http://host/a;touch b'"),
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


NAMINGS = {
    "img2dataset": (("00000.tar", "00001.tar", "00002.tar"), ()),
    "words inside": (("cc3m-train-0000.tar", "cc3m-train-0001.tar"), ("cc3m-val-0000.tar",)),
    "underscores": (("imagenet_train_000.tar", "imagenet_train_001.tar"), ("imagenet_validation_000.tar",)),
    "val": (("train-0.tar", "train-1.tar"), ("val-0.tar",)),
    "capitals": (("Train-0.tar", "Train-1.tar"), ("Val-0.tar",)),
    "gzip": (("00000.tar.gz", "00001.tgz"), ()),
    "nested": (("train/00000.tar", "train/00001.tar"), ("val/00000.tar",)),
    "nested deeper": (("set/train/a/0.tar", "set/train/b/0.tar"), ("set/test/0.tar",)),
    "nested, unnamed": (("part0/00000.tar", "part1/00000.tar"), ()),
    "single": (("train.tar",), ("test.tar",)),
    "years": (("train2017-0.tar", "train2017-1.tar"), ("val2017-0.tar",)),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_shards_are_found_under_the_names_that_people_give_them(tmp_path, naming):
    train_names, test_names = NAMINGS[naming]
    for number, name in enumerate((*train_names, *test_names)):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = tar(members_of(10 * number, 3))
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (tmp_path / "data" / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "data" / "00000_stats.json").write_text("{}")
    (tmp_path / "data" / ".hidden.tar").write_bytes(b"")
    train, test = open_split(tmp_path / "data"), open_split(tmp_path / "data", "test")
    every = [10 * number + each for number in range(len(train_names) + len(test_names)) for each in range(3)]
    assert sorted(all_shades(train) + all_shades(test)) == every
    if test_names:
        assert all_shades(test) == every[-3:]
        assert train.remarks == test.remarks == ()
    else:
        assert len(test) == 3
        (remark,) = train.remarks
        assert f"has no test shards: 1 of {len(train_names)} shards held out ({test._locations[0].name})" in remark


def test_one_of_several_held_out_parts_is_used_and_none_is_trained_on(tmp_path):
    root = write_shards(tmp_path / "data")
    (root / "val-000.tar").write_bytes(tar(members_of(2000, 2)))
    (root / "more-train-000.tar").write_bytes(tar(members_of(3000, 2)))
    shards = open_split(root)
    assert all_shades(shards) == list(range(18))
    assert all_shades(open_split(root, "test")) == list(range(1000, 1004))
    assert shards.remarks == (f"{root}: left out 2 shards: more-train-000.tar, val-000.tar",)


def test_a_list_of_val_shards_is_held_out(tmp_path):
    root = write_shards(tmp_path / "data")
    (root / "train.urls").write_text("train-{000..002}.tar\n")
    (root / "val.urls").write_text("test-000.tar\n")
    (root / "test-000.tar").rename(root / "held.tar")
    (root / "val.urls").write_text("held.tar\n")
    assert all_shades(open_split(root, "test")) == list(range(1000, 1004))
    assert all_shades(open_split(root)) == list(range(18))


def test_a_missing_folder_is_an_error(tmp_path):
    for place, words in ((None, "needs a folder"), (tmp_path / "absent", "No such folder"), (tmp_path, "No shards")):
        with pytest.raises(UsageError, match=words):
            open_shards(DatasetRequest("train", SIDE, 0, place), 4)
    for place in (tmp_path / "file", tmp_path / "pipe"):
        os.mkfifo(place) if place.name == "pipe" else place.write_bytes(b"")
        with pytest.raises(UsageError, match="is not a folder"):
            open_shards(DatasetRequest("train", SIDE, 0, place), 4)
