"""Commands that errors and reports suggest are copied into a shell, so names in them are quoted words."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import make_trainer

from colddiff_cli.__main__ import run

NAME = "$(touch ran);`touch ran`"
COMMANDS = [
    ["train", "--resume", f"runs/absent{NAME}"],
    ["train", "--resume", f"{NAME}2"],
    ["train", "--resume", NAME],
    ["train", "--resume", f"runs/untrained{NAME}"],
    ["train", "--preset", "digits-blur", "--out", f"runs/{NAME}"],
    ["train", "--from", NAME, "--set", "train.steps=7", "--out", f"runs/new{NAME}"],
    ["sample", f"runs/untrained{NAME}"],
    ["sample", f"runs/{NAME}", f"{NAME}.png", "--t", "9"],
    ["sample", f"runs/{NAME}", f"{NAME}.png", "--t", "2"],
    ["generate", NAME, "--n", "2"],
    ["eval", NAME, "--n", "2", "--features", "none"],
    ["compare", NAME, NAME],
    ["restore", f"{NAME}.png", "--run", NAME, "--t", "auto"],
    ["restore", f"{NAME}.png", "--op", "snow"],
    ["degrade", f"{NAME}.png", "--op", "blur", "--out", f"{NAME}.png"],
    ["runs", NAME],
    ["monitor", NAME, "--once"],
    ["monitor", f"{NAME}2", "--once"],
]


@pytest.fixture
def place(own_run, photo) -> Path:
    """A folder with a run, one without checkpoints, and a picture, all named to be run by a shell."""
    folder = photo.parent
    photo.rename(folder / f"{NAME}.png")
    (folder / "runs").mkdir()
    own_run.rename(folder / "runs" / NAME)
    make_trainer(folder / "runs" / f"untrained{NAME}").run.close()
    return folder


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words).replace(NAME, "NAME"))
def test_names_in_suggested_commands_are_quoted(words, place, capsys):
    run(words)
    said = capsys.readouterr()
    for line in (said.out + said.err).splitlines():
        for suggestion in re.split(r"(?<!\S)colddiff (?=[a-z])", line)[1:]:
            bare = re.sub(r"'[^']*'", "", suggestion)
            assert "$(" not in bare, line
            assert "`" not in bare, line


def test_some_suggest_a_name(place, capsys):
    """So that the test above sees one."""
    assert run(["train", "--resume", NAME]) == 2
    suggestion = capsys.readouterr().err.partition("longer with: ")[2]
    assert shlex.split(suggestion)[:4] == ["colddiff", "train", "--resume", f"runs/{NAME}"]
