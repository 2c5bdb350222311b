"""The benchmarks that count on the null GPU print their tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_launches
import pass_memory

pytestmark = pytest.mark.usefixtures("null_gpu")  # skips where it cannot be built


def rows(capsys):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]


def test_launches_are_printed_by_case_and_checkout(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["gpu_launches.py", "--before", str(Path(__file__).parents[2]), "train digits-blur"]
    )
    assert gpu_launches.main() == 0
    head, _, row = rows(capsys)
    assert head[2:] == [f"{name} {when}" for when in ("before", "now") for name in ("launches", "waits", "peak GiB")]
    assert row[:2] == ["`train digits-blur`", "32"]
    assert row[2:5] == row[5:]
    assert int(row[2].replace(",", "")) > 100
    assert row[3] == "0"


def test_the_estimate_of_a_pass_is_near_what_is_allocated(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pass_memory.py"])
    monkeypatch.setattr(pass_memory, "PRESETS", ("mnist-blur",))
    assert pass_memory.main() == 0
    _, _, row = rows(capsys)
    assert row[0] == "`mnist-blur`, 32"
    shares = [int(cell.partition("(")[2].removesuffix("%)")) for cell in row[1:]]
    assert all(0 <= share <= 30 for share in shares), row  # above the measurement, as the decision's table says
