"""The benchmarks run at tiny sizes; the plain baseline is the same network and the same operator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from colddiff_core import degradations
from colddiff_core.config import presets
from colddiff_core.models import UNet

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cases
import history
import plain
import speed
from jobs import BenchmarkJob

CPU = torch.device("cpu")
LAUNCHED = "first-step"  # starts two processes, which takes seconds


def in_this_process(name, side, preset, arguments):
    """Run a worker's job in this process, because a new one takes seconds to start."""
    job = BenchmarkJob(speed.settings(preset, arguments) if preset else {}, CPU, is_quick=True)
    return json.loads(json.dumps(cases.run(name, side, job) if name != "machine" else speed.work(name, side, job)))


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(speed, "worker", in_this_process)


def measured(tmp_path, *words):
    status = speed.main(["--quick", "--rounds", "1", "--history", str(tmp_path / "history"), *words])
    return status, history.read(tmp_path / "history")


@pytest.mark.parametrize("block", ["convnext", "resnet"])
@pytest.mark.parametrize("attention", ["all", "middle", "none"])
def test_the_plain_network_equals_ours(block, attention):
    model = {"width": 8, "multipliers": (1, 2, 4), "block": block, "attention": attention}
    torch.manual_seed(0)
    ours, theirs = UNet(3, 3, **model), plain.PlainUNet(3, 3, model)
    theirs.load_state_dict(ours.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1, 9])
    assert torch.allclose(theirs(x, t), ours(x, t), atol=1e-5)


@pytest.mark.parametrize("preset", ["mnist-blur", "celeba-blur-generate", "cifar10-blur"])
def test_the_plain_blur_equals_ours(preset):
    config = presets.load(preset, ["degradation.steps=6"])
    op = degradations.build("blur", **config.degradation.parameters)
    blur = plain.PlainBlur(config.to_table()["degradation"], 3, CPU)
    x0, t = torch.rand(4, 3, 32, 32) * 2 - 1, torch.tensor([1, 6, 3, 6])
    assert torch.allclose(blur.mixed(x0, t), op(x0, t), atol=1e-5)
    assert torch.allclose(blur(x0, 6), op(x0, 6), atol=1e-5)


def test_every_case_runs_and_is_compared_with_the_last_run(here, tmp_path, capsys):
    names = [name for name in cases.CASES if name != LAUNCHED]
    status, entries = measured(tmp_path, "--cases", ",".join(names), "--json", str(tmp_path / "json"))
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert max(map(len, printed.splitlines())) <= 100
    assert json.loads((tmp_path / "json").read_text()) == entries[0]
    for name in names:
        for row in entries[0]["cases"][name]["rows"]:
            assert row["plain"]["median"] > 0, (name, row)
            assert row["ours"]["low"] <= row["ours"]["median"] <= row["ours"]["high"], (name, row)
    for name in ("train-paper", "train-small"):
        assert entries[0]["cases"][name]["difference"]["difference"] < 1e-5
    status, entries = measured(tmp_path, "--cases", "degradations")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  blur"))
    assert line.split(" x")[-1] == speed.figure(entries[0]["cases"]["degradations"]["rows"][0]["ratio"])


def test_a_failed_case_is_reported_and_the_others_run(here, tmp_path, capsys, monkeypatch):
    def fail(job):
        raise RuntimeError("no room")

    monkeypatch.setitem(cases.CASES, "train-small", cases.BenchmarkCase("mnist-blur-small", fail, fail))
    status, entries = measured(tmp_path, "--cases", "train-small,degradations")
    assert status == 1
    assert entries[0]["failed"] == {"train-small": "no room"}
    assert "degradations" in entries[0]["cases"]
    assert "failed: no room" in capsys.readouterr().out


def test_slower_is_slower_by_more_than_either_spread():
    def row(median, half, n=3):
        return {"unit": "s", "ours": {"median": median, "low": median - half, "high": median + half, "n": n}}

    assert history.is_slower(row(1.5, 0.1), row(1.0, 0.1))
    assert not history.is_slower(row(1.5, 0.3), row(1.0, 0.1))
    assert not history.is_slower(row(1.5, 0.1), row(1.0, 0.3))
    assert not history.is_slower(row(0.5, 0.1), row(1.0, 0.1))
    assert not history.is_slower(row(1.5, 0.0, n=1), row(1.0, 0.1))


def test_a_plain_side_does_not_load_our_code(tmp_path, capsys):
    """`worker` raises if it does."""
    status, _ = measured(tmp_path, "--cases", "nothing")
    assert status == 2
    arguments = type("Arguments", (), {"quick": True, "data_dir": None, "device": "cpu", "compile": "auto"})
    found = speed.worker("sample-paper", "plain", "mnist-blur", arguments)
    assert set(found) == {"rows", "memory"}
