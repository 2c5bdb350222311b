"""Which files of a folder are taken for pictures, and what is said about the others."""

from __future__ import annotations

import io
import os
import shutil
import socket
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from shard_files import tar, use_temporary_cache

from colddiff_cli.__main__ import run
from colddiff_core import datasets
from colddiff_core.datasets import DatasetRequest, ImageSet, open_shards
from colddiff_core.datasets.picture_files import find_pictures
from colddiff_core.errors import ColddiffWarning
from colddiff_core.images import READABLE, suffix_of

FORMATS = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jfif": "JPEG",
    ".JPE": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".TIFF": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".avif": "AVIF",
}
FORMATS = {suffix: name for suffix, name in FORMATS.items() if suffix.lower() in READABLE}


def encoded(form: str, shade: int = 9) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(stream, form)
    return stream.getvalue()


def pictures() -> dict[str, bytes]:
    """Return a picture of each format under its suffixes, under none, and under one that says nothing."""
    named = {f"{number:02}{suffix}": encoded(form) for number, (suffix, form) in enumerate(FORMATS.items())}
    forms = list(dict.fromkeys(FORMATS.values()))
    return (
        named | {f"bare{form}": encoded(form) for form in forms} | {f"odd{form}.img": encoded(form) for form in forms}
    )


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def ask(root: Path, split: str = "train") -> ImageSet:
    return datasets.load("folder", DatasetRequest(split, 8, 1, root))


OTHERS = {"sky.tga": encoded("TGA"), "icon.ico": b"\0\0\1\0", "raw.cr2": b"x" * 99, "BM is how it begins": b"BM " * 30}
QUIET = {".DS_Store": b"x", "Thumbs.db": b"x", ".hidden.png": b"x", "a.txt": b"a cat", "a.json": b"{}", "a.cls": b"1"}


def test_every_format_that_can_be_read_is_taken(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split, pictures() | QUIET)
    images = ask(tmp_path)
    assert (len(images), images.skipped, images.remarks) == (len(pictures()), 0, ())
    packed = tmp_path / "packed"
    assert run(["data", "pack", str(tmp_path), "--out-dir", str(packed)]) == 0
    assert len(open_shards(DatasetRequest("train", 8, 0, packed), 1)) == len(pictures())


def test_archives_and_shards_take_the_same_files(tmp_path, monkeypatch):
    use_temporary_cache(tmp_path, monkeypatch)
    files = pictures()
    members = list((files | QUIET | OTHERS).items())
    for split in ("train", "test"):
        write(tmp_path / "archives", {f"{split}.tar": tar(members)})
        write(tmp_path / "shards", {f"{split}-0.tar": tar(list(files.items()))})
    with pytest.warns(ColddiffWarning, match=r"left out 4 files in no known picture format \(sky\.tga, icon\.ico"):
        assert len(ask(tmp_path / "archives")) == len(files)
    shards = open_shards(DatasetRequest("train", 8, 1, tmp_path / "shards"), 1)
    assert len(shards.load_images(1000)) == len(shards) == len(files)
    assert shards.skipped == 0


def test_what_is_no_picture_is_counted_and_named(tmp_path):
    found = find_pictures(write(tmp_path / "mixed", {"1.png": encoded("PNG")} | OTHERS | QUIET))
    assert [path.name for path in found.paths] == ["1.png"]
    assert found.left_out == (
        "left out 4 files in no known picture format (BM is how it begins, icon.ico, raw.cr2 and 1 more)"
    )


def test_companions_are_never_opened(tmp_path, monkeypatch):
    write(tmp_path / "captioned", {f"{number}.txt": b"a cat" for number in range(50)} | {"1.png": encoded("PNG")})
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("a caption was opened"))
    assert len(find_pictures(tmp_path / "captioned").paths) == 1


@pytest.mark.parametrize("form", dict.fromkeys(FORMATS.values()))
def test_a_format_is_known_by_its_first_bytes(form):
    assert suffix_of(encoded(form)[:64]) in READABLE


@pytest.mark.parametrize(
    "text", [b"", b"BM", b"P6 is a car", b"BMW and others, a list of cars\n", b"II", b"RIFF", b"GIF"]
)
def test_a_text_is_no_picture(text):
    assert suffix_of(text) == ""


def tree(root: Path) -> Path:
    """Write two classes, one of them elsewhere with a link to it."""
    write(root / "all" / "dogs", {f"{number}.png": encoded("PNG", number) for number in range(20)})
    write(root / "cats", {f"{number}.png": encoded("PNG", number) for number in range(20)})
    (root / "all" / "cats").symlink_to(root / "cats")
    return root / "all"


def test_a_linked_class_is_a_class(tmp_path, in_folder):
    root = tree(tmp_path)
    train, test = ask(root), ask(root, "test")
    assert train.classes == test.classes == ("cats", "dogs")
    assert len(train) + len(test) == 40
    assert train.remarks == ()
    assert run(["data", "pack", str(root), "--out-dir", "out"]) == 0
    assert len(open_shards(DatasetRequest("train", 8, 1, in_folder / "out"), 1)) == len(train)
    assert run(["degrade", str(root), "--op", "blur", "--out-dir", "blurred"]) == 0
    assert len(list((in_folder / "blurred").rglob("*.png"))) == 40


def test_a_link_gives_the_same_set_as_the_folder(tmp_path):
    linked = ask(tree(tmp_path))
    (tmp_path / "all" / "cats").unlink()
    shutil.move(tmp_path / "cats", tmp_path / "all" / "cats")
    assert linked.digest() == ask(tmp_path / "all").digest()


def test_loops_are_broken_and_every_folder_is_visited_once(tmp_path):
    root = tree(tmp_path)
    (root / "dogs" / "up").symlink_to(root)
    (root / "further_up").symlink_to(tmp_path)
    (root / "itself").symlink_to("itself")
    (root / "again").symlink_to("dogs")
    (tmp_path / "cats" / "to_dogs").symlink_to(root / "dogs")
    (tmp_path / "cats" / "here").symlink_to(".")
    found = find_pictures(root)
    assert len(found.paths) == 40
    assert found.repeated.count == 5
    assert found.dangling.names == ["itself"]
    assert found.paths == sorted(found.paths)


def test_links_that_lead_nowhere_and_closed_folders_are_named(tmp_path, monkeypatch, capsys):
    root = tree(tmp_path)
    (root / "gone.png").symlink_to("absent.png")
    (root / "horses").symlink_to("/absent/horses")
    (root / "secret").mkdir()
    scandir = os.scandir

    def closed(folder):
        if Path(folder).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    words = (
        "left out 1 folder that cannot be read (secret: Permission denied), "
        "2 links that lead nowhere (gone.png, horses)"
    )
    with pytest.warns(ColddiffWarning) as said:
        assert ask(root).remarks == (f"{root}: {words}",)
    assert words in str(said[0].message)
    for command in (["data", "pack"], ["degrade", "--op", "blur"]):
        assert run([*command, str(root), "--out-dir", str(tmp_path / command[0])]) == 0
        printed = capsys.readouterr()
        assert words in printed.out + printed.err


def test_special_files_are_passed_over(tmp_path):
    root = write(tmp_path / "special", {f"{number}.png": encoded("PNG") for number in range(9)})
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe")
    (root / "null.png").symlink_to("/dev/null")
    (root / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket.png"))
        found = find_pictures(root)
    assert len(found.paths) == 9
    assert found.others.count == 5


def test_special_members_are_passed_over(tmp_path):
    """Links out of the archive, devices, pipes, sparse files and long names; none is read, none blocks."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE)
        ):
            member = tarfile.TarInfo(f"{number}.png")
            member.type, member.linkname, member.devmajor, member.devminor = kind, "/etc/passwd", 1, 5
            archive.addfile(member)
        for name in ("x" * 300 + ".png", "good.png", "../../out.png", "/absolute.png"):
            member = tarfile.TarInfo(name)
            content = encoded("PNG")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for split in ("train", "test"):
        write(tmp_path / "data", {f"{split}.tar": stream.getvalue()})
    images = ask(tmp_path / "data")
    assert (len(images), images.skipped) == (4, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_of_gigabytes_is_refused(tmp_path, packed):
    import gzip
    import tracemalloc

    header = bytearray(tar([("a.png", b"")])[:512])
    header[124:136] = b"%011o\0" % (1 << 30)
    header[156:157] = b"x"
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    content = bytes(header) + bytes(1 << 26)
    write(tmp_path / "data", {f"{s}.tar": gzip.compress(content, 1) if packed else content for s in ("train", "test")})
    tracemalloc.start()
    with pytest.raises(datasets.base.UsageError, match=r"train\.tar"):
        ask(tmp_path / "data")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24
