"""Folders and pictures with any name, UTF-8 or not, and special files: used, or refused in two lines."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import runs

NOT_UTF8 = os.fsdecode(b"\xff\xfe")


def write_pictures(root: Path, ending: str = "", each: int = 5) -> Path:
    numbers = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (root / f"{label}{ending}").mkdir(parents=True)
        for number in range(each):
            pixels = numbers.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"{label}{ending}" / f"{number}{ending}.png")
    (root / f"cats{ending}" / f"bad{ending}.png").write_bytes(b"no picture")
    return root


def train(folder: object, out: str = "run") -> int:
    settings = [word for setting in (*TINY, "data.dataset=folder") for word in ("--set", setting)]
    return run(["train", "--preset", "digits-blur", *settings, "--data-dir", str(folder), "--out", out])


@pytest.mark.parametrize("name", ["ümlaut", "\U0001f600 smile", 'it\'s "quoted"', "back\\slash"])
def test_a_data_folder_may_have_any_utf8_name(in_folder, name):
    write_pictures(in_folder / name)
    assert train(name) == 0
    assert runs.Run(Path("run")).config().data.directory == str(in_folder / name)


@pytest.mark.parametrize("name", [NOT_UTF8, "del\x7f", "escape\x1b[31m"])
def test_a_data_folder_that_run_toml_cannot_name_is_refused(in_folder, capsys, name):
    write_pictures(in_folder / name)
    assert train(name) == 2
    errors = capsys.readouterr().err
    assert "its path is not UTF-8 or has control characters" in errors
    assert len(errors.strip().splitlines()) == 2
    assert not Path("run").exists()


def test_names_that_are_not_utf8_train_and_are_said(in_folder, capsys):
    write_pictures(in_folder / "pictures", NOT_UTF8)
    assert train("pictures") == 0
    assert "(not an image)" in capsys.readouterr().err
    assert run(["eval", "run", "--features", "none", "--json"]) == 0
    json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "command",
    [
        ["data", "pack"],
        ["degrade", "--op", "blur"],
        ["restore", "--op", "blur", "--t", "5"],
        ["sample", "tiny"],
    ],
)
@pytest.mark.parametrize("ending", ["", NOT_UTF8])
def test_every_command_that_lists_a_folder_takes_such_names(tiny_run, in_folder, capsys, command, ending):
    (in_folder / "tiny").symlink_to(tiny_run)
    root = write_pictures(in_folder / f"pictures{ending}", ending, each=2)
    out = f"out{ending}"
    assert run([*command, str(root), "--out-dir", out, "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert len(list((in_folder / out).rglob("*.[pt][na][gr]"))) >= 2


@pytest.fixture
def special(in_folder) -> Iterator[Path]:
    """A folder with pictures and with files that block a reader: pipes, devices, sockets."""
    root = write_pictures(in_folder / "pictures", each=2)
    for name in ("pipe.png", "pipe", "pipe.jp2"):
        os.mkfifo(root / "cats" / name)
    (root / "cats" / "zero.png").symlink_to("/dev/zero")
    (root / "cats" / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(root / "cats")  # the path of a socket is short
        server.bind("socket.png")
        os.chdir(before)
        yield root


@pytest.mark.parametrize(
    "command",
    [["data", "pack"], ["degrade", "--op", "blur"], ["restore", "--op", "blur", "--t", "5"], ["sample", "tiny"]],
)
def test_special_files_in_a_folder_are_passed_over(tiny_run, special, in_folder, capsys, command):
    (in_folder / "tiny").symlink_to(tiny_run)
    assert run([*command, "pictures", "--out-dir", "out"]) == 0
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("left out 6 files in no known picture format") == 1


@pytest.mark.parametrize("name", ["cats/pipe.png", "cats/pipe", "cats/socket.png", "cats/zero.png", "/dev/null"])
@pytest.mark.parametrize("command", [["degrade", "--op", "blur"], ["restore"], ["data", "pack"], ["sample", "tiny"]])
def test_a_special_file_that_is_named_is_refused(tiny_run, special, in_folder, capsys, command, name):
    (in_folder / "tiny").symlink_to(tiny_run)
    path = str(special / name)
    given = [path, path] if command[0] == "data" else [path]
    assert run([*command, *given, "--out-dir", "out"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) <= 2


def test_a_special_file_as_the_second_picture_is_refused(special, in_folder, capsys):
    for name in ("cats/pipe.png", "cats/zero.png"):
        command = ["degrade", str(special / "dogs" / "0.png"), "--op", "animorph", "--second", str(special / name)]
        assert run(command) == 2
        assert "not an ordinary file" in capsys.readouterr().err
