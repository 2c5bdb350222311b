"""Words that a shell left empty or unexpanded: refused, or taken as meant; none makes a folder called ~."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import TINY, left_behind

import colddiff_cli
from colddiff_cli.__main__ import run

PICTURE = ["degrade", "photo.png", "--op", "blur"]
EMPTY = [
    *[[command, ""] for command in ("degrade", "restore", "sample", "generate", "eval", "compare", "monitor", "runs")],
    ["compare", "RUN", ""],
    ["sample", "RUN", ""],
    ["data", "pack", "", "--out-dir", "shards"],
    ["presets", ""],
    ["reproduce", ""],
    ["degrade", "--", ""],
    *[[*PICTURE, option, ""] for option in ("--out", "--out-dir", "--preset", "--device", "--t")],
    [*PICTURE, "--out="],
    ["degrade", "photo.png", "--op", "animorph", "--second", ""],
    ["degrade", "photo.png", "--op", "animorph", "--second="],
    *[["restore", "photo.png", "--op", "blur", option, ""] for option in ("--mask", "--run", "--out", "--color")],
    *[["sample", "RUN", option, ""] for option in ("--sampler", "--data-dir", "--out", "--out-dir", "--precision")],
    *[["train", "--preset", "digits-blur", option, ""] for option in ("--out", "--data-dir", "--set", "--device")],
    *[["train", option, ""] for option in ("--preset", "--resume", "--from")],
    ["eval", "RUN", "--features", "inception", "--weights", ""],
    ["reproduce", "table1", "--runs", ""],
]


@pytest.mark.parametrize("arguments", EMPTY, ids=[" ".join(arguments) for arguments in EMPTY])
def test_an_empty_word_is_refused_wherever_it_stands(arguments, tiny_run, photo, capsys):
    before = left_behind(photo.parent), left_behind(tiny_run)
    assert run([str(tiny_run) if word == "RUN" else word for word in arguments]) == 2
    place = next(n for n, word in enumerate(arguments) if not word or word.endswith("="))
    named = arguments[place].rstrip("=") or arguments[place - 1]
    what = f"What follows {tiny_run if named == 'RUN' else named} is empty."
    assert capsys.readouterr().err.splitlines() == [f"colddiff: {what}", "  Is a shell variable unset?"]
    assert (left_behind(photo.parent), left_behind(tiny_run)) == before


def test_a_setting_may_be_empty(photo, capsys):
    assert run(["train", "--preset", "digits-blur", "--set", "data.directory=", "--dry-run"]) == 0
    assert "is empty" not in capsys.readouterr().err


@pytest.mark.parametrize("form", [["--out", "~/made.png"], ["--out=~/made.png"], ["--out-dir=~/"], ["--out-dir", "~"]])
def test_a_tilde_that_the_shell_left_is_the_home_folder(form, photo, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    before = left_behind(photo.parent)
    assert run([*PICTURE, *form]) == 0
    assert len(list(home.glob("*.png"))) == 1
    assert left_behind(photo.parent) == before


def test_a_setting_may_begin_at_home(photo, tmp_path_factory, monkeypatch, capsys):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    assert run(["train", "--preset", "folder-desaturate", "--set", "data.directory=~/pictures", "--dry-run"]) == 0
    assert f'directory = "{home}/pictures"' in capsys.readouterr().out
    (photo.parent / "~.png").write_bytes(photo.read_bytes())  # no path at home
    assert run(["degrade", "~.png", "--op", "blur", "--out", "x.png"]) == 0


@pytest.mark.parametrize("name", ["two words [1] é", "-dash", "it's", "plain"])
def test_a_suggested_command_can_be_copied(name, in_folder, capsys):
    out = f"./{name}"
    small = [f"--set={setting}" for setting in (*TINY, "train.steps=2")]
    assert run(["train", "--preset", "digits-blur", "--out", out, *small]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if "colddiff eval " in line]
    words = shlex.split(printed[0])
    assert words[:2] == ["colddiff", "eval"]
    assert run([*words[1:], "--n", "2", "--features", "none"]) == 0
    quoted = re.compile(
        r"colddiff (?:train|eval|sample|generate|restore|monitor|compare)(?: --[\w-]+)* "
        r"\{(?!shell_word|place|small|example)"
    )
    for file in Path(colddiff_cli.__file__).parent.parent.glob("colddiff_c*/**/*.py"):
        assert not quoted.search(file.read_text()), file
