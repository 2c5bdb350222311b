"""The charts of `degrade --describe` and `eval --by-severity`, as golden text at two widths."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from colddiff_cli.console import plots
from colddiff_cli.console.screen import Screen

GOLDEN = Path(__file__).parents[1] / "golden" / "plots"
REMAINS = [
    {
        "t": t,
        "rmse": t / 300,
        "gain_low": 1 - 0.006 * t,
        "gain_mid": math.exp(-t / 8),
        "kept": 1.0,
        "colour": 1 - 0.0068 * t,
        "ssim": math.exp(-t / 33),
    }
    for t in range(51)
]
KINDS = ("degraded", "direct", "sampled", "naive")
SEVERITIES = [
    {"t": t, "metrics": {kind: {"rmse": (4 - place) * math.sqrt(t) / 50} for place, kind in enumerate(KINDS)}}
    for t in range(1, 11)
]


def shown(show, *arguments, width=80, encoding="utf-8", **options):
    """Return what a plot prints on a console of that width."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    screen = Screen()
    screen.console = Console(file=stream, width=width, highlight=False, soft_wrap=True, **options)
    show(screen, *arguments)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("name", "show", "arguments"),
    [
        ("describe", plots.show_remains, [REMAINS]),
        ("by-severity", plots.show_severities, [SEVERITIES, KINDS]),
    ],
)
def test_plots_look_as_before(name, show, arguments, width, pytestconfig):
    text = shown(show, *arguments, width=width)
    path = GOLDEN / f"{name}-{width}.txt"
    if pytestconfig.getoption("update_golden"):
        path.write_text(text)
    assert text == path.read_text(), "look at it, then: pytest --update-golden"
    assert max(len(line) for line in text.splitlines()) <= width


def test_colors_go_to_color_terminals_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = shown(plots.show_remains, REMAINS, force_terminal=True, color_system="standard")
    assert "\x1b[92m" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(plots.show_remains, REMAINS, force_terminal=True, color_system="standard")
    codes = {code for match in re.findall(r"\x1b\[([0-9;]*)m", plain) for code in match.split(";")}
    assert codes <= {"0", "1", "2"}  # bold and dim
    assert "\x1b" not in shown(plots.show_remains, REMAINS)


@pytest.mark.parametrize(("width", "encoding"), [(12, "utf-8"), (80, "ascii"), (80, "latin-1")])
def test_the_table_stands_alone_if_no_chart_can_be_drawn(width, encoding):
    text = shown(plots.show_remains, REMAINS, width=width, encoding=encoding)
    assert "severity t" not in text
    assert len(text.splitlines()) >= plots.TABLE_ROWS


def test_values_that_are_not_numbers_leave_a_gap():
    rows = [
        {"t": t, "metrics": {"direct": {"rmse": None if t == 2 else math.nan if t == 3 else 0.1}}} for t in range(5)
    ]
    assert "1 direct" in shown(plots.show_severities, rows, ["direct"])
    nothing = [{"t": 1, "metrics": {"direct": {"rmse": None}}}]
    assert shown(plots.show_severities, nothing, ["direct"]) == ""
    one = [{"t": 1, "metrics": {"direct": {"rmse": 0.0}}}]
    assert "severity t" in shown(plots.show_severities, one, ["direct"])


def test_unmeasured_columns_are_left_out():
    rows = [row | {"colour": None, "ssim": None if row["t"] == 6 else row["ssim"]} for row in REMAINS]
    text = shown(plots.show_remains, rows)
    assert "color kept" not in text
    assert re.search(r"^ 6 .* -$", text, re.MULTILINE)
