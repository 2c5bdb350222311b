"""What `train` prints when it starts and while it trains."""

from __future__ import annotations

import itertools
import re
import types

import pytest
import torch
from conftest import TINY, make_trainer

from colddiff_cli.__main__ import run
from colddiff_cli.console import training_progress
from colddiff_cli.console.screen import Screen
from colddiff_core import devices
from colddiff_core.distributed.environment import ProcessInfo
from colddiff_core.models import compiling
from colddiff_core.training.tick import Tick

GPU = torch.device("cuda")
FUSED = "fused kernels, launched together as CUDA graphs"


@pytest.fixture
def clock(monkeypatch):
    """The display's clock in seconds, which only tests advance."""
    now = [0.0]
    monkeypatch.setattr(training_progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize(
    ("requested", "mode", "count", "line"),
    [
        ("off", "", 1, "the network is not compiled: train.compile=off"),
        ("auto", "", 1, "the network is not compiled: compiling pays off from 5,000 steps"),
        ("auto", "", 2, "the network is not compiled: with several processes, set train.compile to a mode"),
        (
            "auto",
            "reduce-overhead",
            1,
            f"compiling the network (train.compile=reduce-overhead: {FUSED}); the first steps take a minute or two",
        ),
        (
            "auto",
            "default",
            1,
            "compiling the network (train.compile=default: fused kernels); the first steps take a minute or two",
        ),
        (
            "max-autotune",
            "max-autotune",
            2,
            "compiling the network (train.compile=max-autotune: the fastest kernels, found by trial); "
            "the first steps take several minutes",
        ),
    ],
)
def test_a_training_on_a_gpu_says_its_name_precision_and_compilation(
    tmp_path, monkeypatch, capsys, requested, mode, count, line
):
    trainer = make_trainer(tmp_path / "run", f"train.compile='{requested}'")
    trainer.stepper.compile_mode = mode
    object.__setattr__(trainer.experiment, "device", GPU)
    monkeypatch.setattr(devices, "describe", lambda device: "NVIDIA H200")
    monkeypatch.setattr(training_progress.environment, "process_info", lambda: ProcessInfo(count=count))
    training_progress.introduce(Screen(), trainer)
    _, about, compilation = capsys.readouterr().out.splitlines()
    assert "float32 body on NVIDIA H200" in about
    assert compilation == line


def test_the_line_names_every_mode_that_compiles():
    modes = {compiling.mode("auto", GPU, 10**6, side) for side in (32, 128)} | {"max-autotune"}
    assert modes == set(training_progress.COMPILED)


def test_on_a_gpu_only_the_time_between_read_metrics_counts(clock):
    """Steps are asynchronous on a GPU: ticks come at once, metrics when their steps are done."""
    forecast = training_progress.Forecast(100)  # a resumed run
    left = []
    for step in range(101, 131):
        is_read = step % 10 == 0
        if is_read:
            clock[0] += 60.0 if step == 110 else 20.0
        left.append(forecast.add(Tick(step), 200, is_measured=is_read))
    assert left[:19] == [None] * 19  # the first ten steps do not count
    assert left[19] == 2.0 * 80
    assert left[28:] == [2.0 * 71, 2.0 * 70]


def test_a_pause_between_metrics_does_not_count_on_a_gpu(clock):
    forecast = training_progress.Forecast(0)
    for step, seconds, is_measured in ((1, 9.0, True), (2, 0.0, False), (2, 1.0, False), (2, 3600.0, False)):
        clock[0] += seconds
        forecast.add(Tick(step), 100, is_measured=is_measured)
    for step in range(3, 12):
        clock[0] += 1.0
        left = forecast.add(Tick(step), 100, is_measured=step == 11)
    assert left == pytest.approx(0.9 * 89)


def test_steps_that_compile_do_not_count(clock):
    """The first compiles, the second records CUDA graphs, and the third replays them for the first time."""
    forecast = training_progress.Forecast(0, warm_up=3)
    for step, seconds in enumerate([90.0, 30.0, 25.0, *[0.5] * 6], 1):
        clock[0] += seconds
        left = forecast.add(Tick(step), 1000)
        assert (left is None) == (step < 8)
    assert left == 0.5 * 991


def test_the_estimate_follows_a_change_of_speed(clock):
    forecast = training_progress.Forecast(0)
    for step, seconds in enumerate(itertools.chain([1.0] * 50, [3.0] * 80), 1):
        clock[0] += seconds
        left = forecast.add(Tick(step), 200)
    assert left == 3.0 * 70


def test_lines_have_the_images_a_second_and_the_time_left_once_known(monkeypatch, in_folder, capsys):
    monkeypatch.setattr(training_progress, "LINE_EVERY_SECONDS", -1.0)
    changes = ["train.log_every=1", "train.steps=9", "train.compile=off"]
    words = [word for key in (*TINY, *changes) for word in ("--set", key)]
    assert run(["train", "--preset", "digits-blur", "--device", "cpu", "--out", "run", *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == [f"{step}/9" for step in range(1, 10)]
    assert all(re.search(r"loss 0\.\d{4}  [\d,]+ images/s", line) for line in lines)
    assert [line.endswith(" left") for line in lines] == [False] * 5 + [True] * 3 + [False]  # none at the end
