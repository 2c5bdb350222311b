"""Weights that are finite numbers and yet overflow: no command passes what they give off as a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import left_behind
from PIL import Image

import colddiff_core
from colddiff_cli.__main__ import run
from colddiff_core.errors import UsageError
from colddiff_core.runs import checkpoint

COMMANDS = [
    ["sample", "run", "--n", "2", "--out", "new.png"],
    ["sample", "run", "--n", "2", "--out", "new.png", "--animate"],
    ["sample", "run", "--n", "2", "--out", "new.png", "--sampler", "direct"],
    ["sample", "run", "photo.png", "--out", "new.png", "--out-dir", "new"],
    ["generate", "run", "--n", "2", "--noise", "0.002", "--out", "new.png"],
    ["generate", "run", "--n", "2", "--noise", "0.002", "--out", "new.png", "--out-dir", "new", "--animate"],
    ["generate", "run", "--noise", "0.002", "--interpolate", "3", "--out", "new.png"],
    ["restore", "photo.png", "--run", "run", "--t", "2", "--out", "new.png"],
    ["restore", "photo.png", "--run", "run", "--t", "sweep", "--out", "new.png"],
]


@pytest.fixture
def overflowing(own_run, photo) -> Path:
    """A run whose weights are all 3e38, without the digests that would give it away; beside a small picture."""
    Image.radial_gradient("L").resize((12, 12)).save(photo)
    for folder in (own_run / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        state = {key: value for key, value in state.items() if key not in ("sha256", "digest")}
        (folder / "state.json").write_text(json.dumps(state))
        for name in (checkpoint.MODEL, checkpoint.AVERAGE):
            weights = safetensors.torch.load_file(folder / name)
            safetensors.torch.save_file(
                {key: torch.full_like(x, 3e38) if x.is_floating_point() else x for key, x in weights.items()},
                folder / name,
            )
    return own_run


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_pixels_that_are_not_finite_are_an_error_and_not_a_picture(words, overflowing, in_folder, capsys):
    before = [name for name in left_behind(in_folder) if "new" not in name]
    assert run(words) == 2
    assert "not finite" in capsys.readouterr().err
    assert not list(in_folder.rglob("new*.png"))
    assert not list((in_folder / "new").glob("*.png"))
    assert [name for name in left_behind(in_folder) if "new" not in name] == before


def test_and_an_error_of_the_library(overflowing):
    trained = colddiff_core.open_run(overflowing)
    with pytest.raises(UsageError, match="not finite"):
        colddiff_core.restore(trained, torch.zeros(1, *trained.experiment.shape))
