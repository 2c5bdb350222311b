"""What the dashboard reads of a run: files that tear, vanish and lie, clocks that are set, trainers that are gone."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest
from golden_runs import NOW, append, metrics, touch, write_run, write_runs, write_sheet
from PIL import Image

from colddiff_cli.console import chart
from colddiff_cli.monitor.data.machine import MachineReadings
from colddiff_cli.monitor.data.metrics_history import MetricsHistory, points
from colddiff_cli.monitor.data.requests import LONG, PendingRequests
from colddiff_cli.monitor.data.run_state import HUNG_AFTER, STALLED_AFTER, RunState, WallClock, duration
from colddiff_cli.monitor.data.sample_sheets import SampleSheets, arrange
from colddiff_cli.monitor.render import frame as paper
from colddiff_core import runs


class Hands:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.wall, self.ticking = NOW, 1000.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.ticking += seconds


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def watch(hands):
    def make(path):
        watched = RunState(runs.Run(path), WallClock(lambda: hands.wall, lambda: hands.ticking))
        watched.poll()
        return watched

    return make


def test_every_state_is_told_as_it_is(tmp_path, watch):
    write_runs(tmp_path)
    told = {path.name: watch(path).state for path in runs.listed(tmp_path)}
    assert told == {
        "digits-blur": "live",
        "digits-noise": "finished",
        "digits-mask": "paused",
        "mnist-blur": "stalled",
        "mnist-snow": "failed",
        "faces": "stopped",
    }
    assert watch(tmp_path / "mnist-snow").reason == "The loss is nan at step 90"


def test_progress_comes_from_the_newest_lines(tmp_path, watch):
    watched = watch(write_run(tmp_path, "a"))
    assert (watched.step, watched.steps) == (600, 1200)
    assert watched.epoch == pytest.approx(600 * 64 / 1497)
    assert watched.seconds_left == pytest.approx(600 * 64 / 730, rel=1e-6)


def test_a_trainer_that_is_killed_is_shown_as_stalled_within_thirty_seconds(tmp_path, watch, hands):
    path = write_run(tmp_path, "a")
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (path / "lock").write_text(json.dumps({"pid": trainer.pid, "host": socket.gethostname()}))
    touch(path, 0)
    watched = watch(path)
    assert watched.state == "live"
    hands.pass_by(1)
    os.utime(path / "lock", (NOW + 1, NOW + 1))
    watched.poll()
    trainer.kill()
    os.waitid(os.P_PID, trainer.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked after it
    hands.pass_by(4)
    watched.poll()
    assert (watched.state, watched.has_trainer) == ("stalled", False)
    assert f"process {trainer.pid} is gone" in watched.reason
    trainer.wait()
    watched.poll()
    assert watched.state == "stalled"


def test_a_trainer_of_another_machine_is_judged_by_its_signs_of_life(tmp_path, watch, hands):
    path = write_run(tmp_path, "a")
    watched = watch(path)
    hands.pass_by(STALLED_AFTER - 2)
    watched.poll()
    assert watched.state == "live"
    hands.pass_by(3)
    watched.poll()
    assert watched.state == "stalled"
    touch(path, -60)
    watched.poll()
    assert watched.state == "live"


@pytest.mark.parametrize("jump", [-86_400, 86_400])
def test_a_clock_that_is_set_does_not_change_who_lives(tmp_path, watch, hands, jump):
    path = write_run(tmp_path, "a")
    watched = watch(path)
    hands.wall += jump
    for _ in range(10):
        hands.pass_by(5)
        os.utime(path / "lock", (hands.wall, hands.wall))
        watched.poll()
        assert watched.state == "live"
    hands.pass_by(STALLED_AFTER + 1)
    watched.poll()
    assert watched.state == "stalled"
    events = [{"event": "checkpoint", "time": NOW, "step": 1}, {"event": "sample", "time": NOW - 3600, "step": 1}]
    append(path / "events.jsonl", *events)
    watched.poll()
    assert any("set back by 1:00:00" in oddity for oddity in watched.oddities)


def test_files_ahead_of_the_clock_are_told_of(tmp_path, watch):
    assert any("ahead of this machine's clock" in told for told in watch(write_run(tmp_path, "a", age=-500)).oddities)


def test_a_trainer_that_is_known_to_be_there_is_given_longer(tmp_path, watch, hands):
    path = write_run(tmp_path, "a")
    (path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    touch(path, 0)
    watched = watch(path)
    hands.pass_by(HUNG_AFTER - 1)
    watched.poll()
    assert watched.state == "live"
    hands.pass_by(2)
    watched.poll()
    assert (watched.state, watched.has_trainer) == ("stalled", True)  # it may still answer
    hands.pass_by(10 * HUNG_AFTER)
    watched.poll()
    assert (watched.state, watched.has_trainer) == ("stalled", False)


def test_slow_steps_are_given_time(tmp_path, watch, hands):
    path = write_run(tmp_path, "a")
    append(path / "metrics.jsonl", metrics(610) | {"images_per_second": 0.5})  # 128 seconds a step
    touch(path, 1)
    watched = watch(path)
    hands.pass_by(200)
    watched.poll()
    assert watched.state == "live"
    hands.pass_by(200)
    watched.poll()
    assert watched.state == "stalled"


def test_damage_is_told_and_survived(tmp_path, watch):
    import shutil

    path = write_run(tmp_path, "a")
    append(path / "events.jsonl", "rubbish\n", '{"event": "half')
    (path / "run.toml").write_text("not = [toml")
    append(path / "metrics.jsonl", "\x00\x00\n")
    watched = watch(path)
    watched.history = MetricsHistory(path / "metrics.jsonl")
    watched.history.advance(1)
    watched.poll()
    told = " ".join(watched.oddities)
    assert "events.jsonl: 1 line that cannot be read" in told
    assert "metrics.jsonl: 1 line that cannot be read" in told
    assert "run.toml" in told
    assert watched.step == 600
    shutil.rmtree(path)
    watched.poll()
    assert watched.state == "gone"
    assert watched.state_table()["checkpoint"] is None
    write_run(tmp_path, "a")
    watched.poll()
    assert watched.state == "live"


@pytest.mark.parametrize("text", ['name = 3\n[train]\nsteps = "many"\n', "train = 7\n", ""])
def test_a_configuration_of_wrong_types_is_lived_with(tmp_path, watch, text):
    path = write_run(tmp_path, "a")
    (path / "run.toml").write_text(text)
    watched = watch(path)
    assert watched.steps == 0
    assert watched.seconds_left is None
    paper.frame(watched, [watched], 80)


def test_events_of_wrong_types_are_lived_with(tmp_path, watch):
    path = write_run(tmp_path, "a")
    append(path / "events.jsonl", {"event": 7, "time": "noon", "step": "x"}, {"event": "sample", "answers": "no"}, {})
    append(path / "metrics.jsonl", {"step": "x"}, {"step": True, "loss": "y", "elapsed": None})
    watched, desk = watch(path), PendingRequests()
    desk.ask(watched, "pause")
    append(path / "events.jsonl", {"event": "sample", "answers": {"pause": 1}}, {"event": "paused", "answers": 7})
    watched.poll()
    assert desk.settle() == []
    assert "noon" not in paper.frame(watched, [watched], 80).plain
    json.dumps(watched.state_table(), allow_nan=False)


ODD = [
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
@pytest.mark.parametrize("line", ODD)
def test_lines_of_odd_values_are_lived_with(tmp_path, watch, file, line):
    path = write_run(tmp_path, "a")
    append(path / file, line + "\n", line + "\n")
    watched = watch(path)
    frame = paper.frame(watched, [watched], 100)
    assert "⠉" in frame.plain
    chart.draw([chart.Line(points(watched.history.bins, "loss"), "red")], chart.View(0, 700, True), 80, 12)
    json.dumps(watched.state_table(), allow_nan=False)


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b'{"pid": 1000000000000, "host": "x"}', b'{"pid": NaN, "host": 3}', b"[]", b'"']
)
def test_a_lock_of_odd_content_is_lived_with(tmp_path, watch, text):
    path = write_run(tmp_path, "a")
    text = text.replace(b'"x"', json.dumps(socket.gethostname()).encode())
    (path / "lock").write_bytes(text)
    touch(path, 1)
    assert watch(path).state == "live"


def test_the_newest_sheet_is_the_one_told_of_last(tmp_path, watch):
    path = write_run(tmp_path, "a")
    for step in (200, 900, 300):  # as after a resume from before step 300
        write_sheet(path, step)
    touch(path, 1)
    assert watch(path).newest_sheet == "step-000300.png"
    (path / "samples" / "step-000300.png").unlink()
    assert watch(path).newest_sheet == "step-000900.png"


def test_a_request_to_a_trainer_that_was_replaced_is_settled(tmp_path, watch):
    path = write_run(tmp_path, "a")
    watched, desk = watch(path), PendingRequests()
    desk.ask(watched, "sample")
    append(path / "events.jsonl", {"event": "resumed", "time": NOW, "step": 500})
    watched.poll()
    (outcome,) = desk.settle()
    assert "another trainer" in outcome.text
    assert desk.open == []


def test_a_request_that_went_wrong_is_told_as_that(tmp_path, watch):
    path = write_run(tmp_path, "a")
    watched, desk = watch(path), PendingRequests()
    request = desk.ask(watched, "sample")
    append(path / "events.jsonl", {"event": "warning", "message": "no sample as asked: x", "answers": [request.name]})
    watched.poll()
    (outcome,) = desk.settle()
    assert (outcome.is_good, outcome.text) == (False, "a: no sample as asked: x")


def test_sheets_are_found_by_step_and_half_a_one_waits(tmp_path):
    path = write_run(tmp_path, "a")
    for step in (1000, 200):
        write_sheet(path, step)
    (path / "samples" / ".step-000300-draft.png").write_bytes(b"draft")
    sheets = SampleSheets(path / "samples")
    assert sheets.names() == ["step-000200.png", "step-001000.png"]
    whole = (path / "samples" / "step-001000.png").read_bytes()
    (path / "samples" / "step-001000.png").write_bytes(whole[: len(whole) // 2])
    assert sheets.load("step-001000.png") is None
    (path / "samples" / "step-001000.png").write_bytes(whole)
    sheet = sheets.load("step-001000.png")
    assert (sheet.step, sheet.note["n"]) == (1000, 8)
    assert sheets.load("step-001000.png") is sheet
    assert sheets.load("step-000007.png") is None


@pytest.mark.parametrize(("width", "height"), [(40, 20), (76, 36), (130, 60), (300, 200), (9, 4)])
def test_a_sheet_is_laid_out_for_the_space_there_is(tmp_path, width, height):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    sheet = SampleSheets(path / "samples").load("step-000600.png")
    made = arrange(sheet, width, height)
    assert made.picture.width <= max(width, 8)
    assert made.picture.height <= height
    assert [name for name, _ in made.heads][:4] == ["degraded", "direct", "sampled", "original"]
    assert [left for _, left in made.heads] == sorted(left for _, left in made.heads)


def test_pictures_are_shown_pixel_for_pixel_where_they_fit(tmp_path):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    sheet = SampleSheets(path / "samples").load("step-000600.png")
    made = arrange(sheet, 76, 34)
    x, y = sheet.note["corners"]["original"][0]
    side, scale = sheet.note["tile"][0], sheet.note["scale"]
    own = sheet.picture.crop((x, y, x + side, y + side)).resize((side // scale,) * 2, Image.Resampling.NEAREST)
    left = dict(made.heads[:4])["original"]
    assert made.picture.crop((left, 0, left + 16, 16)).tobytes() == own.tobytes()


ODD_NOTES = [
    "",
    "[]",
    "[" * 100_000,
    '{"corners": 3}',
    '{"corners": {"a": [[0]]}, "tile": [8, 8], "scale": 0}',
    '{"corners": {"a": [[0, 0]]}, "tile": [-64, -64], "scale": -4}',
    '{"corners": {"a": [[1000000000000, 0]]}, "tile": [64, 64], "scale": 4}',
    '{"corners": {"a": [[-9, 0]]}, "tile": [64, 64], "scale": 4}',
    '{"corners": {"a": [[0, 0]]}, "tile": [1000000, 1000000], "scale": 1}',
    '{"corners": {"a": [[0, 0]]}, "tile": [1000000, 1], "scale": 1}',
    '{"corners": {"a": [[0, 0]]}, "tile": [200, 1], "scale": 1}',
    json.dumps({"corners": {str(n): [[0, 0]] for n in range(5000)}, "tile": [64, 64], "scale": 4}),
]


@pytest.mark.parametrize("note", ODD_NOTES)
def test_a_sheet_that_does_not_tell_its_layout_is_shown_whole(tmp_path, note):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    (path / "samples" / "step-000600.json").write_text(note)
    made = arrange(SampleSheets(path / "samples").load("step-000600.png"), 60, 40)
    assert made.heads == []
    assert made.picture.width <= 60


def test_a_request_is_settled_by_the_trainers_event_alone(tmp_path, watch):
    path = write_run(tmp_path, "a")
    watched, desk = watch(path), PendingRequests()
    request = desk.ask(watched, "pause")
    assert (path / "control" / request.name).exists()
    append(path / "events.jsonl", {"event": "paused", "time": NOW, "step": 600, "answers": ["pause.other"]})
    watched.poll()
    assert desk.settle() == []
    assert desk.waiting(watched) == ["pause"]
    append(path / "events.jsonl", {"event": "paused", "time": NOW, "step": 610, "answers": [request.name]})
    watched.poll()
    (outcome,) = desk.settle()
    assert (outcome.is_good, outcome.text) == (True, "a: paused at step 610")
    assert desk.waiting(watched) == []


def test_a_request_without_an_answer_is_told_of_and_withdrawn_with_the_run(tmp_path, watch, hands):
    path = write_run(tmp_path, "a")
    watched, desk = watch(path), PendingRequests()
    desk.ask(watched, "sample")
    hands.pass_by(LONG + 1)
    (late,) = desk.settle()
    assert not late.is_good
    assert desk.settle() == []
    append(path / "events.jsonl", {"event": "finished", "time": NOW, "step": 1200})
    watched.poll()
    (ended,) = desk.settle()
    assert "no answer to sample; the run is finished" in ended.text
    assert os.listdir(path / "control") == []


def test_a_frame_on_paper_says_what_matters(tmp_path, watch):
    write_runs(tmp_path)
    watched = [watch(path) for path in runs.listed(tmp_path)]
    text = paper.frame(watched[0], watched, 80).plain
    for part in (
        "digits-blur  ● live",
        "step 600 of 1,200",
        "⠉",
        "left out 2 training files",
        "step-000600.png",
        "✗ failed",
    ):
        assert part in text
    assert max(len(line) for line in text.split("\n")[:17]) <= 80  # below it stand events of any length


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (90_061, "1 d 1:01:01"), (-5, "0:00")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_it_opens_without_torch():
    code = "import sys, colddiff_cli.monitor.app, colddiff_cli.monitor.render.frame, textual_image.widget; "
    code += "print([name for name in ('torch', 'colddiff_core.experiment') if name in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "lock", "run.toml", "samples/step-000600.png"])
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path, watch, name):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    (path / name).unlink()
    os.mkfifo(path / name)
    watched = watch(path)
    paper.frame(watched, [watched], 80)
    watched.sheets.load("step-000600.png")
    (path / "samples" / "step-000600.json").unlink()
    os.mkfifo(path / "samples" / "step-000600.json")
    assert watched.sheets.load("step-000600.png") is None


def test_nothing_in_a_file_is_obeyed_by_the_terminal(tmp_path, watch):
    path = write_run(tmp_path, "a\x1b[31m")
    append(path / "events.jsonl", {"event": "warning", "message": "\x1b[2J \x9b31m \x07 \ud800 end"})
    text = paper.frame(watch(path), [], 80).plain
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert "end" in text


def test_the_machine_is_read_with_and_without_a_trainer_on_it():
    machine = MachineReadings()
    here = runs.LockHolder(os.getpid(), socket.gethostname(), 0.0)
    for _ in range(2):
        readings = dict(machine.read(here))
        assert readings["process"] == str(os.getpid())
        assert re.fullmatch(r"\d+ % CPU, \d+\.\d GB", readings["trainer"])
        assert re.fullmatch(r"\d+ % of \d+ cores", readings["CPU"])
        assert re.fullmatch(r"\d+\.\d of \d+\.\d GB", readings["memory"])
    for nobody in (None, runs.LockHolder(os.getpid(), "elsewhere", 0.0), runs.LockHolder(2**22 + 7, here.host, 0.0)):
        assert "trainer" not in dict(machine.read(nobody))
