"""`train --monitor`: a trainer in a process of its own, asked and answered as the dashboard does it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import BinaryIO

import processes
import pytest
import typer
from conftest import TINY, left_behind, make_trainer

from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import background
from colddiff_cli.monitor.data.requests import PendingRequests
from colddiff_cli.monitor.data.run_state import RunState, WallClock
from colddiff_core import runs
from colddiff_core.runs import HEARTBEAT_SECONDS

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


class ForkedTrainer:
    """Starts a trainer like subprocess.Popen, but as a fork instead of a fresh Python."""

    def __init__(self, command: list[str], *, stdin: int, stdout: BinaryIO, stderr: BinaryIO, start_new_session: bool):
        assert command[:5] == [sys.executable, "-P", "-m", "colddiff_cli", "train"]
        assert stdin == subprocess.DEVNULL
        assert stdout is stderr
        assert start_new_session
        prepare = functools.partial(detach, os.path.abspath(stdout.name))
        self._process = processes.start(command[4:], Path.cwd(), prepare=prepare)
        self.pid = self._process.pid
        self.returncode: int | None = None
        self._waiting = threading.Lock()

    def wait(self) -> int:
        with self._waiting:
            self.returncode = self._process.wait()
        return self.returncode


def detach(log: str) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    processes.open_streams()


@pytest.fixture
def forked(monkeypatch):
    """Return a function that switches to forked trainers, for tests in which the start of Python does not matter."""

    def fork_trainers():
        started = types.SimpleNamespace(Popen=ForkedTrainer, DEVNULL=subprocess.DEVNULL)
        monkeypatch.setattr(background, "subprocess", started)

    return fork_trainers


@pytest.mark.parametrize("is_forked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_trainer_is_started_found_dead_resumed_paused_sampled_and_stopped(in_folder, forked, is_forked):
    if is_forked:
        forked()
    ahead = 0.0
    path = in_folder / "runs" / "a"
    changes = ("train.steps=1000000", "train.log_every=1", "train.checkpoint_every=20")
    child = background.start(Screen(), [*tiny(*changes), "--out", str(path)], path)
    assert os.getsid(child.pid) == child.pid  # out of reach of this terminal
    clock = WallClock(monotonic=lambda: time.monotonic() + ahead)
    watched, desk = RunState(runs.Run(path), clock), PendingRequests()
    until(watched, lambda: watched.state == "live" and watched.step > 2 and runs.Run(path).checkpoints())
    os.kill(child.pid, signal.SIGKILL)
    ahead = 3 * HEARTBEAT_SECONDS  # as if that long had passed
    until(watched, lambda: watched.state == "stalled")
    assert f"process {child.pid} is gone" in watched.reason

    forked()
    again = background.start(Screen(), ["--resume", str(path), "--device", "cpu"], path)
    until(watched, lambda: watched.state == "live")
    for word, is_so in (
        ("pause", lambda: watched.state == "paused"),
        ("sample", watched.sheets.names),
        ("resume", lambda: watched.state == "live"),
    ):
        desk.ask(watched, word)
        until(watched, is_so)
        until(watched, lambda: not desk.settle() and not desk.pending)
    paused, resumed = ([e for e in watched.events if e["event"] == name][-1] for name in ("paused", "resumed"))
    assert paused["step"] == resumed["step"]
    desk.ask(watched, "stop")
    until(watched, lambda: watched.state == "stopped")
    again.wait()
    log = (path / background.LOG).read_text()
    assert "Stopped at step" in log
    assert log.count("parameters") == 2  # what was said before is kept


@pytest.mark.parametrize(
    ("arguments", "why", "is_forked"),
    [
        (["--preset", "digits-blur", "--max-restarts", "1"], "--max-restarts needs --nproc", False),
        (tiny("model.multipliers=[1,2]", "data.size=15"), "multiple of", True),  # found when the network is built
    ],
)
def test_a_trainer_that_cannot_start_reports_why_and_leaves_nothing(
    in_folder, capfd, forked, arguments, why, is_forked
):
    if is_forked:
        forked()
    path = in_folder / "new" / "runs" / "a"
    with pytest.raises(typer.Exit) as ended:
        background.start(Screen(), [*arguments, "--out", str(path)], path)
    assert ended.value.exit_code == 2
    assert why in capfd.readouterr().err
    assert left_behind(in_folder) == []


def test_a_resume_that_fails_after_opening_the_run_reports_why(in_folder, capfd, forked):
    trainer = make_trainer(in_folder / "a", "train.steps=4")
    for tick in trainer.steps():
        if tick.step == 3:
            trainer.stop()
    trainer.run.close()
    for path in runs.Run(in_folder / "a").checkpoints():
        (path / "model.safetensors").write_bytes(b"")
    forked()
    with pytest.raises(typer.Exit) as ended:
        background.start(Screen(), ["--resume", str(in_folder / "a"), "--device", "cpu"], in_folder / "a")
    assert ended.value.exit_code == 2
    assert "damaged" in capfd.readouterr().err
