"""The names of classes that a run keeps."""

from __future__ import annotations

import json
import os

import pytest

from colddiff_core import runs
from colddiff_core.config import presets
from colddiff_core.errors import UsageError
from colddiff_core.runs import classes


def test_names_are_kept_only_by_a_run_that_needs_them(tmp_path):
    plain, conditional = (presets.load("digits-blur", [f"model.classes={count}"]) for count in (0, 2))
    runs.create(tmp_path / "plain", plain, {}, ["cat", "dog"]).close()
    runs.create(tmp_path / "unnamed", conditional, {}).close()
    runs.create(tmp_path / "run", conditional, {}, ["cat", "dog"]).close()
    assert not (tmp_path / "plain" / classes.FILE).exists()
    assert [runs.Run(tmp_path / name).classes() for name in ("plain", "unnamed", "run")] == [(), (), ("cat", "dog")]


def test_hostile_names_are_made_safe_where_they_are_read(tmp_path):
    (tmp_path / classes.FILE).write_text(json.dumps(["\x1b[31mred\n\tcat", "a" * 5000, "\udc80", "dog"]))
    names = runs.Run(tmp_path).classes()
    assert names[3] == "dog"
    assert max(map(len, names)) <= 80
    assert all(name.isprintable() and name.encode() for name in names)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000, "\x00", '["cat"'])
def test_a_damaged_file_of_names_is_refused_in_words(tmp_path, text):
    (tmp_path / classes.FILE).write_text(text)
    with pytest.raises(UsageError, match="is damaged"):
        runs.Run(tmp_path).classes()


def test_a_pipe_in_place_of_the_names_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / classes.FILE)
    with pytest.raises(UsageError, match="is damaged"):
        runs.Run(tmp_path).classes()


def test_names_of_a_run_that_continues_are_kept_or_replaced(tmp_path):
    run = runs.Run(tmp_path)
    for names in (["cat"], ["cat", "dog"], ["cat", "dog"], []):
        runs.keep_classes(run, names)
    assert run.classes() == ("cat", "dog")
    (tmp_path / classes.FILE).write_text("damaged")
    runs.keep_classes(run, ["owl"])
    assert run.classes() == ("owl",)


def test_more_names_than_the_network_has_classes_are_no_way_out_of_range():
    with pytest.raises(UsageError, match="Known: cat, dog"):
        classes.numbers_of(["bird"], ["cat", "dog", "bird"], 2)
    assert classes.numbers_of(["all"], ["cat", "dog", "bird"], 2) == (0, 1)


def test_the_number_of_classes_may_be_left_to_the_data():
    config = presets.load("digits-blur", ["model.classes=all"])
    assert config.to_table()["model"]["classes"] == "all"
    assert presets.from_table(config.to_table(), "again") == config
    for value in ("-1", "some"):
        with pytest.raises(UsageError, match="all for those of the data set"):
            presets.load("digits-blur", [f"model.classes={value}"])
