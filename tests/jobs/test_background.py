"""`train --monitor`: a trainer in a process of its own, asked and answered as the dashboard does it."""

from __future__ import annotations

import os
import signal
import time

import pytest
import typer
from conftest import TINY, left_behind, make_trainer

from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import background
from colddiff_cli.monitor.data.requests import PendingRequests
from colddiff_cli.monitor.data.run_state import RunState, WallClock
from colddiff_core import runs

PATIENCE = 60.0  # seconds


def until(watched, is_so):
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, (watched.state, watched.reason, watched.events[-3:])
        time.sleep(0.05)
        watched.poll()


def tiny(*changes):
    words = [word for change in (*TINY, *changes) for word in ("--set", change)]
    return ["--preset", "digits-blur", "--device", "cpu", *words]


def test_a_trainer_is_started_paused_sampled_stopped_and_found_dead(in_folder):
    path = in_folder / "runs" / "a"
    arguments = [*tiny("train.steps=1000000", "train.log_every=1"), "--out", str(path)]
    child = background.start(Screen(), arguments, path)
    assert os.getsid(child.pid) == child.pid  # out of reach of this terminal
    watched, desk = RunState(runs.Run(path), WallClock()), PendingRequests()
    until(watched, lambda: watched.state == "live" and watched.step > 2)
    for word, is_so in (
        ("pause", lambda: watched.state == "paused"),
        ("sample", watched.sheets.names),
        ("resume", lambda: watched.state == "live"),
    ):
        desk.ask(watched, word)
        until(watched, is_so)
        until(watched, lambda: not desk.settle() and not desk.pending)
    paused, resumed = (next(e for e in watched.events if e["event"] == name) for name in ("paused", "resumed"))
    assert paused["step"] == resumed["step"]
    desk.ask(watched, "stop")
    until(watched, lambda: watched.state == "stopped")
    child.wait()
    assert "Stopped at step" in (path / background.LOG).read_text()

    again = background.start(Screen(), ["--resume", str(path), "--device", "cpu"], path)
    until(watched, lambda: watched.state == "live")
    os.kill(again.pid, signal.SIGKILL)
    until(watched, lambda: watched.state == "stalled")
    assert f"process {again.pid} is gone" in watched.reason
    assert (path / background.LOG).read_text().count("parameters") == 2  # what was said before is kept


def test_a_trainer_that_cannot_start_reports_why_and_leaves_nothing(in_folder, capfd):
    path = in_folder / "new" / "runs" / "a"
    with pytest.raises(typer.Exit) as ended:
        background.start(Screen(), [*tiny("data.size=15"), "--out", str(path)], path)
    assert ended.value.exit_code == 2
    assert "multiple of" in capfd.readouterr().err
    assert left_behind(in_folder) == []


def test_a_resume_that_fails_after_opening_the_run_reports_why(in_folder, capfd):
    trainer = make_trainer(in_folder / "a", "train.steps=4")
    for tick in trainer.steps():
        if tick.step == 3:
            trainer.stop()
    trainer.run.close()
    for path in runs.Run(in_folder / "a").checkpoints():
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(typer.Exit) as ended:
        background.start(Screen(), ["--resume", str(in_folder / "a"), "--device", "cpu"], in_folder / "a")
    assert ended.value.exit_code == 2
    assert "damaged" in capfd.readouterr().err
