"""Whatever is named as a picture, in any option: no program is started, nothing blocks, two lines say what is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import left_behind
from PIL import Image

from colddiff_cli.__main__ import run

PROGRAMS = {
    "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touched) (w) file closefile\nshowpage\n",
    "wmf.png": b"\xd7\xcd\xc6\x9a" + bytes(6) + b"\x09\0\x09\0" + b"\xa0\x05" + bytes(200),
    "fits.png": b"SIMPLE  =                    T".ljust(80)
    + b"BITPIX  =                    8".ljust(80)
    + b"END".ljust(2720),
    "psd.png": b"8BPS\0\1" + bytes(500),
    "pdf.png": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer<<>>\n%%EOF\n",
    "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
}
NO_FILES = ["/dev/null", "pipe.png", "socket.png"]
BLUR = ["--op", "blur", "--t", "2"]
CALLS = {
    "degrade": ["degrade", "X", *BLUR],
    "degrade --describe": ["degrade", "X", "--op", "blur", "--describe"],
    "degrade --second": ["degrade", "photo.png", "--op", "animorph", "--second", "X"],
    "restore": ["restore", "X", "--run", "RUN", "--t", "1"],
    "restore --sweep": ["restore", "X", "--run", "RUN", "--sweep"],
    "restore --mask": ["restore", "photo.png", "--run", "RUN", "--mask", "X"],
    "sample": ["sample", "RUN", "X"],
    "sample --degraded": ["sample", "RUN", "X", "--degraded", "--t", "1"],
    "sample --mask": ["sample", "RUN", "photo.png", "--degraded", "--mask", "X"],
}


@pytest.fixture
def folder(in_folder, monkeypatch):
    Image.new("RGB", (16, 16), "teal").save("photo.png")
    for name, content in PROGRAMS.items():
        Path(name).write_bytes(content)
    os.mkfifo("pipe.png")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket.png")

    def start(*arguments: object, **options: object) -> None:
        pytest.fail(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(os, "system", start)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it blocks"))
    signal.alarm(60)
    yield in_folder
    signal.alarm(0)
    listener.close()


@pytest.mark.parametrize("name", [*PROGRAMS, *NO_FILES])
@pytest.mark.parametrize("call", CALLS)
def test_it_is_refused_in_two_lines(folder, tiny_run, call, name, capsys):
    before = left_behind(Path())
    assert run([{"X": name, "RUN": str(tiny_run)}.get(word, word) for word in CALLS[call]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert name in lines[0]
    assert ("not an image that can be read" if name in PROGRAMS else "not an ordinary file") in lines[0]
    assert left_behind(Path()) == before
