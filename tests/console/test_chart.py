"""Braille charts: size, extremes, axes and marks."""

from __future__ import annotations

import random
import re

import pytest

from colddiff_cli.console import chart
from colddiff_cli.monitor.data.metrics_history import MetricsPoint


def dots(text):
    return [
        [ord(sign) - chart.BRAILLE if ord(sign) >= chart.BRAILLE else 0 for sign in row]
        for row in text.plain.split("\n")
    ]


@pytest.mark.parametrize(("width", "height"), [(17, 5), (80, 12), (300, 60)])
@pytest.mark.parametrize("is_log", [False, True])
def test_a_chart_fills_its_space_and_shows_every_spike(width, height, is_log):
    numbers = random.Random(0)
    series = [
        MetricsPoint(n, n, v, v, v, 1) for n in range(5000) for v in [9.0 if n == 3210 else 0.1 + numbers.random() / 50]
    ]
    text = chart.draw([chart.Line(series, "red", "1")], chart.View(0, 4999, is_log), width, height)
    rows = text.plain.split("\n")
    assert len(rows) == height
    assert all(len(row) <= width for row in rows)
    top = dots(text)[0]
    assert [place for place, bits in enumerate(top) if bits] == pytest.approx(
        [chart.AXIS + 3210 / 5000 * (width - chart.AXIS)], abs=1
    )


def test_no_points_and_one_point_can_be_drawn():
    assert "nothing logged" in chart.draw([], chart.View(0, 10), 60, 8).plain
    one = [MetricsPoint(5, 5, 0.5, 0.5, 0.5, 1)]
    assert any(any(row) for row in dots(chart.draw([chart.Line(one, "red")], chart.View(0, 10), 60, 8)))
    assert (
        "nothing"
        in chart.draw([chart.Line([MetricsPoint(5, 5, 0, 0, 0, 1)], "red")], chart.View(0, 10, True), 60, 8).plain
    )
    chart.draw([chart.Line(one, "red")], chart.View(0, 10), 3, 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (1234, "1234"), (12345, "12.35k"), (2.5e6, "2.5M"), (1e-5, "1e-5"), (3e9, "3e9")],
)
def test_short_numbers(value, text):
    assert chart.short(value) == text


@pytest.mark.parametrize(("low", "high"), [(0.0052, 0.0097), (0.05, 0.3), (1e-5, 1e3), (0.0611, 0.0612)])
@pytest.mark.parametrize("is_log", [True, False])
def test_the_axis_has_at_least_two_labels(low, high, is_log):
    series = [MetricsPoint(0, 0, low, low, low, 1), MetricsPoint(9, 9, high, high, high, 1)]
    rows = chart.draw([chart.Line(series, "red")], chart.View(0, 9, is_log), 60, 16).plain.split("\n")
    labels = [row[: chart.AXIS - 1].strip() for row in rows[:-1] if row[chart.AXIS - 1] == "┤"]
    assert len(set(labels)) >= 2
    assert all(len(label) <= 7 for label in labels)


def line(values, mark=""):
    return chart.Line([chart.Sample(x, y) for x, y in enumerate(values)], "red", mark)


def test_a_given_range_holds_whatever_the_values():
    view = chart.View(0, 9, values=(0, 1))
    for values in ([0.4] * 10, [0.9, -3, 7] * 3, []):
        rows = chart.draw([line(values)], view, 60, 12).plain.split("\n")
        labels = [row[: chart.AXIS - 1].strip() for row in rows[:-1] if row[chart.AXIS - 1] == "┤"]
        assert labels == ["1", "0.5", "0"]


def test_marks_of_lines_with_the_same_end_do_not_overlap():
    lines = [line([1, 0.5], str(number)) for number in range(1, 6)]
    rows = chart.draw(lines, chart.View(0, 1, values=(0, 1)), 60, 12).plain.split("\n")[:-1]
    marks = [character for row in rows for character in row[chart.AXIS :] if character.isdigit()]
    assert sorted(marks) == ["1", "2", "3", "4", "5"]
    assert not any(re.search(r"\d\d", row[chart.AXIS :]) for row in rows)


def test_the_x_label_is_part_of_the_height():
    rows = chart.draw([line([0, 1, 2])], chart.View(0, 2), 60, 12, x_label="severity t").plain.split("\n")
    assert len(rows) == 12
    assert rows[-1].strip() == "severity t"
    assert rows[-2].split() == ["0", "1", "2"]


def test_the_legend_has_each_line_in_its_style():
    legend = chart.legend([chart.Line([], "red", "1"), chart.Line([], "blue", "")], ["loss", "rate"])
    assert legend.plain == "1 loss   rate"
    assert [str(span.style) for span in legend.spans] == ["red", "blue"]
