"""An empty word, which an unset shell variable leaves behind, never means the working folder or a default."""

from __future__ import annotations

import pytest
from conftest import left_behind

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
