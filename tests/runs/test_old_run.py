"""A run made by version 0.1 opens, samples, evaluates and resumes with the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import runs
from colddiff_core.training import schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "run-0.1"
# Printed by version 0.1 for this folder: `colddiff eval RUN --n 32 --features none --json`.
METRICS = {
    "degraded": {"rmse": 0.316523, "psnr": 10.045025, "ssim": 0.016361},
    "direct": {"rmse": 0.190780, "psnr": 14.603937, "ssim": 0.470867},
}
# The same, by what torch computes with, on Intel's and AMD's processors: a blur's inverse in every step carries its
# rounding to the fourth digit. AVX2 by version 0.1, too, with ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2.
CHAINED = {
    "AVX512": [
        {
            "sampled": {"rmse": 0.209580, "psnr": 13.828136, "ssim": 0.412022},
            "naive": {"rmse": 0.214201, "psnr": 13.629627, "ssim": 0.397632},
        },
        {
            "sampled": {"rmse": 0.209600, "psnr": 13.829402, "ssim": 0.411567},
            "naive": {"rmse": 0.214228, "psnr": 13.629404, "ssim": 0.397489},
        },
        {  # by version 0.1 with torch 2.11
            "sampled": {"rmse": 0.209537, "psnr": 13.831294, "ssim": 0.412663},
            "naive": {"rmse": 0.214189, "psnr": 13.630191, "ssim": 0.397525},
        },
    ],
    "AVX2": [
        {
            "sampled": {"rmse": 0.209766, "psnr": 13.820297, "ssim": 0.411119},
            "naive": {"rmse": 0.214234, "psnr": 13.628306, "ssim": 0.397446},
        },
        {
            "sampled": {"rmse": 0.209562, "psnr": 13.830559, "ssim": 0.412354},
            "naive": {"rmse": 0.214191, "psnr": 13.630265, "ssim": 0.397401},
        },
    ],
}
# Logged by version 0.1: `colddiff train --resume RUN --set train.steps=50`.
LOSSES = {40: 0.177292, 50: 0.173297}


@pytest.fixture
def old_run(in_folder: Path) -> Path:
    return shutil.copytree(GOLDEN, in_folder / "old")


def test_metrics_are_the_same(old_run, capsys):
    assert run(["eval", str(old_run), "--n", "32", "--features", "none", "--json", "--device", "cpu"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    for kind, figures in METRICS.items():
        for name, value in figures.items():
            assert metrics[kind][name] == pytest.approx(value, abs=2e-4), f"{kind} {name}"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in CHAINED:
        pytest.skip(f"has no figures of samplers for {capability}")
    shown = {kind: {name: metrics[kind][name] for name in ("rmse", "psnr", "ssim")} for kind in ("sampled", "naive")}
    assert any(
        all(shown[kind] == pytest.approx(figures, abs=2e-4) for kind, figures in known.items())
        for known in CHAINED[capability]
    ), shown


def test_sampling_works(old_run):
    assert run(["sample", str(old_run), "--n", "4", "--out-dir", "restored", "--device", "cpu"]) == 0
    assert len(list(Path("restored").glob("*.png"))) == 4
    assert run(["generate", "--noise", "0.002", str(old_run), "--n", "2", "--out", "grid.png", "--device", "cpu"]) == 0
    assert Image.open("grid.png").size[0] > 0


def test_resuming_gives_the_same_losses(old_run, monkeypatch):
    monkeypatch.setattr(schedule, "join", lambda *_: None)  # 0.1 let the rate jump to that of the new length
    assert run(["train", "--resume", str(old_run), "--set", "train.steps=50", "--device", "cpu"]) == 0
    lines = {line["step"]: line["loss"] for line in runs.Run(old_run).metrics()}
    assert lines[10] > lines[50]
    for step, loss in LOSSES.items():
        assert lines[step] == pytest.approx(loss, rel=1e-3)
    assert [event["event"] for event in runs.Run(old_run).events()][-1] == "finished"
