"""`monitor` on terminals without a cursor, and as wide as COLUMNS says."""

from __future__ import annotations

import functools
import os
import re

import processes
import pytest
import terminals
from conftest import TINY, left_behind
from golden_runs import write_runs

from colddiff_cli.__main__ import run

SETTINGS = [word for value in TINY for word in ("--set", value)]


@pytest.mark.parametrize("kind", ["dumb", "unknown", ""])
@pytest.mark.parametrize("command", [["monitor"], ["train", "--preset", "digits-blur", *SETTINGS, "--monitor"]])
def test_the_dashboard_is_refused_where_it_cannot_be_drawn(command, kind, own_run):
    (own_run.parent / "runs").mkdir()
    own_run.rename(own_run.parent / "runs" / "a")
    act = functools.partial(terminals.command, command)
    session = terminals.run(act, own_run.parent, variables={"TERM": kind})
    assert session.code == 2, session.output
    lines = session.output.decode().splitlines()
    assert len(lines) == 2
    assert "TERM is" in lines[0]
    assert "colddiff monitor --once" in lines[1]
    assert left_behind(own_run.parent / "runs") == ["a"]


@pytest.mark.parametrize("columns", [40, 60, 100, 150])
def test_a_printed_frame_is_as_wide_as_columns_says(columns, tmp_path, monkeypatch, capsys):
    write_runs(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["monitor", "--once"]) == 0
    chart = [line for line in capsys.readouterr().out.splitlines() if "│" in line or "┤" in line]
    assert columns - 8 < max(map(len, chart)) <= columns


@pytest.mark.parametrize(("lines", "expected"), [("100", 14), ("44", None), ("5", 4), ("", 14), ("many", 14)])
def test_the_chart_of_a_printed_frame_leaves_room_in_lines(lines, expected, tmp_path, monkeypatch, capsys):
    write_runs(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINES", lines)
    assert run(["monitor", "digits-blur", "--once"]) == 0
    printed = capsys.readouterr().out.splitlines()
    chart = [line for line in printed if "│" in line or "┤" in line]
    if expected is None:
        assert len(printed) <= int(lines)
    else:
        assert len(chart) + 1 == expected  # with the numbers below


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_columns_also_rules_on_a_terminal(kind, tmp_path):
    write_runs(tmp_path / "runs")
    act = functools.partial(terminals.command, ["monitor", "--once"])
    session = terminals.run(act, tmp_path, variables={"TERM": kind, "COLUMNS": "50", "NO_COLOR": "1"}, size=(120, 40))
    assert session.code == 0
    plain = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", session.output.decode())
    chart = [line for line in plain.splitlines() if "│" in line or "┤" in line]
    assert max(map(len, chart)) <= 50


@pytest.mark.parametrize("columns", ["0", "-1", "wide", "", "1", "999999999999"])
def test_columns_that_make_no_sense_do_no_harm(columns, tmp_path):
    write_runs(tmp_path / "runs")
    process = processes.start(["monitor", "--once"], tmp_path, os.environ | {"COLUMNS": columns})
    assert process.wait(60) == 0, process.communicate()
