"""`train --nproc`: options that conflict, and a run that --continue starts or resumes."""

from __future__ import annotations

import contextlib
import functools
import json

import processes
import pytest
import torch
from ranks_job import SMALL_TRAINING

from colddiff_cli import __main__
from colddiff_cli.__main__ import run as colddiff
from colddiff_cli.jobs import launch
from colddiff_core import devices, runs
from colddiff_core.errors import UsageError
from colddiff_core.runs import checkpoint

STEPS = 6  # TINY's train.steps


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--preset digits-blur --max-restarts 1", "--max-restarts needs --nproc"),
        ("--preset digits-blur --continue", "--continue needs the folder of the run"),
        ("--resume x --continue", "--continue does not go with --resume"),
        ("--preset digits-blur --nproc 0", "nproc"),
        ("--preset digits-blur --nproc 100000", "--nproc 100000: this machine has"),
        ("--preset digits-blur --nproc 2 --device cuda:1", "--device cuda:1 is a single device"),
        ("--preset digits-blur --nproc 2 --set train.stepz=1", "train.stepz"),
        ("--preset digits-blur --nproc 2 --set sample.stride=99", "stride"),
        ("--resume absent --nproc 2", "absent"),
    ],
)
def test_options_that_conflict_are_refused(capsys, monkeypatch, words, expected):
    monkeypatch.setattr(launch, "launch", lambda *_: pytest.fail("it started processes"))
    assert colddiff(["train", *words.split()]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "extra", "expected"),
    [
        ("--preset digits-blur --nproc 2", {}, "this process is part of a job"),
        ("--preset digits-blur", {"TORCHELASTIC_MAX_RESTARTS": "1"}, "must be able to continue its run"),
        ("--preset digits-blur --out x", {"TORCHELASTIC_MAX_RESTARTS": "1"}, "must be able to continue its run"),
    ],
)
def test_every_process_of_a_job_reports_a_refusal(capsys, monkeypatch, words, extra, expected):
    monkeypatch.setattr(__main__, "PATIENCE_SECONDS", 0)  # time for torchrun to end the others
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"} | extra
    for rank in range(2):
        for key, value in (variables | {"RANK": str(rank)}).items():
            monkeypatch.setenv(key, value)
        assert colddiff(["train", *words.split()]) == 2
        message = capsys.readouterr().err
        assert expected in message
        assert message.startswith("colddiff: " if rank == 0 else "colddiff (process 1 of 2): ")


def test_reports_of_launched_processes_are_not_repeated(monkeypatch, capsys):
    words = ["train", "--preset", "digits-blur", "--nproc", "2", "--max-restarts=1", "--out", "x", "--debug"]
    launches = []
    monkeypatch.setattr(launch, "launch", lambda *settings: launches.append(settings) or 3)
    assert colddiff(words) == 3
    assert capsys.readouterr().err == ""
    their_words = ["train", "--preset", "digits-blur", "--out", "x", "--debug", "--continue"]
    assert launches == [(their_words, 2, 1, "Continue with: colddiff train --resume x")]


def test_torchrun_restarts_a_process_that_fails():
    """It fails before it imports torch: there is no such preset."""
    agent = processes.fork(functools.partial(launch.launch, ["presets", "absent"], 1, 1, ""))
    _, errors = agent.communicate()
    assert agent.returncode == 2, errors
    assert errors.count("colddiff: Unknown preset 'absent'") == 2


@pytest.mark.parametrize(("count", "is_refused"), [(0, True), (1, True), (2, False)])
def test_a_gpu_takes_one_process(monkeypatch, count, is_refused):
    monkeypatch.setattr(devices, "choose", lambda _: None)
    monkeypatch.setattr(devices, "units", lambda _: (count, "GPU"))
    with pytest.raises(UsageError, match="this machine has") if is_refused else contextlib.nullcontext():
        launch.check_machine(2, "cuda")


def test_a_missing_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="There is no CUDA device"):
        launch.check_machine(2, "cuda")


def test_continue_starts_a_run_and_resumes_it(tmp_path, capsys):
    out = tmp_path / "run"
    words = [*SMALL_TRAINING, "--out", str(out), "--continue"]
    assert colddiff(words) == 0
    assert colddiff([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"run": str(out), "step": STEPS, "finished": True}
    assert colddiff([*words, "--set", "train.lr=0.5"]) == 2
    assert "started with other settings: train.lr" in capsys.readouterr().err
    (out / "events.jsonl").write_text("")
    for path in runs.Run(out).checkpoints()[1:]:
        checkpoint.set_aside(path)
    assert colddiff(words) == 0
    assert runs.Run(out).checkpoints()[-1].name == f"step-{STEPS:06d}"
