"""Scanning a tar archive: which files form a record, and hostile or truncated archives."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import torch
from shard_files import all_shades, members_of, open_split, png, tar, use_temporary_cache, write_shards

from colddiff_core.datasets.shards import archive, listing, tar_index
from colddiff_core.errors import ColddiffWarning, UsageError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    return use_temporary_cache(tmp_path, monkeypatch)


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax"])
def test_long_and_hostile_names_are_only_names(tmp_path, form):
    names = [f"{'deep/' * 20}{'x' * 90}", "../../etc/passwd", "/abs/olute", "a\nb/c\nd", "ü/ß", "a.dir/b", "-rf"]
    if form == "ustar":
        names = names[1:4]
    formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    members = [
        (f"{name}.{end}", body) for i, name in enumerate(names) for end, body in (("png", png(i)), ("cls", b"1"))
    ]
    root = write_shards(tmp_path / "data")
    (root / "train-000.tar").write_bytes(tar(members, format=formats[form]))
    before = sorted(tmp_path.rglob("*"))
    shards = open_split(root)
    assert all_shades(shards)[: len(names)] == list(range(len(names)))
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and "cache" not in p.parts] == []


def test_a_record_is_the_files_with_one_path_up_to_the_first_dot(tmp_path):
    root = write_shards(tmp_path / "data")
    members = [
        ("__key__", b"none"),
        (".hidden.png", png(99)),
        ("a/1.json", b"{}"),
        ("a/1.seg.png", png(98)),  # another file of the record, as in webdataset
        ("a/1.PNG", png(1)),
        ("a/1.jpg", png(97)),  # the second image of a record is not read
        ("b/1.png", png(2)),
        ("b/1.pyd", b"cos\nsystem\n(S'touch pickled'\ntR."),
        ("2.webp", png(3)),
    ]
    (root / "train-000.tar").write_bytes(tar(members))
    shards = open_split(root)
    assert shards.suffixes == {".png", ".webp"}
    assert all_shades(shards)[:3] == [1, 2, 3]
    assert len(shards) == 3 + 13


@pytest.mark.parametrize("label", [b"x", b"-1", b"", b"1.5", b"9" * 60, b"3\n"])
def test_a_label_that_is_not_a_number_disables_labels(tmp_path, label):
    root = write_shards(tmp_path / "data", classes=3)
    (root / "train-000.tar").write_bytes(tar([("a.png", png(0)), ("a.cls", label)]))
    shards = open_split(root)
    assert shards.class_count == (4 if label == b"3\n" else 0)
    if not shards.has_labels:
        with pytest.raises(ValueError, match="no labels"):
            shards.labels_of(torch.tensor([0]))
    assert all_shades(shards) == [0, *range(5, 18)]


def test_a_member_above_the_size_limit_is_not_read(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "data")
    monkeypatch.setattr(tar_index, "MAX_MEMBER_BYTES", 1000)
    (root / "train-000.tar").write_bytes(tar([("a.png", png(1).ljust(2000)), ("b.png", png(2))]))
    shards = open_split(root)
    assert all_shades(shards)[:2] == [2, 2]
    assert shards.skipped == 1


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_shard_has_its_complete_records(tmp_path, labeled, packed):
    whole = tar(members_of(0, 5, 5 if labeled else 0))
    for cut in (512 * 3, 512 * 4, 512 * 5, 512 * 6 + 10, 512 * 8 + 600):
        root = write_shards(tmp_path / str(cut), classes=5 if labeled else 0)
        content = gzip.compress(whole, 0)[:cut] if packed else whole[:cut]
        (root / "train-000.tar").write_bytes(content)
        shards = open_split(root)
        left = len(shards) - 13
        assert left == pytest.approx(cut / (2048 if labeled else 1024), abs=1.6)
        assert all_shades(shards) == [*range(left), *range(5, 18)]
        assert shards.has_labels == labeled


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"damaged: 'train-000.tar' \(empty; 0 records used\)"),
        (bytes(10240), "without records, such as 'train-000.tar'"),
        (b"garbage" * 1000, r"damaged: 'train-000.tar' \(not a tar archive; 0 records used\)"),
        (b"\x1f\x8bgarbage", r"damaged: 'train-000.tar' \(damaged gzip; 0 records used\)"),
        (png(3), r"damaged: 'train-000.tar' \(not a tar archive; 0 records used\)"),
        (b"<!DOCTYPE html>\n<html>404</html>", r"damaged: 'train-000.tar' \(a web page; 0 records used\)"),
    ],
)
def test_empty_files_and_files_that_are_not_archives_have_no_records(tmp_path, content, words):
    root = write_shards(tmp_path / "data")
    (root / "train-000.tar").write_bytes(content)
    with pytest.warns(ColddiffWarning, match=f"1 of 3 shards in .* {words}"):
        shards = open_split(root)
    assert all_shades(shards) == list(range(5, 18))
    assert sorted(torch.cat([shards.order(0, step, 1) for step in range(13)]).tolist()) == list(range(13))
    for path in root.glob("train-*"):
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"hold no records \(train-000.tar"):
        open_split(root)


@pytest.mark.parametrize("size", [b"77777777777", b"-0000000001", b"\x80" + b"\xff" * 10, b"\xff" * 11])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_false_sizes_cost_no_memory(tmp_path, size, kind):
    root = write_shards(tmp_path / "data")
    content = bytearray(tar(members_of(0, 4)))
    content[2048 + 124 : 2048 + 135] = size  # of the third member
    content[2048 + 156 : 2048 + 157] = kind
    content[2048 + 148 : 2048 + 156] = b" " * 8
    content[2048 + 148 : 2048 + 155] = b"%06o\0" % sum(content[2048 : 2048 + 512])
    (root / "train-000.tar").write_bytes(bytes(content))
    tracemalloc.start()
    assert all_shades(open_split(root))[:2] == [0, 1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_parsed_as_tarfile_parses_them(form):
    names = [
        "a.png",
        "x" * 99 + "/b.png",
        "d/" * 40 + "c" * 60 + ".png",
        "ü.png",
        "e" * 100,
        "/f.png",
        "g h\n.png",
        "i/",
    ]
    content = tar([(name, name.encode() * 9) for name in names], format=form)
    headers = [content[place : place + 512] for place in range(0, len(content) - 1024, 512)]
    headers += [headers[0][:place] + b"\1" + headers[0][place + 1 :] for place in range(512)]
    for header in headers:
        results = []
        for kind in (tarfile.TarInfo, tar_index._Member):
            try:
                parsed = kind.frombuf(header, "utf-8", "surrogateescape")
                results.append((parsed.name, parsed.size, parsed.type))
            except tarfile.HeaderError as error:
                results.append(type(error))
        assert results[0] == results[1]


def test_links_and_devices_are_ignored(tmp_path):
    root = write_shards(tmp_path / "data")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)):
            member = tarfile.TarInfo(f"{number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("9.png")
        member.size = len(png(9))
        archive.addfile(member, io.BytesIO(png(9)))
    (root / "train-000.tar").write_bytes(stream.getvalue())
    assert all_shades(open_split(root))[:2] == [9, 5]


@pytest.mark.parametrize("kind", ["gnu", "pax", "folder"])
def test_sparse_files_and_folders_with_a_size_do_not_end_a_shard(tmp_path, kind):
    root = write_shards(tmp_path / "data")
    hole = tarfile.TarInfo("0.png")
    body = b"1\n0\n512\n".ljust(512, b"\0") + bytes(512) if kind == "pax" else bytes(512)
    hole.size, huge = len(body), 1 << 30
    if kind == "pax":
        hole.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(huge)}
    hole.type, hole.size = (tarfile.DIRTYPE, huge) if kind == "folder" else (hole.type, hole.size)
    header = bytearray(hole.tobuf(tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT))
    if kind == "gnu":
        header[156:157], header[386:410], header[483:495] = b"S", b"%011o\0%011o\0" % (0, 512), b"%011o\0" % huge
        header[148:156] = b" " * 8
        header[148:155] = b"%06o\0" % sum(header)
    content = bytes(header) + (b"" if kind == "folder" else body)
    (root / "train-000.tar").write_bytes(content + tar([("1.png", png(1)), ("2.png", png(2))]))
    assert all_shades(open_split(root))[-15:] == [1, 2, *range(5, 18)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_of_many_megabytes_is_not_read(tmp_path, form):
    root = write_shards(tmp_path / "data")
    stream = io.BytesIO(tar([*members_of(1, 2), ("n" * (40 << 20), b"")], format=form))
    (root / "train-000.tar").write_bytes(stream.getbuffer())
    del stream
    tracemalloc.start()
    assert all_shades(open_split(root))[0] == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24


@pytest.mark.parametrize(
    ("names", "shade", "label"),
    [
        (["1.input.jpg", "1.x.cls"], 0, 1),
        (["1.seg.png", "1.png", "1.x.cls", "1.cls"], 1, 3),
        (["1.png", "1.seg.png", "1.cls", "1.x.cls"], 0, 2),
        (["1.a.png", "1.b.png", "1.txt.cls"], 0, 2),
    ],
)
def test_an_extension_may_have_a_name_before_its_suffix(tmp_path, names, shade, label):
    root = write_shards(tmp_path / "data", classes=4)
    members = [(name, str(n).encode() if name.endswith("cls") else png(n)) for n, name in enumerate(names)]
    (root / "train-000.tar").write_bytes(tar(members))
    shards = open_split(root)
    assert all_shades(shards) == [shade, *range(5, 18)]
    assert shards.labels_of(torch.tensor([0])).tolist() == [label]


@pytest.mark.parametrize(("cut", "left"), [(512 * 3, 1), (512 * 5, 2), (512 * 10, 5), (512 * 11, 5)])
def test_records_before_a_truncation_are_complete(tmp_path, cut, left):
    root = write_shards(tmp_path / "data")
    link = tarfile.TarInfo("link")
    link.type = tarfile.SYMTYPE
    content = tar(members_of(0, 5))[: 512 * 10] + link.tobuf() + bytes(1024)
    (root / "train-000.tar").write_bytes(content[:cut])
    assert len(open_split(root)) == left + 13
    (root / "train-000.tar").write_bytes(content)
    index = archive.ShardOpener().open(listing.ShardLocation("", root, root / "train-000.tar")).index
    assert (len(index), index.is_truncated) == (5, False)
