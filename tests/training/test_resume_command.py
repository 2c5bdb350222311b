"""`train --resume`: what it says where there is nothing to continue."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import left_behind

from colddiff_cli.__main__ import run as colddiff

pytestmark = pytest.mark.usefixtures("small_sheets")


@pytest.mark.parametrize(
    ("steps", "said"), [(2, "has taken 6 steps already, more than train.steps = 2"), (6, "is finished: 6 of 6")]
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_fewer_steps_than_were_taken_are_refused(own_run, capsys, steps, said, is_finished):
    if not is_finished:
        if steps == 6:
            return  # its last sheet and event are still to come
        (own_run / "events.jsonl").write_text("")
    before = (own_run / "run.toml").read_bytes()
    assert colddiff(["train", "--resume", str(own_run), "--set", f"train.steps={steps}", "--device", "cpu"]) == 2
    what, remedy = capsys.readouterr().err.strip().splitlines()
    assert said in what
    assert remedy.endswith(f"colddiff train --resume {own_run} --set train.steps=12")
    assert (own_run / "run.toml").read_bytes() == before


@pytest.mark.parametrize("name", ["runs/digits-blur", "digits-blur-2", "other/run", "/nowhere/run"])
def test_a_run_that_was_killed_before_it_existed_can_be_started_again(in_folder, capsys, name):
    (in_folder / "runs" / ".digits-blur-0123abcd").mkdir(parents=True)  # what such a kill leaves
    before = left_behind(in_folder)
    assert colddiff(["train", "--resume", name, "--device", "cpu"]) == 2
    what, remedy = capsys.readouterr().err.strip().splitlines()
    assert f"No such run: {name}; nothing was saved there" in what
    path = name if "/" in name else f"runs/{name}"
    assert f"start it again: colddiff train --preset NAME --out {path}" in remedy
    assert left_behind(in_folder) == before


def test_a_misspelled_run_is_found_and_a_folder_that_is_no_run_named(in_folder, tiny_run, capsys):
    shutil.copytree(tiny_run, in_folder / "runs" / "digits-blur")
    assert colddiff(["train", "--resume", "digit-blur"]) == 2
    assert "Did you mean 'digits-blur'?" in capsys.readouterr().err
    Path("runs/empty").mkdir()
    assert colddiff(["train", "--resume", "runs/empty"]) == 2
    error = capsys.readouterr().err
    assert "has no run.toml" in error
    assert "start a new run with another --out" in error
