"""Metrics of any length: files that grow and tear, and bins that keep every spike."""

from __future__ import annotations

import json
import math
import time

import pytest
from golden_runs import append, metrics

from colddiff_cli.monitor.data import metrics_history
from colddiff_cli.monitor.data.jsonl import JsonLines, newest
from colddiff_cli.monitor.data.metrics_history import (
    MAX_BINS,
    TAIL_BYTES,
    MetricsHistory,
    MetricsPoint,
    points,
    smoothed,
)


def test_only_whole_lines_are_read_and_bad_ones_counted(tmp_path):
    path = tmp_path / "events.jsonl"
    lines = JsonLines(path)
    assert lines.poll() == 0
    append(path, {"event": "started"}, '{"event": "samp')
    assert lines.poll() == 1
    append(path, 'le"}\n', "\x00\x00 garbage\n", "[1, 2]\n")
    assert lines.poll() == 1
    assert [row["event"] for row in lines.rows] == ["started", "sample"]
    assert lines.bad == 2
    assert lines.poll() == 0


@pytest.mark.parametrize("how", ["shorter", "another"])
def test_a_replaced_file_is_read_from_its_start(tmp_path, how):
    path = tmp_path / "events.jsonl"
    append(path, {"event": "a"}, {"event": "b"})
    lines = JsonLines(path)
    lines.poll()
    if how == "shorter":
        path.write_text('{"event": "c"}\n')
    else:  # as long as before, but another file
        (tmp_path / "draft").write_text('{"event": "c"}\n{"event": "d"}\n')
        (tmp_path / "draft").replace(path)
    lines.poll()
    assert lines.rows[0] == {"event": "c"}
    assert {"event": "a"} not in lines.rows


def test_the_newest_lines_of_a_long_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, *[{"step": step} for step in range(5000)], '{"step": 50')
    rows = newest(path)
    assert rows[-1] == {"step": 4999}
    assert [row["step"] for row in rows] == list(range(5000 - len(rows), 5000))
    assert newest(tmp_path / "nothing") == []


def long_file(path, lines, spikes=()):
    rows = (metrics(step) | ({"loss": 9.0} if step in spikes else {}) for step in range(1, lines + 1))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_all(history):
    for _ in range(1000):
        history.advance(0.05)
        if history.share == 1:
            return history
    raise AssertionError("the file is not read to its end")


SPIKES = {777, 5005, 12_345, 19_990}


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A file of 20,000 lines; do not write to it."""
    path = tmp_path_factory.mktemp("long") / "m"
    long_file(path, 20_000, SPIKES)
    return path


def test_a_long_history_keeps_every_spike_and_every_line(long):
    history = read_all(MetricsHistory(long))
    assert history.lines == 20_000
    assert history.span() == (1, 20_000)
    assert len(history.bins) <= MAX_BINS * 3 // 2
    high = [point for point in points(history.bins, "loss") if point.high == 9.0]
    assert len(high) == 4
    assert all(any(point.first <= spike <= point.last for spike in SPIKES) for point in high)
    assert all(a.last < b.first and a.end == b.start for a, b in zip(history.bins, history.bins[1:], strict=False))
    total = sum(point.mean * point.lines for point in points(history.bins, "grad_norm"))
    assert total == pytest.approx(sum(metrics(step)["grad_norm"] for step in range(1, 20_001)), rel=1e-9)
    assert history.series() == [
        "loss",
        *[f"loss_by_severity/{n}" for n in (1, 2, 3, 4)],
        "grad_norm",
        "images_per_second",
        "lr",
    ]


def test_a_long_history_shows_its_end_first_and_the_whole_curve_soon(long):
    history = MetricsHistory(long)
    history.advance(0)
    assert history.span()[1] == 20_000
    assert TAIL_BYTES / 2 < sum(bin.end - bin.start for bin in history.bins) <= 2 * TAIL_BYTES
    for _ in range(1000):
        if history.share < 0.1:
            history.advance(0.001)
    gaps = [b.first - a.last for a, b in zip(history.bins, history.bins[1:], strict=False)]
    assert max(gaps) < 20_000 / 4  # a tenth of the file, spread over all of it
    assert history.span()[0] < 20_000 / 4


def test_a_zoomed_view_reads_single_lines(long):
    history = read_all(MetricsHistory(long))
    near = points(history.between(5000, 5010), "loss")
    assert {point.first for point in near} >= set(range(5000, 5011))
    assert [point.first for point in near if point.high == 9.0] == [5005]
    assert all(point.first == point.last for point in near)


def test_a_history_follows_its_file_and_restarts_with_it(tmp_path):
    path = tmp_path / "m"
    history = MetricsHistory(path)
    assert not history.advance(1)
    long_file(path, 10)
    assert history.advance(1)
    append(path, metrics(11), '{"step": 12, "loss"')
    assert history.advance(1)
    assert history.span() == (1, 11)
    append(path, ": 0.5}\nrubbish\n", {"loss": 1.0})
    history.advance(1)
    assert (history.span(), history.lines, history.bad) == ((1, 12), 12, 2)
    long_file(tmp_path / "draft", 5)
    (tmp_path / "draft").replace(path)  # as a resumed trainer does
    history.advance(1)
    assert (history.span(), history.lines) == ((1, 5), 5)


def test_bins_stay_few_and_even_as_the_file_grows(tmp_path):
    path = tmp_path / "m"
    history = MetricsHistory(path)
    for part in range(60):
        append(path, *[{"step": part * 200 + n, "loss": 1.0} for n in range(200)])
        history.advance(1)
    assert history.lines == 12_000
    assert len(history.bins) <= MAX_BINS * 3 // 2
    assert max(bin.lines for bin in history.bins) <= 4 * 12_000 / len(history.bins)


def test_values_that_are_not_numbers_are_skipped():
    rows = [
        {"step": 1, "loss": math.nan, "a": True, "b": None, "c": "x", "d": [1, None]},
        {"step": 2, "loss": 3, "d": [2, 5]},
    ]
    assert metrics_history.extremes(rows) == {"loss": (3, 3, 3, 1), "d/1": (1, 2, 3, 2), "d/2": (5, 5, 5, 1)}


def test_smoothing_is_the_debiased_average():
    series = [MetricsPoint(n, n, v, v, v, 1) for n, v in enumerate([1.0, 3.0, 5.0])]
    kept = [point.mean for point in smoothed(series, 0.5)]
    assert kept == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75, (0.125 + 0.75 + 2.5) / 0.875])
    assert [point.mean for point in smoothed(series, 0.0)] == [1.0, 3.0, 5.0]


def test_the_series_do_not_depend_on_the_newest_line(tmp_path):
    long_file(tmp_path / "m", 20)
    append(tmp_path / "m", metrics(21) | {"loss_by_severity": [1.0, None, 3.0, 4.0], "grad_norm": None}, "rubbish\n")
    history = MetricsHistory(tmp_path / "m")
    history.advance(1)
    assert history.series()[:5] == ["loss", *[f"loss_by_severity/{band}" for band in (1, 2, 3, 4)]]
    assert "grad_norm" in history.series()
    fresh = MetricsHistory(tmp_path / "late")
    rows = [metrics(n) | {"loss_by_severity": [1.0, None if n < 3 else 2.0, 3.0, None]} for n in range(5)]
    append(tmp_path / "late", *rows)
    fresh.advance(1)
    assert [name for name in fresh.series() if "/" in name] == [f"loss_by_severity/{band}" for band in (1, 2, 3)]


def test_garbage_between_lines_does_not_add_bins(tmp_path):
    history = MetricsHistory(tmp_path / "m")
    for part in range(30):
        lines = [line for n in range(200) for line in ({"step": part * 200 + n, "loss": 1.0}, "rubbish\n")]
        append(tmp_path / "m", *lines)
        history.advance(1)
    assert (history.lines, history.bad) == (6000, 6000)
    assert len(history.bins) <= MAX_BINS * 3 // 2


def test_a_history_survives_its_file(tmp_path):
    long_file(tmp_path / "m", 20)
    history = MetricsHistory(tmp_path / "m")
    history.advance(1)
    (tmp_path / "m").unlink()
    assert not history.advance(1)
    assert history.lines == 20


def test_an_endless_line_costs_little(tmp_path):
    with (tmp_path / "m").open("wb") as file:
        file.write(b"x" * 30_000_000 + b"\n" + json.dumps(metrics(7)).encode() + b"\n")
    began = time.perf_counter()
    history = read_all(MetricsHistory(tmp_path / "m"))
    assert (history.lines, history.span()) == (1, (7, 7))
    assert time.perf_counter() - began < 10
    lines = JsonLines(tmp_path / "m")
    lines.poll()
    assert [row["step"] for row in lines.rows] == [7]
