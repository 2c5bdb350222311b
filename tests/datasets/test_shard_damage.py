"""Every way in which a shard can be damaged is said, with how many of its records are used."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import warnings
from pathlib import Path

import pytest
from shard_files import (
    all_shades,
    members_of,
    open_split,
    tar,
    use_temporary_cache,
    write_counts_file,
    write_shards,
    write_urls,
)

from colddiff_core import datasets
from colddiff_core.datasets import DatasetRequest
from colddiff_core.errors import ColddiffWarning

RECORD = 1024  # bytes of a record here: its header and one block
WHOLE = tar(members_of(0, 5))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


def said(root: Path, split: str = "train") -> list[str]:
    """Open a split and return the warnings about it."""
    datasets.base.warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ColddiffWarning)
        open_split(root, split).close()
    return [str(warning.message) for warning in caught]


def with_damaged_header() -> bytes:
    content = bytearray(WHOLE)
    content[2 * RECORD : 2 * RECORD + 100] = b"\xff" * 100
    return bytes(content)


DAMAGES = {
    "cut in a header": (WHOLE[: 2 * RECORD + 100], "cut short; 2 records used"),
    "cut in an image": (WHOLE[: 2 * RECORD + 512 + 20], "cut short; 2 records used"),
    "a damaged header": (with_damaged_header(), "damaged; 2 records used"),
    "gzip, cut": (gzip.compress(WHOLE, 0)[: 2 * RECORD + 200], "cut short; 2 records used"),
    "gzip, cut in the check sum": (gzip.compress(WHOLE)[:-5], "cut short; 5 records used"),
    "gzip, damaged": (gzip.compress(WHOLE, 0)[:-8] + b"x" * 8, "damaged gzip; "),
    "cut in the zeros after an image": (WHOLE[: 2 * RECORD - 10], "cut short; 2 records used"),
    "empty": (b"", "empty; 0 records used"),
    "empty gzip": (gzip.compress(b""), "empty; 0 records used"),
    "a web page": (b"<!DOCTYPE html><html>" + b"x" * 2000, "a web page; 0 records used"),
    "an XML error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page; 0 records used"),
    "a web page in gzip": (gzip.compress(b"<html>" + b"x" * 2000), "a web page; 0 records used"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; 0 records used"),
    "zip": (b"PK\x03\x04" + b"x" * 2000, "not a tar archive; 0 records used"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_with_its_count(tmp_path, damage):
    content, words = DAMAGES[damage]
    root = write_shards(tmp_path / "data")
    (root / "train-001.tar").write_bytes(content)
    for _ in range(2):  # the second time from the kept counts
        (line,) = said(root)
        assert f"1 of 3 shards in {root} is damaged: 'train-001.tar' ({words}" in line


def test_the_remark_is_kept_for_the_events(tmp_path):
    root = write_shards(tmp_path / "data")
    (root / "train-001.tar").write_bytes(WHOLE[: 2 * RECORD + 100])
    assert "cut short; 2 records used" in open_split(root).remarks[0]
    assert "cut short" in datasets.load("shards", DatasetRequest("train", 4, 3, root)).remarks[0]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_whole_shards_are_not_warned_about(tmp_path, form):
    root = write_shards(tmp_path / "data")
    content = tar([*members_of(0, 4), ("y" * 90 + ".png", members_of(4, 1)[0][1])], format=form)
    (root / "train-000.tar").write_bytes(content)
    (root / "train-001.tar").write_bytes(gzip.compress(content) + bytes(64))  # as on tapes
    (root / "train-002.tar").write_bytes(WHOLE[: 5 * RECORD])  # some writers leave out the end
    (root / "train-003.tar").write_bytes(WHOLE[: 5 * RECORD + 512])  # or write one block of it
    (root / "train-004.tar").write_bytes(gzip.compress(WHOLE[: 3 * RECORD]) + gzip.compress(WHOLE[3 * RECORD :]))
    assert said(root) == []


def test_a_shard_cut_between_records_is_found_by_the_list_of_counts(tmp_path):
    root = write_shards(tmp_path / "data")
    write_counts_file(root)
    path = root / "train-001.tar"
    path.write_bytes(path.read_bytes()[: 3 * RECORD])
    (line,) = said(root)
    assert "'train-001.tar' (too few records, 7 listed in shards.json; 3 records used)" in line
    path.write_bytes(path.read_bytes()[: 2 * RECORD + 30])
    (line,) = said(root)
    assert "'train-001.tar' (cut short, 7 listed in shards.json; 2 records used)" in line


def test_many_damaged_shards_take_one_line(tmp_path):
    root = write_shards(tmp_path / "data", sizes=(2,) * 9)
    for number in range(1, 9):
        (root / f"train-{number:03}.tar").write_bytes(b"")
    (line,) = said(root)
    assert line.startswith("8 of 9 shards")
    assert line.endswith("and 5 more")
    assert len(line) < 400


def test_a_command_that_prints_a_cut_archive_is_named(tmp_path):
    root = write_shards(tmp_path / "data")
    write_urls(root, "train-000.tar", f"pipe:head -c {2 * RECORD + 530} train-001.tar")
    (line,) = said(root)
    assert re.search(r"1 of 2 shards .* damaged: 'pipe:head .*' \(cut short; 2 records used\)", line)


def test_special_members_of_a_shard_are_passed_over(tmp_path):
    root = write_shards(tmp_path / "data", sizes=(5,))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE)
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"{number}.png")
            member.type, member.linkname = kind, "../../etc/passwd"
            archive.addfile(member)
    (root / "train-001.tar").write_bytes(stream.getvalue() + WHOLE[:0])
    (line,) = said(root)
    assert "1 of 2 shards" in line
    assert "without records, such as 'train-001.tar'" in line
    assert all_shades(open_split(root)) == list(range(5))
