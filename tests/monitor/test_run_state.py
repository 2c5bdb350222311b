"""The state of a run from its files: progress, liveness, clocks, locks and requests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from dashboards import FakeClock, open_state
from golden_runs import NOW, append, metrics, touch, write_run, write_runs, write_sheet

from colddiff_cli.monitor.data.requests import LATE_AFTER, PendingRequests
from colddiff_cli.monitor.data.run_state import HUNG_AFTER, STALLED_AFTER, duration
from colddiff_core import runs


def test_every_state_is_recognized(tmp_path):
    write_runs(tmp_path)
    states = {path.name: open_state(path).state for path in runs.listed(tmp_path)}
    assert states == {
        "digits-blur": "live",
        "digits-noise": "finished",
        "digits-mask": "paused",
        "mnist-blur": "stalled",
        "mnist-snow": "failed",
        "faces": "stopped",
    }
    assert open_state(tmp_path / "mnist-snow").reason == "The loss is nan at step 90"


def test_progress_comes_from_the_newest_lines(tmp_path):
    run = open_state(write_run(tmp_path, "a"))
    assert (run.step, run.steps) == (600, 1200)
    assert run.epoch == pytest.approx(600 * 64 / 1497)
    assert run.seconds_left == pytest.approx(600 * 64 / 730, rel=1e-6)


def test_a_killed_trainer_is_stalled_within_thirty_seconds(tmp_path):
    clock = FakeClock()
    path = write_run(tmp_path, "a")
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (path / "lock").write_text(json.dumps({"pid": trainer.pid, "host": socket.gethostname()}))
    touch(path, 0)
    run = open_state(path, clock)
    assert run.state == "live"
    clock.advance(1)
    os.utime(path / "lock", (NOW + 1, NOW + 1))
    run.poll()
    trainer.kill()
    os.waitid(os.P_PID, trainer.pid, os.WEXITED | os.WNOWAIT)  # a zombie: ended, but not yet reaped
    clock.advance(4)
    run.poll()
    assert (run.state, run.has_trainer) == ("stalled", False)
    assert f"process {trainer.pid} is gone" in run.reason
    trainer.wait()
    run.poll()
    assert run.state == "stalled"


def test_a_trainer_on_another_machine_is_judged_by_its_signs_of_life(tmp_path):
    clock = FakeClock()
    path = write_run(tmp_path, "a")
    run = open_state(path, clock)
    clock.advance(STALLED_AFTER - 2)
    run.poll()
    assert run.state == "live"
    clock.advance(3)
    run.poll()
    assert run.state == "stalled"
    touch(path, -60)
    run.poll()
    assert run.state == "live"


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_setting_the_clock_does_not_change_the_state(tmp_path, jump):
    clock = FakeClock()
    path = write_run(tmp_path, "a")
    run = open_state(path, clock)
    clock.wall += jump
    for _ in range(10):
        clock.advance(5)
        os.utime(path / "lock", (clock.wall, clock.wall))
        run.poll()
        assert run.state == "live"
    clock.advance(STALLED_AFTER + 1)
    run.poll()
    assert run.state == "stalled"
    events = [{"event": "checkpoint", "time": NOW, "step": 1}, {"event": "sample", "time": NOW - 3600, "step": 1}]
    append(path / "events.jsonl", *events)
    run.poll()
    assert any("set back by 1:00:00" in problem for problem in run.problems)


def test_files_ahead_of_the_clock_are_reported(tmp_path):
    run = open_state(write_run(tmp_path, "a", age=-500))
    assert any("ahead of this machine's clock" in problem for problem in run.problems)


def test_a_trainer_known_to_exist_gets_more_time(tmp_path):
    clock = FakeClock()
    path = write_run(tmp_path, "a")
    (path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    touch(path, 0)
    run = open_state(path, clock)
    clock.advance(HUNG_AFTER - 1)
    run.poll()
    assert run.state == "live"
    clock.advance(2)
    run.poll()
    assert (run.state, run.has_trainer) == ("stalled", True)  # it may still answer
    clock.advance(10 * HUNG_AFTER)
    run.poll()
    assert (run.state, run.has_trainer) == ("stalled", False)


def test_slow_steps_get_more_time(tmp_path):
    clock = FakeClock()
    path = write_run(tmp_path, "a")
    append(path / "metrics.jsonl", metrics(610) | {"images_per_second": 0.5})  # 128 seconds a step
    touch(path, 1)
    run = open_state(path, clock)
    clock.advance(200)
    run.poll()
    assert run.state == "live"
    clock.advance(200)
    run.poll()
    assert run.state == "stalled"


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b'{"pid": 1000000000000, "host": "x"}', b'{"pid": NaN, "host": 3}', b"[]", b'"']
)
def test_a_damaged_lock_does_no_harm(tmp_path, text):
    path = write_run(tmp_path, "a")
    text = text.replace(b'"x"', json.dumps(socket.gethostname()).encode())
    (path / "lock").write_bytes(text)
    touch(path, 1)
    assert open_state(path).state == "live"


def test_the_newest_sheet_is_the_one_logged_last(tmp_path):
    path = write_run(tmp_path, "a")
    for step in (200, 900, 300):  # as after a resume from before step 300
        write_sheet(path, step)
    touch(path, 1)
    assert open_state(path).newest_sheet == "step-000300.png"
    (path / "samples" / "step-000300.png").unlink()
    assert open_state(path).newest_sheet == "step-000900.png"


def test_only_the_trainers_event_settles_a_request(tmp_path):
    path = write_run(tmp_path, "a")
    run, requests = open_state(path), PendingRequests()
    request = requests.ask(run, "pause")
    assert (path / "control" / request.name).exists()
    append(path / "events.jsonl", {"event": "paused", "time": NOW, "step": 600, "answers": ["pause.other"]})
    run.poll()
    assert requests.settle() == []
    assert requests.waiting(run) == ["pause"]
    append(path / "events.jsonl", {"event": "paused", "time": NOW, "step": 610, "answers": [request.name]})
    run.poll()
    (outcome,) = requests.settle()
    assert (outcome.is_success, outcome.text) == (True, "a: paused at step 610")
    assert requests.waiting(run) == []


def test_a_request_to_a_replaced_trainer_is_settled(tmp_path):
    path = write_run(tmp_path, "a")
    run, requests = open_state(path), PendingRequests()
    requests.ask(run, "sample")
    append(path / "events.jsonl", {"event": "resumed", "time": NOW, "step": 500})
    run.poll()
    (outcome,) = requests.settle()
    assert "another trainer" in outcome.text
    assert requests.pending == []


def test_a_failed_request_is_reported_as_failed(tmp_path):
    path = write_run(tmp_path, "a")
    run, requests = open_state(path), PendingRequests()
    request = requests.ask(run, "sample")
    append(
        path / "events.jsonl",
        {"event": "warning", "message": "the requested sample failed: x", "answers": [request.name]},
    )
    run.poll()
    (outcome,) = requests.settle()
    assert (outcome.is_success, outcome.text) == (False, "a: the requested sample failed: x")


def test_an_unanswered_request_is_reported_and_withdrawn_at_the_end(tmp_path):
    clock = FakeClock()
    path = write_run(tmp_path, "a")
    run, requests = open_state(path, clock), PendingRequests()
    requests.ask(run, "sample")
    clock.advance(LATE_AFTER + 1)
    (late,) = requests.settle()
    assert not late.is_success
    assert requests.settle() == []
    append(path / "events.jsonl", {"event": "finished", "time": NOW, "step": 1200})
    run.poll()
    (ended,) = requests.settle()
    assert "no answer to sample; the run is finished" in ended.text
    assert os.listdir(path / "control") == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (90_061, "1 d 1:01:01"), (-5, "0:00")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
