"""Damaged, odd and hostile files in a run: the dashboard reads around them and reports them."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from dashboards import open_state
from golden_runs import append, write_run, write_sheet

from colddiff_cli.console import chart
from colddiff_cli.monitor.data.metrics_history import MetricsHistory, points
from colddiff_cli.monitor.data.requests import PendingRequests
from colddiff_cli.monitor.render import frame


def test_damage_is_reported_and_survived(tmp_path):
    path = write_run(tmp_path, "a")
    append(path / "events.jsonl", "rubbish\n", '{"event": "half')
    (path / "run.toml").write_text("not = [toml")
    append(path / "metrics.jsonl", "\x00\x00\n")
    run = open_state(path)
    run.history = MetricsHistory(path / "metrics.jsonl")
    run.history.advance(1)
    run.poll()
    problems = " ".join(run.problems)
    assert "events.jsonl: skipped 1 unreadable line" in problems
    assert "metrics.jsonl: skipped 1 unreadable line" in problems
    assert "run.toml" in problems
    assert run.step == 600
    shutil.rmtree(path)
    run.poll()
    assert run.state == "gone"
    assert run.state_table()["checkpoint"] is None
    write_run(tmp_path, "a")
    run.poll()
    assert run.state == "live"


@pytest.mark.parametrize("text", ['name = 3\n[train]\nsteps = "many"\n', "train = 7\n", ""])
def test_wrong_types_in_run_toml_do_no_harm(tmp_path, text):
    path = write_run(tmp_path, "a")
    (path / "run.toml").write_text(text)
    run = open_state(path)
    assert run.steps == 0
    assert run.seconds_left is None
    frame.render(run, [run], 80)


def test_wrong_types_in_events_do_no_harm(tmp_path):
    path = write_run(tmp_path, "a")
    append(path / "events.jsonl", {"event": 7, "time": "noon", "step": "x"}, {"event": "sample", "answers": "no"}, {})
    append(path / "metrics.jsonl", {"step": "x"}, {"step": True, "loss": "y", "elapsed": None})
    run, requests = open_state(path), PendingRequests()
    requests.ask(run, "pause")
    append(path / "events.jsonl", {"event": "sample", "answers": {"pause": 1}}, {"event": "paused", "answers": 7})
    run.poll()
    assert requests.settle() == []
    assert "noon" not in frame.render(run, [run], 80).plain
    json.dumps(run.state_table(), allow_nan=False)


ODD_LINES = [
    '{"event": ["a"], "time": 1}',
    '{"event": "started", "images": 0}',
    '{"event": "started", "images": -3, "time": Infinity}',
    '{"event": "checkpoint", "step": 1e400}',
    '{"event": "sample", "file": ["x"], "step": true}',
    '{"event": "warning", "message": {"a": [1]}}',
    '{"event": "failed", "why": ["[/x]", null]}',
    '{"step": 700, "loss": NaN, "elapsed": NaN}',
    '{"step": 700, "loss": -Infinity, "elapsed": 1e999}',
    '{"step": 700, "loss": ' + "9" * 400 + ', "images_per_second": 0}',
    '{"step": ' + "9" * 400 + ', "loss": 1}',
    '{"step": 700, "loss": [[1], "x", {}]}',
    "[" * 100_000,
    "9" * 5000,
]


@pytest.mark.parametrize("file", ["events.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("line", ODD_LINES)
def test_odd_values_do_no_harm(tmp_path, file, line):
    path = write_run(tmp_path, "a")
    append(path / file, line + "\n", line + "\n")
    run = open_state(path)
    assert "⠉" in frame.render(run, [run], 100).plain
    chart.draw([chart.Line(points(run.history.bins, "loss"), "red")], chart.View(0, 700, True), 80, 12)
    json.dumps(run.state_table(), allow_nan=False)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "lock", "run.toml", "samples/step-000600.png"])
def test_a_pipe_in_place_of_a_file_does_not_block(tmp_path, name):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    (path / name).unlink()
    os.mkfifo(path / name)
    run = open_state(path)
    frame.render(run, [run], 80)
    run.sheets.load("step-000600.png")
    (path / "samples" / "step-000600.json").unlink()
    os.mkfifo(path / "samples" / "step-000600.json")
    assert run.sheets.load("step-000600.png") is None


def test_control_characters_never_reach_the_terminal(tmp_path):
    path = write_run(tmp_path, "a\x1b[31m")
    append(path / "events.jsonl", {"event": "warning", "message": "\x1b[2J \x9b31m \x07 \ud800 end"})
    text = frame.render(open_state(path), [], 80).plain
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert "end" in text
