"""Large photographs are read, bombs are not; other images in a file are named; no format is a program."""

from __future__ import annotations

import ast
import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from bombs import png_header
from PIL import Image

from colddiff_core import files, images
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.images import opening, photograph

HOME = Path(__file__).parents[2]
READERS = [images.read, photograph.read]


def large(path: Path, side: int = 12_000) -> Path:
    """Write a picture of side x 9,000 pixels whose file is as large as a plain one's: bits that repeat."""
    Image.new("1", (side, 9000), 1).save(path)
    return path


def test_a_picture_of_108_megapixels_is_opened_and_one_of_a_data_set_is_not(tmp_path):
    path = large(tmp_path / "a.png")
    with opening.open_image(path, most_pixels=opening.MOST_PIXELS) as found:
        assert found.size == (12_000, 9000)
        found.load()
        assert Image.MAX_IMAGE_PIXELS == opening.MOST_PIXELS
    assert Image.MAX_IMAGE_PIXELS < 10**8  # others keep their limit
    assert images.count_channels(path) == 1
    with pytest.raises(UsageError, match="too many pixels: 108 megapixels"):
        images.read_bytes(path)


def test_pillows_limit_is_restored_when_the_last_of_several_threads_is_done(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    usual, first, second = Image.MAX_IMAGE_PIXELS, threading.Event(), threading.Event()

    def hold() -> None:
        with opening.open_image(tmp_path / "a.png"):
            first.set()
            second.wait(9)

    thread = threading.Thread(target=hold)
    thread.start()
    first.wait(9)
    with opening.open_image(tmp_path / "a.png"):
        pass
    assert Image.MAX_IMAGE_PIXELS == opening.MOST_PIXELS
    second.set()
    thread.join()
    assert usual == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("read", READERS)
def test_a_picture_that_memory_has_no_room_for_is_refused_with_the_figures(tmp_path, monkeypatch, read):
    path = large(tmp_path / "a.png")
    monkeypatch.setattr(files, "free_bytes", lambda: 2 * 10**9)
    with pytest.raises(
        UsageError, match=r"108 megapixels take about \d\.\d GB of memory, and 2\.0 GB are free"
    ) as refused:
        read(path)
    assert "Scale it down to" in refused.value.remedy


def tiff(width: int, height: int, *more: tuple[int, int, int, int]) -> bytes:
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    tags |= {273: (4, 1, 8), 278: (4, 1, height), 279: (4, 1, 2**32 - 1)} | {tag: rest for tag, *rest in more}
    entries = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(40)


def jpeg_2000(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (64, 64)).save(stream, "JPEG2000", no_jp2=True)
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\x51") + 6  # SIZ: width and height
    content[place : place + 8] = struct.pack(">II", width, height)
    return bytes(content)


def gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + bytes(6)
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\x08\x01\x01;"
    )


BOMBS = {
    "png": png_header(31_623, 31_623),  # 10^9 in 80 bytes
    "png of 400 megapixels": png_header(20_000, 20_000),
    "long png": png_header(2**31 - 1, 2**31 - 1),
    "tiff": tiff(2**31 - 1, 2**31 - 1),
    "tiff of a gigapixel": tiff(31_623, 31_623),
    "tiff with large tiles": tiff(64, 64, (322, 4, 1, 2**20), (323, 4, 1, 2**20), (324, 4, 1, 8), (325, 4, 1, 9)),
    "jpeg 2000": jpeg_2000(2**31 - 1, 2**31 - 1),
    "jpeg 2000 of 400 megapixels": jpeg_2000(20_000, 20_000),
    "gif": gif(65_535, 65_535),
    "gif of 400 megapixels": gif(20_000, 20_000),
    "ppm": b"P6 999999 999999 255\n" + bytes(99),
    "ppm of 400 megapixels": b"P6 20000 20000 255\n" + bytes(99),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 10**6, 10**6, 1, 24, 0, 0, 0, 0, 0, 0),
}


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's memory counters")
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("read", [*READERS, images.read_bytes])
def test_bombs_are_refused_before_memory_is_taken(tmp_path, name, read):
    path = tmp_path / "bomb.png"
    path.write_bytes(BOMBS[name])
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    with pytest.raises(UsageError) as refused:
        read(path)
    assert len(str(refused.value).splitlines()) == 2
    assert peak_bytes() - before < 64 * 2**20


def animated(path: Path, **options: object) -> Path:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("a.gif", "animation: first frame only"),
        ("a.png", "animation: first frame only"),
        ("a.webp", "animation: first frame only"),
        ("a.tif", "several images in the file: first one only"),
    ],
)
def test_further_images_in_a_file_are_named_however_it_is_read(tmp_path, name, note):
    path = animated(tmp_path / name)
    with pytest.warns(ColddiffWarning, match=f"{name}: {note}"):
        images.read(path)
    heard: list[str] = []
    images.read(path, note=heard.append)
    assert heard == [note]
    assert note in photograph.read(path).notes


def test_smaller_copies_in_a_tiff_and_previews_in_a_phones_jpeg_are_no_loss(tmp_path, recwarn):
    pages = [Image.new("L", (side, side)) for side in (16, 8, 4)]
    for page in pages[1:]:
        page.encoderinfo = {"tiffinfo": {opening.SUBFILE_TYPE: opening.REDUCED}}
    pages[0].save(tmp_path / "pyramid.tif", save_all=True, append_images=pages[1:])
    with Image.open(tmp_path / "pyramid.tif") as opened:
        assert opened.n_frames == 3
        opened.seek(1)
        assert opened.tag_v2[opening.SUBFILE_TYPE] == opening.REDUCED
    animated(tmp_path / "phone.jpg", format="MPO")
    for name, size in (("pyramid.tif", 16), ("phone.jpg", 8)):
        assert images.read(tmp_path / name).shape[-1] == size
        assert photograph.read(tmp_path / name).notes == ()
    assert not [warning for warning in recwarn if issubclass(warning.category, ColddiffWarning)]


def test_a_stereo_picture_is_named(tmp_path):
    path = animated(tmp_path / "a.jpg", format="MPO")
    with Image.open(path) as opened:
        second = opened.mpinfo[opening.MPF_ENTRIES][1]
    where, content = struct.pack("<II", second["Size"], second["DataOffset"]), path.read_bytes()
    assert content.count(bytes(4) + where) == 1
    path.write_bytes(content.replace(bytes(4) + where, struct.pack("<I", 0x020002) + where))  # a disparity view
    assert photograph.read(path).notes == ("several images in the file: first one only",)


def calls_to_open(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) in ("Image.open", "PIL.Image.open")]


def test_every_picture_is_opened_with_a_list_of_formats():
    found = [
        f"{path.relative_to(HOME)}:{call.lineno}"
        for folder in ("colddiff_core", "colddiff_cli", "tools", "benchmarks")
        for path in sorted((HOME / folder).rglob("*.py"))
        for call in calls_to_open(path)
        if "formats" not in {keyword.arg for keyword in call.keywords}
    ]
    assert found == []


def test_nothing_else_opens_pictures():
    """Not torchvision, and no image widget is given a path."""
    readers = (
        "torchvision.io",
        "decode_image",
        "read_image",
        "default_loader",
        "ImageFolder",
        "imageio",
        "cv2",
        "skimage",
    )
    found = [
        f"{path.relative_to(HOME)}: {name}"
        for folder in ("colddiff_core", "colddiff_cli")
        for path in sorted((HOME / folder).rglob("*.py"))
        for name in readers
        if name
        in {
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Name | ast.Attribute)
        }
    ]
    assert found == []


PROGRAMS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touched) (w) file closefile\nshowpage\n",
    "wmf": b"\xd7\xcd\xc6\x9a" + struct.pack("<HHHHHHI", 0, 0, 0, 9, 9, 1440, 0) + bytes(200),
    "emf": struct.pack("<IIiiiiiiii", 1, 88, 0, 0, 9, 9, 0, 0, 9, 9) + b" EMF" + bytes(100),
    "fits": b"SIMPLE  =                    T".ljust(80)
    + b"BITPIX  =                    8".ljust(80)
    + b"END".ljust(2720),
    "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(500),
    "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer<<>>\n%%EOF\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
    "ico": b"\0\0\1\0\1\0" + bytes(60),
    "zipped": zlib.compress(bytes(100)),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("read", [*READERS, images.read_bytes])
def test_formats_that_are_programs_or_rare_are_not_opened(tmp_path, name, read):
    path = tmp_path / "picture.png"
    path.write_bytes(PROGRAMS[name])
    with pytest.raises(UsageError, match="is not an image that can be read"):
        read(path)


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    free = files.free_bytes()
    assert 0 < free < 2**50
    monkeypatch.setattr(files, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 700000\n")
    assert files.free_bytes() == 1_200_000  # the cache of files can be dropped
    (tmp_path / "memory.max").write_text("max\n")
    assert files.free_bytes() > 1_200_000


PEAK = """
import resource, sys
from colddiff_cli.__main__ import run
code = run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""


@pytest.mark.slow
def test_a_photograph_of_108_megapixels_takes_no_more_memory_than_said(tmp_path):
    from colddiff_cli.commands import degrade

    path = tmp_path / "photo.jpg"
    Image.linear_gradient("L").resize((12_000, 9000)).convert("RGB").save(path)
    call = ["degrade", str(path), "--op", "noise", "--t", "5", "--out", str(tmp_path / "out.jpg")]
    ended = subprocess.run([sys.executable, "-c", PEAK, *call], capture_output=True, text=True, check=True)
    said = 108 * 10**6 * (degrade.PIXEL_BYTES + degrade.FRAME_BYTES)
    assert int(ended.stdout.splitlines()[-1]) < said
    with Image.open(tmp_path / "out.jpg") as made:
        assert made.size == (12_000, 9000)
