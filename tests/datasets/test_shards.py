"""Tar shards read while they are used: every record in its place, whatever is wrong with some of them."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bombs import BOMB
from PIL import Image

from colddiff_core import datasets, experiment
from colddiff_core.config import presets
from colddiff_core.datasets import DatasetRequest, Shards, cache, from_config, open_shards
from colddiff_core.datasets.shards import archive as records
from colddiff_core.datasets.shards import counts, dataset, listing
from colddiff_core.errors import ColddiffWarning, MachineError, UsageError
from colddiff_core.training import provenance
from colddiff_core.training.trainer import Trainer

SIDE = 4


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "RESERVE_BYTES", 0)
    return tmp_path / "cache" / "colddiff"


def png(shade: int, side: int = SIDE) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, shade // 256, 7)).save(stream, "png")
    return stream.getvalue()


def tar(members: list[tuple[str, bytes]], **values) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **values) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def shard(first: int, count: int, classes: int = 0) -> list[tuple[str, bytes]]:
    """The members of a shard whose images are of the shades first, first + 1, ..."""
    members = []
    for number in range(first, first + count):
        members.append((f"{number:06}.png", png(number)))
        if classes:
            members.append((f"{number:06}.cls", str(number % classes).encode()))
    return members


def write(root: Path, sizes=(5, 7, 6), classes: int = 0, split: str = "train") -> Path:
    """Write shards of these sizes, image after image one shade up, and one to test on."""
    root.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, size in enumerate(sizes):
        (root / f"{split}-{number:03}.tar").write_bytes(tar(shard(first, size, classes)))
        first += size
    if split == "train":
        (root / "test-000.tar").write_bytes(tar(shard(1000, 4, classes)))
    return root


def opened(root: Path, split: str = "train", lanes: int = 4, channels: int = 0, **values) -> Shards:
    return open_shards(DatasetRequest(split, SIDE, channels, root, **values), lanes)


def shades(pixels: torch.Tensor) -> list[int]:
    return (pixels[:, 0, 0, 0].long() + 256 * pixels[:, 1, 0, 0].long()).tolist()


def every(found: Shards) -> list[int]:
    return shades(found.rows(torch.arange(len(found))))


def test_records_are_read_by_number_in_the_order_asked_for(tmp_path):
    found = opened(write(tmp_path / "data", classes=3))
    assert (len(found), found.channels, found.shape, found.class_count) == (18, 3, (3, SIDE, SIDE), 3)
    assert (found.has_labels, found.suffixes, found.skipped, found.note) == (True, {".png"}, 0, "")
    assert every(found) == list(range(18))
    numbers = torch.tensor([17, 0, 5, 4, 5, 12])
    rows = found.rows(numbers)
    assert shades(rows) == numbers.tolist()
    assert (rows.dtype, tuple(rows.shape)) == (torch.uint8, (6, 3, SIDE, SIDE))
    assert found.labels_of(numbers).tolist() == [n % 3 for n in numbers.tolist()]
    assert found.labels_of(torch.tensor([1])).dtype == torch.int64
    assert opened(tmp_path / "data", channels=1).rows(numbers).shape[1] == 1
    for wrong in (18, -1):
        with pytest.raises(IndexError):
            found.rows(torch.tensor([wrong]))
    found.close()


def test_an_order_takes_every_record_once_an_epoch(tmp_path):
    found = opened(write(tmp_path / "data"), lanes=3)
    taken = torch.cat([found.rows(found.order(0, step, 6)) for step in range(3)])
    assert sorted(shades(taken)) == list(range(18))


def test_shards_and_image_sets_are_training_sets(tmp_path):
    def needs(images: datasets.TrainingSet) -> list[object]:
        picked = images.order(1, 2, 4)
        told = images.labels_of(picked) if images.has_labels else None
        return [len(images), images.shape, images.rows(picked).shape, told, images.digest(3), images.class_count]

    root = write(tmp_path / "data", classes=3)
    streamed, held = opened(root), datasets.load("shards", DatasetRequest("train", SIDE, 0, root))
    one, other = needs(streamed), needs(held)
    assert one[:3] == other[:3]
    assert one[5] == other[5] == 3
    held.close()
    streamed.close()


def test_held_images_are_those_of_the_shards_and_kept(tmp_path, monkeypatch):
    root = write(tmp_path / "data", classes=3)
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 8)
    found = datasets.load("shards", DatasetRequest("train", SIDE, 0, root))
    assert sorted(shades(found.pixels)) == list(range(18))
    assert found.labels.tolist() == [n % 3 for n in shades(found.pixels)]
    monkeypatch.setattr(dataset.Shards, "_opened", None)
    again = datasets.load("shards", DatasetRequest("train", SIDE, 0, root))
    assert torch.equal(again.pixels, found.pixels)
    monkeypatch.undo()
    monkeypatch.setattr(dataset, "MOST_HELD", 6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert sorted(shades(datasets.load("shards", DatasetRequest("train", SIDE, 0, root)).pixels)) == [
        0,
        3,
        6,
        9,
        12,
        15,
    ]


def test_held_images_of_one_class_and_of_none(tmp_path):
    for classes, wanted in ((1, [0] * 4), (0, None)):
        found = datasets.load(
            "shards", DatasetRequest("test", SIDE, 0, write(tmp_path / str(classes), classes=classes))
        )
        assert (found.labels.tolist() if classes else found.labels) == wanted
        assert shades(found.pixels) == [1000, 1001, 1002, 1003]


def test_without_test_shards_some_are_held_out_and_do_not_move(tmp_path):
    root = write(tmp_path / "data", sizes=(2,) * 20)
    (root / "test-000.tar").unlink()
    train, test = every(opened(root)), every(opened(root, "test"))
    assert sorted(train + test) == list(range(40))
    assert 2 <= len(test) <= 12
    for number in range(1, 20):
        (root / f"train-{number:03}.tar").unlink()
    with pytest.raises(UsageError, match="none to test on"):
        opened(root)


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax"])
def test_long_and_hostile_names_are_only_names(tmp_path, form):
    names = [f"{'deep/' * 20}{'x' * 90}", "../../etc/passwd", "/abs/olute", "a\nb/c\nd", "ü/ß", "a.dir/b", "-rf"]
    if form == "ustar":
        names = names[1:4]
    formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    members = [
        (f"{name}.{end}", body) for i, name in enumerate(names) for end, body in (("png", png(i)), ("cls", b"1"))
    ]
    root = write(tmp_path / "data")
    (root / "train-000.tar").write_bytes(tar(members, format=formats[form]))
    before = sorted(tmp_path.rglob("*"))
    found = opened(root)
    assert every(found)[: len(names)] == list(range(len(names)))
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and "cache" not in p.parts] == []


def test_records_are_files_that_share_the_path_to_the_first_dot(tmp_path):
    root = write(tmp_path / "data")
    members = [
        ("__key__", b"none"),
        (".hidden.png", png(99)),
        ("a/1.json", b"{}"),
        ("a/1.seg.png", png(98)),  # another file of the record, as webdataset has it
        ("a/1.PNG", png(1)),
        ("a/1.jpg", png(97)),  # the second image of a record is not read
        ("b/1.png", png(2)),
        ("b/1.pyd", b"cos\nsystem\n(S'touch pickled'\ntR."),
        ("2.webp", png(3)),
    ]
    (root / "train-000.tar").write_bytes(tar(members))
    found = opened(root)
    assert found.suffixes == {".png", ".webp"}
    assert every(found)[:3] == [1, 2, 3]
    assert len(found) == 3 + 13


@pytest.mark.parametrize("label", [b"x", b"-1", b"", b"1.5", b"9" * 60, b"3\n"])
def test_a_class_that_is_no_number_leaves_all_without(tmp_path, label):
    root = write(tmp_path / "data", classes=3)
    (root / "train-000.tar").write_bytes(tar([("a.png", png(0)), ("a.cls", label)]))
    found = opened(root)
    assert found.class_count == (4 if label == b"3\n" else 0)
    if not found.has_labels:
        with pytest.raises(ValueError, match="no labels"):
            found.labels_of(torch.tensor([0]))
    assert every(found) == [0, *range(5, 18)]


BROKEN = {
    "no image": b"not a picture",
    "empty": b"",
    "a bomb": BOMB,
    "cut": png(3, 64)[:60],
    "without an image": None,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_next_sound_record_stands_in_for_a_broken_one(tmp_path, kind):
    root = write(tmp_path / "data", classes=2)
    members = shard(0, 5, 2)
    for broken in (2, 3, 4):  # the last ones: the first of the shard come in their place
        members[2 * broken] = (f"{broken:06}.{'png' if BROKEN[kind] is not None else 'txt'}", BROKEN[kind] or b"")
    (root / "train-000.tar").write_bytes(tar(members))
    found = opened(root)
    assert found.labels_of(torch.tensor([3, 1])).tolist() == [0, 1]
    assert every(found) == [0, 1, 0, 0, 0, *range(5, 18)]
    assert found.labels_of(torch.arange(6)).tolist() == [0, 1, 0, 0, 0, 1]
    assert found.skipped == 3
    every(found)
    assert found.skipped == 3
    other = opened(root)  # another process, which reads in another order
    assert shades(other.rows(torch.tensor([4, 3, 2]))) == [0, 0, 0]
    held = datasets.load("shards", DatasetRequest("train", SIDE, 0, root))
    assert (len(held), held.skipped) == (15, 3)
    assert held.labels.tolist() == [n % 2 for n in shades(held.pixels)]


def test_a_member_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    root = write(tmp_path / "data")
    monkeypatch.setattr(records, "LARGEST_MEMBER", 1000)
    (root / "train-000.tar").write_bytes(tar([("a.png", png(1).ljust(2000)), ("b.png", png(2))]))
    found = opened(root)
    assert every(found)[:2] == [2, 2]
    assert found.skipped == 1


def test_the_next_shard_stands_in_for_one_without_a_sound_record(tmp_path):
    root = write(tmp_path / "data")
    (root / "train-001.tar").write_bytes(tar([(f"{i}.png", b"?") for i in range(7)]))
    found = opened(root)
    assert every(found) == [*range(5), 12, 13, 14, 15, 16, 17, 12, *range(12, 18)]
    assert found.skipped == 7
    for number in range(3):
        (root / f"train-{number:03}.tar").write_bytes(tar([(f"{i}.png", b"?") for i in range(3)]))
    with pytest.raises(UsageError, match="None of the 9 records can be read"):
        opened(root).rows(torch.tensor([4]))
    with pytest.raises(UsageError, match="None of 9 images"):
        datasets.load("shards", DatasetRequest("train", SIDE, 0, root))


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_shard_cut_short_gives_the_records_that_are_whole(tmp_path, labeled, packed):
    whole = tar(shard(0, 5, 5 if labeled else 0))
    for cut in (512 * 3, 512 * 4, 512 * 5, 512 * 6 + 10, 512 * 8 + 600):
        root = write(tmp_path / str(cut), classes=5 if labeled else 0)
        content = gzip.compress(whole, 0)[:cut] if packed else whole[:cut]
        (root / "train-000.tar").write_bytes(content)
        found = opened(root)
        left = len(found) - 13
        assert left == pytest.approx(cut / (2048 if labeled else 1024), abs=1.6)
        assert every(found) == [*range(left), *range(5, 18)]
        assert found.has_labels == labeled


@pytest.mark.parametrize("content", [b"", bytes(10240), b"garbage" * 1000, b"\x1f\x8bgarbage", png(3)])
def test_an_empty_shard_and_one_that_is_none_have_no_records(tmp_path, content):
    root = write(tmp_path / "data")
    (root / "train-000.tar").write_bytes(content)
    with pytest.warns(ColddiffWarning, match="1 of 3 shards in .* without records, such as 'train-000.tar'"):
        found = opened(root)
    assert every(found) == list(range(5, 18))
    assert sorted(torch.cat([found.order(0, step, 1) for step in range(13)]).tolist()) == list(range(13))
    for path in root.glob("train-*"):
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"hold no records \(train-000.tar"):
        opened(root)


@pytest.mark.parametrize("size", [b"77777777777", b"-0000000001", b"\x80" + b"\xff" * 10, b"\xff" * 11])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_sizes_that_lie_cost_no_memory(tmp_path, size, kind):
    root = write(tmp_path / "data")
    content = bytearray(tar(shard(0, 4)))
    content[2048 + 124 : 2048 + 135] = size  # of the third member
    content[2048 + 156 : 2048 + 157] = kind
    content[2048 + 148 : 2048 + 156] = b" " * 8
    content[2048 + 148 : 2048 + 155] = b"%06o\0" % sum(content[2048 : 2048 + 512])
    (root / "train-000.tar").write_bytes(bytes(content))
    tracemalloc.start()
    assert every(opened(root))[:2] == [0, 1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_parsed_as_the_standard_library_has_them(form):
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
        found = []
        for kind in (tarfile.TarInfo, records._Member):
            try:
                made = kind.frombuf(header, "utf-8", "surrogateescape")
                found.append((made.name, made.size, made.type))
            except tarfile.HeaderError as error:
                found.append(type(error))
        assert found[0] == found[1]


def test_links_and_devices_in_a_shard_are_nothing(tmp_path):
    root = write(tmp_path / "data")
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
    assert every(opened(root))[:2] == [9, 5]


@pytest.mark.parametrize("kind", ["gnu", "pax", "folder"])
def test_a_sparse_file_and_a_folder_of_a_size_do_not_end_a_shard(tmp_path, kind):
    root = write(tmp_path / "data")
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
    assert every(opened(root))[-15:] == [1, 2, *range(5, 18)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_of_a_hundred_megabytes_is_not_read(tmp_path, form):
    root = write(tmp_path / "data")
    stream = io.BytesIO(tar([*shard(1, 2), ("n" * (100 << 20), b"")], format=form))
    (root / "train-000.tar").write_bytes(stream.getbuffer())
    del stream
    tracemalloc.start()
    assert every(opened(root))[0] == 1
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
    root = write(tmp_path / "data", classes=4)
    members = [(name, str(n).encode() if name.endswith("cls") else png(n)) for n, name in enumerate(names)]
    (root / "train-000.tar").write_bytes(tar(members))
    found = opened(root)
    assert every(found) == [shade, *range(5, 18)]
    assert found.labels_of(torch.tensor([0])).tolist() == [label]


@pytest.mark.parametrize(("cut", "left"), [(512 * 3, 1), (512 * 5, 2), (512 * 10, 5), (512 * 11, 5)])
def test_what_stands_before_a_cut_is_whole(tmp_path, cut, left):
    root = write(tmp_path / "data")
    link = tarfile.TarInfo("link")
    link.type = tarfile.SYMTYPE
    content = tar(shard(0, 5))[: 512 * 10] + link.tobuf() + bytes(1024)
    (root / "train-000.tar").write_bytes(content[:cut])
    assert len(opened(root)) == left + 13
    (root / "train-000.tar").write_bytes(content)
    index = records.ShardOpener().open(listing.ShardLocation("", root, root / "train-000.tar")).index
    assert (len(index), index.is_cut) == (5, False)


def listed(root: Path, *lines: str, test: str = "test-000.tar") -> Path:
    (root / "train.urls").write_text("\n".join(lines) + "\n")
    (root / "test.urls").write_text(test + "\n")
    return root


def test_lists_name_files_commands_and_ranges(tmp_path):
    root = write(tmp_path / "data")
    (tmp_path / "elsewhere.tar").write_bytes(tar(shard(50, 2)))
    (root / "train-002.tar").write_bytes(gzip.compress((root / "train-002.tar").read_bytes()))
    listed(root, "# ours", "", "train-{000..001}.tar", f"{tmp_path}/elsewhere.tar", "pipe:cat train-002.tar")
    found = opened(root)
    assert every(found) == [*range(12), 50, 51, *range(12, 18)]
    assert every(found) == [*range(12), 50, 51, *range(12, 18)]
    assert not list((tmp_path / "cache" / "colddiff" / "spool").iterdir())
    listed(root, "pipe: gzip -dc < train-002.tar")
    assert every(opened(root)) == list(range(12, 18))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{2..1}/{0..1}", ["2/0", "2/1", "1/0", "1/1"]),
        ("pipe:echo ${x} {a..c}", ["pipe:echo ${x} {a..c}"]),
    ],
)
def test_ranges_are_every_number(line, wanted):
    assert list(listing.expanded(line)) == wanted


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
def test_what_is_wrong_with_a_list_is_told(tmp_path, lines, words):
    root = listed(write(tmp_path / "data"), *lines)
    with pytest.raises(UsageError, match=words):
        opened(root)


def test_a_list_that_is_no_text_and_a_pipe_in_place_of_a_file_are_told(tmp_path):
    root = write(tmp_path / "data")
    os.mkfifo(root / "fifo.tar")
    with pytest.raises(UsageError, match="ordinary"):
        opened(listed(root, "fifo.tar"))
    (root / "train.urls").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        opened(root)


def test_commands_are_not_run_unasked(tmp_path):
    root = listed(write(tmp_path / "data"), "train-000.tar", "pipe:touch ../ran; cat train-001.tar")
    with pytest.raises(UsageError, match="--data-dir"):
        opened(root, download=False)
    assert len(opened(root, "test", download=False)) == 4
    assert not (tmp_path / "ran").exists()


def test_pipes_are_counted_once(tmp_path):
    root = listed(write(tmp_path / "data"), "pipe:echo x >> ../ran; cat train-001.tar")
    for _ in range(3):
        assert len(opened(root)) == 7
    assert (tmp_path / "ran").read_text() == "x\n"


def test_of_processes_that_begin_together_one_counts(tmp_path):
    root = listed(write(tmp_path / "data"), "pipe:echo x >> ../ran; sleep .3; cat train-001.tar")
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(opened(root)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 4
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_counts_cannot_be_kept_they_are_made_each_time(tmp_path):
    root = write(tmp_path / "data")
    (tmp_path / "cache").mkdir(mode=0o500)
    assert [len(opened(root)) for _ in range(2)] == [18, 18]


def test_a_changed_shard_is_counted_again(tmp_path):
    root = write(tmp_path / "data")
    assert len(opened(root)) == 18
    (root / "train-001.tar").write_bytes(tar(shard(0, 2)))
    assert len(opened(root)) == 13


def told(root: Path, **changes) -> dict:
    found = {}
    for path in sorted(root.glob("*.tar")):
        index = records.ShardOpener().open(listing.ShardLocation(path.name, root, path)).index
        found[path.name] = (path.stat().st_size, counts.ShardCount.of(index))
    text = json.loads(counts.listing(found, ["a", "b", "c"]))
    for entry in text["shards"]:
        entry.update(changes)
    (root / counts.LIST).write_text(json.dumps(text))
    return text


def test_counts_are_told_by_a_list_beside_the_shards(tmp_path, monkeypatch):
    root = write(tmp_path / "data", classes=3)
    told(root)
    monkeypatch.setattr(counts, "ShardOpener", None)
    found = opened(root)
    assert (len(found), found.class_count, found.classes, found.suffixes) == (18, 3, ("a", "b", "c"), {".png"})
    assert every(found) == list(range(18))
    listed(root, "pipe:cat train-{000..002}.tar")
    assert every(opened(root)) == list(range(18))


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
def test_a_list_that_is_wrong_is_passed_over(tmp_path, damage):
    root = write(tmp_path / "data", classes=3)
    told(root)
    damage(root / counts.LIST)
    assert every(opened(root)) == list(range(18))


def test_an_entry_that_is_wrong_is_counted_and_no_other(tmp_path, monkeypatch):
    root = write(tmp_path / "data", classes=3)
    text = told(root)
    text["shards"][2]["records"] = None
    (root / counts.LIST).write_text(json.dumps(text))
    scanned, names = counts._scanned, []
    monkeypatch.setattr(counts, "_scanned", lambda places: names.extend(p.name for p in places) or scanned(places))
    assert every(opened(root)) == list(range(18))
    assert names == ["train-001.tar"]


def test_a_shard_of_another_count_than_was_told_is_skipped(tmp_path):
    root = write(tmp_path / "data", classes=3)
    text = told(root)
    text["shards"][2]["records"] = 9
    (root / counts.LIST).write_text(json.dumps(text))
    found = opened(root)
    assert len(found) == 20
    with pytest.warns(ColddiffWarning, match="train-001.tar holds 7 records of 3 classes, where 9 of 3"):
        rows = found.rows(torch.tensor([0, 5, 6, 13]))
    assert shades(rows) == [0, 12, 13, 14]
    assert found.skipped == 9


def test_a_shard_of_classes_that_were_not_told_is_skipped(tmp_path):
    root = write(tmp_path / "data", classes=3)
    text = told(root, classes=2)
    (root / counts.LIST).write_text(json.dumps(text | {"classes": ["a", "b"]}))
    with pytest.raises(UsageError, match="of 3 classes, where 5 of 2"):
        opened(root).rows(torch.tensor([0]))


@pytest.mark.parametrize("is_told", [False, True])
def test_a_shard_that_holds_something_else_by_now_is_counted_anew_as_the_warning_says(tmp_path, is_told):
    root = listed(write(tmp_path / "data"), "train-000.tar", "pipe:cat ../train-001.tar")
    (tmp_path / "train-001.tar").write_bytes((root / "train-001.tar").read_bytes())
    if is_told:
        told(root)
    assert len(opened(root)) == 12
    (tmp_path / "train-001.tar").write_bytes(tar(shard(20, 3)))
    wanted = rf"where 7 of 0 were counted: {f'remove {root}/shards.json and ' if is_told else ''}start again; other"
    for _ in range(2 if is_told else 1):
        with pytest.warns(ColddiffWarning, match=wanted):
            assert len(every(opened(root))) == 12
    (root / counts.LIST).unlink(missing_ok=True)
    assert every(opened(root)) == [*range(5), 20, 21, 22]


def test_two_commands_of_one_archive_name_are_counted(tmp_path):
    root = write(tmp_path / "data")
    told(root)
    (tmp_path / "train-001.tar").write_bytes(tar(shard(20, 3)))
    listed(root, "train-000.tar", "pipe:cat train-001.tar", "pipe:cat ../train-001.tar")
    assert every(opened(root)) == [*range(12), 20, 21, 22]


def test_a_shard_that_takes_long_to_open_is_told(tmp_path, monkeypatch):
    root = listed(write(tmp_path / "data"), "pipe:test -e ../slow && sleep .3; cat train-001.tar")
    found = opened(root)
    (tmp_path / "slow").touch()
    monkeypatch.setattr(dataset, "PATIENCE", 0.02)
    with pytest.warns(ColddiffWarning, match=r"waiting for 'pipe:.* for 0 s") as warned:
        assert shades(found.rows(torch.tensor([0, 1]))) == [5, 6]
    assert len(warned) == 1


def test_of_what_processes_have_met_the_most_is_told():
    events: list[str] = []
    met = SimpleNamespace(skipped=300)
    ranks = SimpleNamespace(sum=lambda tensor: tensor * 2, all_max=lambda *values: values)
    trainer = SimpleNamespace(ranks=ranks, train_set=met, _left_out_before=0, _left_out=0, _note=events.append)
    Trainer._tell_left_out(trainer)
    assert events == ["300 training images could not be read so far; others stand in for them"]


def test_a_shard_that_goes_away_is_skipped_and_one_that_comes_back_is_not(tmp_path):
    root = write(tmp_path / "data")
    found = opened(root)
    content = (root / "train-001.tar").read_bytes()
    (root / "train-001.tar").unlink()
    with pytest.warns(ColddiffWarning, match="train-001.tar: No such file or directory; other images"):
        assert every(found) == [*range(5), 12, 13, 14, 15, 16, 17, 12, *range(12, 18)]
    assert found.skipped == 7
    assert found.rows(torch.tensor([5])) is not None
    (root / "train-001.tar").write_bytes(content)
    found._open.clear()  # when it is opened again
    assert every(found) == list(range(18))
    assert found.skipped == 0


def test_a_pipe_that_fails_later_is_skipped_and_told(tmp_path):
    root = listed(write(tmp_path / "data"), "train-000.tar", "pipe:test -e ../ok && cat train-001.tar")
    (tmp_path / "ok").touch()
    found = opened(root)
    (tmp_path / "ok").unlink()
    with pytest.warns(ColddiffWarning, match="failed: exit code 1"):
        assert every(found) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert found.skipped == 7
    listed(root, "pipe:test -e ../ok && cat train-001.tar")
    (tmp_path / "ok").touch()
    alone = opened(root)
    (tmp_path / "ok").unlink()
    with pytest.raises(UsageError, match="exit code 1"):
        alone.rows(torch.tensor([0]))


def test_a_held_set_that_a_shard_is_missing_from_is_told_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 2)
    root = listed(write(tmp_path / "data"), "train-000.tar", "pipe:test -e ../ok && cat train-001.tar")
    (tmp_path / "ok").touch()
    request = DatasetRequest("train", SIDE, 0, root)
    opened(root)
    (tmp_path / "ok").unlink()
    with pytest.warns(ColddiffWarning, match="failed: exit code 1; its images are left out"):
        assert sorted(shades(datasets.load("shards", request).pixels)) == list(range(5))
    (tmp_path / "ok").touch()
    assert sorted(shades(datasets.load("shards", request).pixels)) == list(range(12))
    listed(root, "pipe:test -e ../ok && cat train-002.tar")
    opened(root)
    (tmp_path / "ok").unlink()
    with pytest.raises(UsageError, match=r"None of the 6 records can be read.*exit code 1"):
        datasets.load("shards", request)


def test_a_full_disk_is_no_broken_shard(tmp_path, monkeypatch):
    root = listed(write(tmp_path / "data"), "pipe:cat train-001.tar")
    found = opened(root)
    monkeypatch.setattr(cache, "RESERVE_BYTES", 2**80)
    with pytest.raises(MachineError, match="Cannot write"):
        found.rows(torch.tensor([0]))
    monkeypatch.setattr(cache, "RESERVE_BYTES", 0)
    assert shades(found.rows(torch.tensor([0]))) == [5]


def test_too_many_open_files_are_no_broken_shard(tmp_path, monkeypatch):
    found = opened(write(tmp_path / "data"))

    def refuse(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "open", refuse)
        with pytest.raises(MachineError, match="Too many open files") as refusal:
            found.rows(torch.tensor([0]))
    assert "data.lanes" in str(refusal.value)
    assert every(found) == list(range(18))


@pytest.mark.parametrize("what", ["_spool", "Popen", "dup", "folder"])
def test_what_the_machine_refuses_a_command_is_told(tmp_path, monkeypatch, what):
    found = opened(listed(write(tmp_path / "data"), "pipe:cat train-001.tar"))

    def refuse(*arguments, **values):
        raise OSError(errno.EACCES if what == "folder" else errno.EMFILE, "Refused")

    with monkeypatch.context() as patch:
        if what in ("_spool", "folder"):
            patch.setattr(records.tempfile, "TemporaryFile", refuse)
        else:
            patch.setattr(records.os if what == "dup" else records.subprocess, what, refuse)
        wanted = f"Cannot write {tmp_path}.*spool: Refused" if what == "folder" else "Cannot read pipe:.*: Refused"
        with pytest.raises(MachineError, match=wanted) as refusal:
            found.rows(torch.tensor([0]))
    assert ("permissions" if what == "folder" else "data.lanes") in refusal.value.remedy
    assert shades(found.rows(torch.tensor([0]))) == [5]


@pytest.mark.parametrize("parts", [[1 << 20] * 130, [1 << 20] * 63 + [2 << 20] + [1 << 19] * 130])
def test_room_is_looked_at_every_so_often_whatever_the_parts(tmp_path, monkeypatch, parts):
    written, asked = 0, []
    monkeypatch.setattr(cache, "check_room", lambda *_: asked.append(written))
    with records._spool(listing.ShardLocation("pipe:", tmp_path)) as (_, keep):
        for part in parts:
            keep(bytes(part))
            written += part
    assert asked[0] == 0
    gaps = [after - before for before, after in zip(asked, [*asked[1:], written], strict=True)]
    assert max(gaps) < (64 << 20) + max(parts)
    assert min(gaps[:-1], default=64 << 20) >= 64 << 20


def test_two_threads_and_few_open_shards_give_what_one_gives(tmp_path, monkeypatch):
    root = write(tmp_path / "data", sizes=(3,) * 60, classes=5)
    monkeypatch.setattr(dataset, "SMALL_FILE", 0)  # as with large ones
    found = opened(root, lanes=2)
    wrong: list[object] = []

    def read(seed: int) -> None:
        for step in range(12):
            numbers = found.order(seed, step, 16)
            if shades(found.rows(numbers)) != numbers.tolist():
                wrong.append(step)
            if found.labels_of(numbers).tolist() != (numbers % 5).tolist():
                wrong.append(step)
            with found._lock:
                if len(found._open) > 2 + dataset.SPARE:
                    wrong.append(step)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    before = len(os.listdir("/dev/fd"))
    found.close()
    assert len(os.listdir("/dev/fd")) < before


def test_memory_does_not_grow_with_the_number_of_shards(tmp_path):
    peaks = []
    for number, count in enumerate((15, 90)):
        root = write(tmp_path / str(number), sizes=(24,) * count)
        found = opened(root, lanes=4)
        tracemalloc.start()
        for step in range(count * 3):
            found.rows(found.order(0, step, 8))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found.close()
        peaks.append(peak)
    assert peaks[1] < 1.5 * peaks[0] + 100_000


def test_closing_ends_what_runs(tmp_path):
    root = listed(write(tmp_path / "data"), "pipe:test -e ../slow && sleep 60; cat train-001.tar")
    found = opened(root)
    (tmp_path / "slow").touch()
    threading.Timer(0.3, found.close).start()
    begun = time.monotonic()
    with pytest.raises(UsageError, match="closed while"):
        found.rows(torch.tensor([0]))
    assert time.monotonic() - begun < 10


def test_a_digest_tells_other_shards_and_not_copies(tmp_path):
    one, other = (opened(write(tmp_path / name)) for name in "ab")
    assert one.digest() == other.digest()
    (tmp_path / "b" / "train-001.tar").write_bytes(tar(shard(0, 3)))
    assert opened(tmp_path / "b").digest() != one.digest()
    assert provenance._metadata(one) == {"count": 18, "digest": one.digest()}


def test_training_images_are_shards_or_a_tensor(tmp_path):
    root = write(tmp_path / "data", classes=3)
    asked = ["data.dataset=shards", f"data.directory={root}", "data.size=8", "data.channels=1", "data.margin=2"]
    config = presets.load("digits-blur", [*asked, "data.lanes=2"])
    found = from_config.load_training(config)
    assert isinstance(found, Shards)
    assert found.shape == (1, 10, 10)
    assert from_config.load_images(config, "test").pixels.shape == (4, 1, 8, 8)
    with pytest.raises(UsageError, match=r"data\.crop"):
        from_config.load_training(presets.load("digits-blur", [*asked, "data.crop=3"]))
    held = from_config.load_training(presets.load("digits-blur", ["data.size=8", "data.margin=2"]))
    assert isinstance(held, datasets.ImageSet)
    assert held.shape == (1, 10, 10)
    for images in (found, held):
        tried = presets.load("digits-blur", ["data.size=8", "model.classes=2", "model.width=8"])
        with pytest.raises(UsageError, match=r"Use model\.classes="):
            experiment.build(tried, 1, torch.device("cpu")).try_out(images)
    experiment.build(config, 1, torch.device("cpu")).try_out(found)


def test_no_folder_is_told(tmp_path):
    for place, words in ((None, "needs a folder"), (tmp_path / "absent", "No such folder"), (tmp_path, "No shards")):
        with pytest.raises(UsageError, match=words):
            open_shards(DatasetRequest("train", SIDE, 0, place), 4)


def test_shards_of_webdatasets_own_writer_are_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pixels = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)
    for split, chosen in (("train", range(15)), ("test", range(15, 20))):
        with webdataset.ShardWriter(f"{tmp_path}/{split}-%03d.tar", maxcount=6, verbose=0) as writer:
            for number in chosen:
                writer.write({"__key__": f"{number:04}", "png": pixels[number], "cls": number % 4, "json": {"n": 1}})
    found = opened(tmp_path)
    assert (len(found), found.class_count) == (15, 4)
    assert torch.equal(found.rows(torch.arange(15)), torch.from_numpy(pixels[:15]).permute(0, 3, 1, 2))
    assert found.labels_of(torch.arange(15)).tolist() == [n % 4 for n in range(15)]
