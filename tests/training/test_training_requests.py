"""Requests in control/: each is answered by an event, none changes a bit or ends the training."""

from __future__ import annotations

import threading
import time

import pytest
from checkpoints import assert_same_checkpoint
from conftest import finish, left_behind, make_trainer

from colddiff_core.errors import UsageError
from colddiff_core.runs import control
from colddiff_core.training.trainer import Trainer


def test_requests_are_answered_by_events_and_change_no_bit(tmp_path):
    whole = finish(make_trainer(tmp_path / "whole"))
    trainer = make_trainer(tmp_path / "run")
    path = tmp_path / "run"
    asked = {}
    for tick in trainer.steps():
        if tick.step == 1 and not asked:
            for request in ("sample", "checkpoint", "pause"):
                asked[request] = control.ask(path, request)
        if tick.is_paused:
            asked["resume"] = control.ask(path, "resume")
    trainer.run.close()
    answers = {event["answers"][0]: event for event in trainer.run.events() if "answers" in event}
    assert {name: answers[name]["event"] for name in asked.values()} == {
        asked[request]: control.ANSWERS[request] for request in asked
    }
    assert {event["step"] for event in answers.values()} == {1}
    assert (path / "samples" / "step-000001.png").exists()
    assert left_behind(path / "control") == []
    assert_same_checkpoint(whole.run.newest_checkpoint(), trainer.run.newest_checkpoint())


def test_a_pause_costs_no_step_and_is_left_out_of_the_times(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.log_every=1")
    ticks = trainer.steps()
    next(ticks)
    control.ask(tmp_path / "run", "pause")
    paused = next(ticks)
    assert (paused.step, paused.is_paused) == (1, True)
    threading.Timer(1.0, control.ask, (tmp_path / "run", "resume")).start()
    before = time.monotonic()
    resumed = next(ticks)
    assert time.monotonic() - before > 0.9
    assert (resumed.step, resumed.is_paused) == (1, False)
    assert next(ticks).metrics["elapsed"] < 0.9 + trainer.run.metrics()[0]["elapsed"]


def test_a_paused_run_can_be_stopped_and_goes_on_later(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    stop = None
    for tick in trainer.steps():
        if tick.step == 2 and not tick.is_paused:
            control.ask(tmp_path / "run", "pause")
        if tick.is_paused:
            stop = control.ask(tmp_path / "run", "stop")
    trainer.run.close()
    assert trainer.run.events()[-1]["answers"] == [stop]
    assert [event["event"] for event in trainer.run.events()][-3:] == ["paused", "checkpoint", "stopped"]
    control.ask(tmp_path / "run", "stop")  # of nobody: it must not stop the next trainer
    again = make_trainer(tmp_path / "run")
    again.resume()
    assert finish(again).step == 6


def test_an_unknown_request_is_reported_and_removed(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    (tmp_path / "run" / "control" / "puase").touch()
    (tmp_path / "run" / "control" / ".draft").touch()
    finish(trainer)
    warnings = [event["message"] for event in trainer.run.events() if event["event"] == "warning"]
    assert len(warnings) == 1
    assert "puase is not a request" in warnings[0]
    assert left_behind(tmp_path / "run" / "control") == [".draft"]
    with pytest.raises(UsageError, match="No such request"):
        control.ask(tmp_path / "run", "puase")


def test_nothing_in_the_control_folder_harms_the_training(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    control_folder = tmp_path / "run" / "control"
    (control_folder / "notes").mkdir()
    (control_folder / "notes" / "todo").touch()
    steps = trainer.steps()
    next(steps)
    (control_folder / "checkpoint").touch()
    next(steps)
    assert [path.name for path in trainer.run.checkpoints()] == ["step-000001"]
    (control_folder / "notes" / "todo").unlink()
    (control_folder / "notes").rmdir()
    control_folder.rmdir()
    control_folder.touch()  # a file in its place
    assert finish(trainer).step == 6


@pytest.mark.parametrize("request_word", ["sample", "checkpoint"])
def test_a_request_that_fails_does_not_end_the_training(tmp_path, monkeypatch, request_word):
    trainer = make_trainer(tmp_path / "run")
    steps = trainer.steps()
    next(steps)

    def fail(*_args, **_kwargs):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "write_sheet" if request_word == "sample" else "save", fail)
    name = control.ask(tmp_path / "run", request_word)
    next(steps)
    event = trainer.run.events()[-1]
    assert (event["event"], event["answers"]) == ("warning", [name])
    assert "CUDA out of memory" in event["message"]
    monkeypatch.undo()
    assert finish(trainer).step == 6


def test_a_request_can_be_made_by_touching_a_file_and_a_run_without_the_folder_trains(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    (tmp_path / "run" / "control").rmdir()
    steps = trainer.steps()
    next(steps)
    (tmp_path / "run" / "control").mkdir()
    (tmp_path / "run" / "control" / "checkpoint").touch()
    next(steps)
    assert trainer.run.events()[-1] == trainer.run.events()[-1] | {"event": "checkpoint", "answers": ["checkpoint"]}
    assert [path.name for path in trainer.run.checkpoints()] == ["step-000001"]
