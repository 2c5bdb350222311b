"""Checkpoints are written while training goes on; a kill, a signal or the end may come while one is half-written."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import trainings

from colddiff_core import runs

SLOW_MILLISECONDS = 150  # for each of a checkpoint's three files; a checkpoint takes dozens of steps


def await_draft(run: Path, process: trainings.Training) -> None:
    """Wait until a checkpoint is being written."""
    deadline = time.monotonic() + trainings.TIMEOUT_SECONDS
    while not any((run / "checkpoints").glob(".draft-*")):
        assert process.poll() is None, "it ended before it saved"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def check_whole(run: Path) -> list[int]:
    """Return the steps of a run's checkpoints; fail if one is half-written or a logged one is missing."""
    found = runs.Run(run)
    steps = [runs.path_step(path) for path in found.checkpoints()]
    assert found.damaged_checkpoints() == []
    announced = [event["step"] for event in found.events() if event["event"] == "checkpoint"]
    assert not announced or announced[-1] <= steps[-1]
    return steps


def test_a_slow_disk_changes_no_byte(tmp_path, undisturbed):
    run, length = tmp_path / "run", undisturbed.length
    code, output = trainings.end(trainings.start(run, length, fault=("slow", 1), lasting=SLOW_MILLISECONDS))
    assert code == 0, output
    trainings.check_result("slow disk", run, undisturbed)
    events = [event for event in runs.Run(run).events() if event["event"] == "checkpoint"]
    assert [event["step"] for event in events] == [*range(7, length.steps, 7), length.steps]
    times = [event["time"] for event in events]
    assert times == sorted(times)


@pytest.mark.parametrize("number", [4, 5, 6])
def test_a_kill_during_the_second_checkpoint_leaves_the_first(tmp_path, undisturbed, number):
    run, length = tmp_path / "run", undisturbed.length
    code, output = trainings.end(trainings.start(run, length, fault=("tensors", number)))
    assert code == -signal.SIGKILL, output
    assert check_whole(run) == [length.checkpoint_every]
    assert any((run / "checkpoints").glob(".draft-*"))
    trainings.finish(run, length)
    trainings.check_result("SIGKILL", run, undisturbed)


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT] * 2], ids=["SIGTERM", "SIGINT", "SIGINT twice"]
)
def test_a_signal_during_a_checkpoint_leaves_nothing_half_written(tmp_path, undisturbed, signals):
    run, length = tmp_path / "run", undisturbed.length
    process = trainings.start(run, length, fault=("slow", 1), lasting=SLOW_MILLISECONDS)
    await_draft(run, process)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    code, output = trainings.end(process)
    assert code == 130, output
    assert "Traceback" not in output
    saved = check_whole(run)
    assert saved[0] == length.checkpoint_every
    if len(signals) == 1:
        last = runs.Run(run).events()[-1]
        assert (last["event"], last["step"]) == ("stopped", saved[-1])
    trainings.finish(run, length)
    trainings.check_result("a signal during a checkpoint", run, undisturbed)
