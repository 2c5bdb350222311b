"""Sample sheets cut up and laid out, frames printed by `--once`, readings of the machine."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest
from dashboards import open_state
from golden_runs import write_run, write_runs, write_sheet
from PIL import Image

from colddiff_cli.monitor.data.machine import MachineReadings
from colddiff_cli.monitor.data.sample_sheets import SampleSheets, arrange
from colddiff_cli.monitor.render import frame
from colddiff_core import runs


def test_sheets_are_listed_by_step_and_partial_ones_wait(tmp_path):
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
    assert (sheet.step, sheet.metadata["n"]) == (1000, 8)
    assert sheets.load("step-001000.png") is sheet
    assert sheets.load("step-000007.png") is None


@pytest.mark.parametrize(("width", "height"), [(40, 20), (76, 36), (130, 60), (300, 200), (9, 4)])
def test_a_sheet_is_laid_out_for_the_screen(tmp_path, width, height):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    sheet = SampleSheets(path / "samples").load("step-000600.png")
    layout = arrange(sheet, width, height)
    assert layout.picture.width <= max(width, 8)
    assert layout.picture.height <= height
    assert [name for name, _ in layout.headings][:4] == ["degraded", "direct", "sampled", "original"]
    assert [left for _, left in layout.headings] == sorted(left for _, left in layout.headings)


def test_images_that_fit_are_shown_pixel_for_pixel(tmp_path):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    sheet = SampleSheets(path / "samples").load("step-000600.png")
    layout = arrange(sheet, 76, 34)
    x, y = sheet.metadata["corners"]["original"][0]
    side, scale = sheet.metadata["tile"][0], sheet.metadata["scale"]
    image = sheet.picture.crop((x, y, x + side, y + side)).resize((side // scale,) * 2, Image.Resampling.NEAREST)
    left = dict(layout.headings[:4])["original"]
    assert layout.picture.crop((left, 0, left + 16, 16)).tobytes() == image.tobytes()


ODD_METADATA = [
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


@pytest.mark.parametrize("metadata", ODD_METADATA)
def test_a_sheet_without_a_usable_layout_is_shown_whole(tmp_path, metadata):
    path = write_run(tmp_path, "a")
    write_sheet(path, 600)
    (path / "samples" / "step-000600.json").write_text(metadata)
    layout = arrange(SampleSheets(path / "samples").load("step-000600.png"), 60, 40)
    assert layout.headings == []
    assert layout.picture.width <= 60


def test_a_printed_frame_has_the_essentials(tmp_path):
    write_runs(tmp_path)
    states = [open_state(path) for path in runs.listed(tmp_path)]
    text = frame.render(states[0], states, 80).plain
    for part in (
        "digits-blur  ● live",
        "step 600 of 1,200",
        "⠉",
        "left out 2 training files",
        "step-000600.png",
        "✗ failed",
    ):
        assert part in text
    assert max(len(line) for line in text.split("\n")[:17]) <= 80  # events below may be of any length


def test_the_dashboard_opens_without_torch():
    code = "import sys, colddiff_cli.monitor.app, colddiff_cli.monitor.render.frame, textual_image.widget; "
    code += "print([name for name in ('torch', 'colddiff_core.experiment') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_machine_is_read_with_and_without_a_trainer():
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
