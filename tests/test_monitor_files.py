"""What the dashboard reads: files that grow, tear, vanish and lie, and histories of any length."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import time

import pytest
from golden_runs import NOW, metrics, touch, write_run, write_runs, write_sheet
from PIL import Image

from colddiff_cli.monitor import chart, history, paper
from colddiff_cli.monitor.desk import LONG, Desk
from colddiff_cli.monitor.feed import Feed, newest
from colddiff_cli.monitor.history import MOST_BINS, TAIL, History, Point, points, smoothed
from colddiff_cli.monitor.machine import Machine
from colddiff_cli.monitor.sheets import Sheets, arrange
from colddiff_cli.monitor.watched import HUNG_AFTER, STALLED_AFTER, Clock, Watched, duration
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
        watched = Watched(runs.Run(path), Clock(lambda: hands.wall, lambda: hands.ticking))
        watched.poll()
        return watched

    return make


def append(path, *lines):
    with path.open("a") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def test_a_feed_takes_whole_lines_only_and_counts_what_is_none(tmp_path):
    path = tmp_path / "events.jsonl"
    feed = Feed(path)
    assert feed.poll() == 0
    append(path, {"event": "started"}, '{"event": "samp')
    assert feed.poll() == 1
    append(path, 'le"}\n', "\x00\x00 garbage\n", "[1, 2]\n")
    assert feed.poll() == 1
    assert [row["event"] for row in feed.rows] == ["started", "sample"]
    assert feed.bad == 2
    assert feed.poll() == 0


@pytest.mark.parametrize("how", ["shorter", "another"])
def test_a_file_that_began_anew_is_read_anew(tmp_path, how):
    path = tmp_path / "events.jsonl"
    append(path, {"event": "a"}, {"event": "b"})
    feed = Feed(path)
    feed.poll()
    if how == "shorter":
        path.write_text('{"event": "c"}\n')
    else:  # as long as before, but another file
        (tmp_path / "draft").write_text('{"event": "c"}\n{"event": "d"}\n')
        (tmp_path / "draft").replace(path)
    feed.poll()
    assert feed.rows[0] == {"event": "c"}
    assert {"event": "a"} not in feed.rows


def test_the_newest_lines_of_a_long_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, *[{"step": step} for step in range(5000)], '{"step": 50')
    found = newest(path)
    assert found[-1] == {"step": 4999}
    assert [row["step"] for row in found] == list(range(5000 - len(found), 5000))
    assert newest(tmp_path / "nothing") == []


def long_file(path, lines, spikes=()):
    rows = (metrics(step) | ({"loss": 9.0} if step in spikes else {}) for step in range(1, lines + 1))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_all(found):
    for _ in range(1000):
        found.advance(0.05)
        if found.share == 1:
            return found
    raise AssertionError("it does not come to an end")


def test_a_long_history_keeps_every_spike_and_every_line(tmp_path):
    spikes = {777, 12_345, 19_990}
    long_file(tmp_path / "m", 20_000, spikes)
    found = read_all(History(tmp_path / "m"))
    assert found.lines == 20_000
    assert found.span() == (1, 20_000)
    assert len(found.bins) <= MOST_BINS * 3 // 2
    high = [point for point in points(found.bins, "loss") if point.high == 9.0]
    assert len(high) == 3
    assert all(any(point.first <= spike <= point.last for spike in spikes) for point in high)
    assert all(a.last < b.first and a.end == b.start for a, b in zip(found.bins, found.bins[1:], strict=False))
    total = sum(point.mean * point.lines for point in points(found.bins, "grad_norm"))
    assert total == pytest.approx(sum(metrics(step)["grad_norm"] for step in range(1, 20_001)), rel=1e-9)
    assert found.series() == [
        "loss",
        *[f"loss_by_severity/{n}" for n in (1, 2, 3, 4)],
        "grad_norm",
        "images_per_second",
        "lr",
    ]


def test_a_long_history_shows_its_end_at_once_and_its_whole_course_early(tmp_path):
    long_file(tmp_path / "m", 30_000)
    found = History(tmp_path / "m")
    found.advance(0)
    assert found.span()[1] == 30_000
    assert TAIL / 2 < sum(bin.end - bin.start for bin in found.bins) <= 2 * TAIL
    for _ in range(1000):
        if found.share < 0.1:
            found.advance(0.001)
    gaps = [b.first - a.last for a, b in zip(found.bins, found.bins[1:], strict=False)]
    assert max(gaps) < 30_000 / 4  # a tenth of it, spread over all


def test_a_closer_look_reads_the_lines_themselves(tmp_path):
    long_file(tmp_path / "m", 20_000, spikes={5005})
    found = read_all(History(tmp_path / "m"))
    near = points(found.between(5000, 5010), "loss")
    assert {point.first for point in near} >= set(range(5000, 5011))
    assert [point.first for point in near if point.high == 9.0] == [5005]
    assert all(point.first == point.last for point in near)


def test_a_history_follows_and_starts_anew_with_its_file(tmp_path):
    path = tmp_path / "m"
    found = History(path)
    assert not found.advance(1)
    long_file(path, 10)
    assert found.advance(1)
    append(path, metrics(11), '{"step": 12, "loss"')
    assert found.advance(1)
    assert found.span() == (1, 11)
    append(path, ": 0.5}\nrubbish\n", {"loss": 1.0})
    found.advance(1)
    assert (found.span(), found.lines, found.bad) == ((1, 12), 12, 2)
    long_file(tmp_path / "draft", 5)
    (tmp_path / "draft").replace(path)  # as a resumed trainer does
    found.advance(1)
    assert (found.span(), found.lines) == ((1, 5), 5)


def test_following_for_long_keeps_bins_few_and_even(tmp_path):
    path = tmp_path / "m"
    found = History(path)
    for part in range(60):
        append(path, *[{"step": part * 200 + n, "loss": 1.0} for n in range(200)])
        found.advance(1)
    assert found.lines == 12_000
    assert len(found.bins) <= MOST_BINS * 3 // 2
    assert max(bin.lines for bin in found.bins) <= 4 * 12_000 / len(found.bins)


def test_what_is_no_number_is_left_out():
    rows = [
        {"step": 1, "loss": math.nan, "a": True, "b": None, "c": "x", "d": [1, None]},
        {"step": 2, "loss": 3, "d": [2, 5]},
    ]
    assert history.extremes(rows) == {"loss": (3, 3, 3, 1), "d/1": (1, 2, 3, 2), "d/2": (5, 5, 5, 1)}


def test_smoothing_is_the_debiased_average():
    series = [Point(n, n, v, v, v, 1) for n, v in enumerate([1.0, 3.0, 5.0])]
    kept = [point.mean for point in smoothed(series, 0.5)]
    assert kept == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75, (0.125 + 0.75 + 2.5) / 0.875])
    assert [point.mean for point in smoothed(series, 0.0)] == [1.0, 3.0, 5.0]


def dots(text):
    return [
        [ord(sign) - chart.BRAILLE if ord(sign) >= chart.BRAILLE else 0 for sign in row]
        for row in text.plain.split("\n")
    ]


@pytest.mark.parametrize(("width", "height"), [(17, 5), (80, 12), (300, 60)])
@pytest.mark.parametrize("is_log", [False, True])
def test_a_chart_fills_its_space_and_shows_every_spike(width, height, is_log):
    numbers = random.Random(0)
    series = [Point(n, n, v, v, v, 1) for n in range(5000) for v in [9.0 if n == 3210 else 0.1 + numbers.random() / 50]]
    text = chart.draw([chart.Line(series, "red", "1")], chart.View(0, 4999, is_log), width, height)
    rows = text.plain.split("\n")
    assert len(rows) == height
    assert all(len(row) <= width for row in rows)
    top = dots(text)[0]
    assert [place for place, bits in enumerate(top) if bits] == pytest.approx(
        [chart.AXIS + 3210 / 5000 * (width - chart.AXIS)], abs=1
    )


def test_a_chart_of_nothing_and_of_one_point_stands():
    assert "nothing logged" in chart.draw([], chart.View(0, 10), 60, 8).plain
    one = [Point(5, 5, 0.5, 0.5, 0.5, 1)]
    assert any(any(row) for row in dots(chart.draw([chart.Line(one, "red")], chart.View(0, 10), 60, 8)))
    assert "nothing" in chart.draw([chart.Line([Point(5, 5, 0, 0, 0, 1)], "red")], chart.View(0, 10, True), 60, 8).plain
    chart.draw([chart.Line(one, "red")], chart.View(0, 10), 3, 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (1234, "1234"), (12345, "12.35k"), (2.5e6, "2.5M"), (1e-5, "1e-5"), (3e9, "3e9")],
)
def test_short_numbers(value, text):
    assert chart.short(value) == text


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
    (path / "lock").write_text(json.dumps({"pid": trainer.pid, "host": runs.socket.gethostname()}))
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
    (path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": runs.socket.gethostname()}))
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
    watched.history = History(path / "metrics.jsonl")
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
    watched, desk = watch(path), Desk()
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
    text = text.replace(b'"x"', json.dumps(runs.socket.gethostname()).encode())
    (path / "lock").write_bytes(text)
    touch(path, 1)
    assert watch(path).state == "live"


def test_what_is_drawn_does_not_hang_on_the_newest_line(tmp_path):
    long_file(tmp_path / "m", 20)
    append(tmp_path / "m", metrics(21) | {"loss_by_severity": [1.0, None, 3.0, 4.0], "grad_norm": None}, "rubbish\n")
    found = History(tmp_path / "m")
    found.advance(1)
    assert found.series()[:5] == ["loss", *[f"loss_by_severity/{band}" for band in (1, 2, 3, 4)]]
    assert "grad_norm" in found.series()
    fresh = History(tmp_path / "late")
    rows = [metrics(n) | {"loss_by_severity": [1.0, None if n < 3 else 2.0, 3.0, None]} for n in range(5)]
    append(tmp_path / "late", *rows)
    fresh.advance(1)
    assert [name for name in fresh.series() if "/" in name] == [f"loss_by_severity/{band}" for band in (1, 2, 3)]


def test_garbage_between_lines_does_not_make_bins_many(tmp_path):
    found = History(tmp_path / "m")
    for part in range(30):
        lines = [line for n in range(200) for line in ({"step": part * 200 + n, "loss": 1.0}, "rubbish\n")]
        append(tmp_path / "m", *lines)
        found.advance(1)
    assert (found.lines, found.bad) == (6000, 6000)
    assert len(found.bins) <= MOST_BINS * 3 // 2


def test_a_history_stays_when_its_file_goes(tmp_path):
    long_file(tmp_path / "m", 20)
    found = History(tmp_path / "m")
    found.advance(1)
    (tmp_path / "m").unlink()
    assert not found.advance(1)
    assert found.lines == 20


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
    watched, desk = watch(path), Desk()
    desk.ask(watched, "sample")
    append(path / "events.jsonl", {"event": "resumed", "time": NOW, "step": 500})
    watched.poll()
    (outcome,) = desk.settle()
    assert "another trainer" in outcome.text
    assert desk.open == []


def test_a_request_that_went_wrong_is_told_as_that(tmp_path, watch):
    path = write_run(tmp_path, "a")
    watched, desk = watch(path), Desk()
    request = desk.ask(watched, "sample")
    append(path / "events.jsonl", {"event": "warning", "message": "no sample as asked: x", "answers": [request.name]})
    watched.poll()
    (outcome,) = desk.settle()
    assert (outcome.is_good, outcome.text) == (False, "a: no sample as asked: x")


@pytest.mark.parametrize(("low", "high"), [(0.0052, 0.0097), (0.05, 0.3), (1e-5, 1e3), (0.0611, 0.0612)])
@pytest.mark.parametrize("is_log", [True, False])
def test_the_axis_tells_at_least_two_values(low, high, is_log):
    series = [Point(0, 0, low, low, low, 1), Point(9, 9, high, high, high, 1)]
    rows = chart.draw([chart.Line(series, "red")], chart.View(0, 9, is_log), 60, 16).plain.split("\n")
    labels = [row[: chart.AXIS - 1].strip() for row in rows[:-1] if row[chart.AXIS - 1] == "┤"]
    assert len(set(labels)) >= 2
    assert all(len(label) <= 7 for label in labels)


def test_sheets_are_found_by_step_and_half_a_one_waits(tmp_path):
    path = write_run(tmp_path, "a")
    for step in (1000, 200):
        write_sheet(path, step)
    (path / "samples" / ".step-000300-draft.png").write_bytes(b"draft")
    sheets = Sheets(path / "samples")
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
    sheet = Sheets(path / "samples").load("step-000600.png")
    made = arrange(sheet, width, height)
    assert made.picture.width <= max(width, 8)
    assert made.picture.height <= height
    assert [name for name, _ in made.heads][:4] == ["degraded", "direct", "sampled", "original"]
    assert [left for _, left in made.heads] == sorted(left for _, left in made.heads)


def test_pictures_are_shown_pixel_for_pixel_where_they_fit(tmp_path):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    sheet = Sheets(path / "samples").load("step-000600.png")
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
    made = arrange(Sheets(path / "samples").load("step-000600.png"), 60, 40)
    assert made.heads == []
    assert made.picture.width <= 60


def test_a_request_is_settled_by_the_trainers_event_alone(tmp_path, watch):
    path = write_run(tmp_path, "a")
    watched, desk = watch(path), Desk()
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
    watched, desk = watch(path), Desk()
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
    code = "import sys, colddiff_cli.monitor.app, colddiff_cli.monitor.paper, textual_image.widget; "
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


def test_a_line_without_end_costs_little(tmp_path):
    with (tmp_path / "m").open("wb") as file:
        file.write(b"x" * 30_000_000 + b"\n" + json.dumps(metrics(7)).encode() + b"\n")
    began = time.perf_counter()
    found = read_all(History(tmp_path / "m"))
    assert (found.lines, found.span()) == (1, (7, 7))
    assert time.perf_counter() - began < 10
    feed = Feed(tmp_path / "m")
    feed.poll()
    assert [row["step"] for row in feed.rows] == [7]


def test_nothing_in_a_file_is_obeyed_by_the_terminal(tmp_path, watch):
    path = write_run(tmp_path, "a\x1b[31m")
    append(path / "events.jsonl", {"event": "warning", "message": "\x1b[2J \x9b31m \x07 \ud800 end"})
    text = paper.frame(watch(path), [], 80).plain
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert "end" in text


def test_the_machine_is_read_with_and_without_a_trainer_on_it():
    machine = Machine()
    here = runs.Holder(os.getpid(), runs.socket.gethostname(), 0.0)
    for _ in range(2):
        readings = dict(machine.read(here))
        assert readings["process"] == str(os.getpid())
        assert re.fullmatch(r"\d+ % CPU, \d+\.\d GB", readings["trainer"])
        assert re.fullmatch(r"\d+ % of \d+ cores", readings["CPU"])
        assert re.fullmatch(r"\d+\.\d of \d+\.\d GB", readings["memory"])
    for nobody in (None, runs.Holder(os.getpid(), "elsewhere", 0.0), runs.Holder(2**22 + 7, here.host, 0.0)):
        assert "trainer" not in dict(machine.read(nobody))
