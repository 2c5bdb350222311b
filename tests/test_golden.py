"""Equality with the authors' published code on fixed inputs, where those outputs are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from colddiff_core import degradations
from colddiff_core.schedules import cosine_alphas_cumprod

BLURS = {
    "constant_circular": {"schedule": "constant", "std": 7.0, "kernel_size": 11, "padding": "circular"},
    "linear_reflect": {"schedule": "linear", "std": 0.35, "growth": 0.01, "kernel_size": 11, "padding": "reflect"},
    "incremental_circular": {"schedule": "linear", "std": 0.1, "growth": 0.1, "kernel_size": 3, "padding": "circular"},
    "exponential_reflect": {
        "schedule": "exponential",
        "std": 1.0,
        "growth": 0.01,
        "kernel_size": 15,
        "padding": "reflect",
    },
}


@pytest.fixture
def outputs(shared: Path):
    path = shared / "golden" / "degradations.npz"
    if not path.is_file():
        pytest.skip("needs ../shared/golden/degradations.npz, which is absent")
    return np.load(path)


def test_blur(outputs):
    keys = [key for key in outputs.files if key.startswith("blur/")]
    assert len(keys) == 18
    for key in keys:
        _, variant, steps, name, t = key.split("/")
        op = degradations.build("blur", steps=int(steps[1:]), **BLURS[variant])
        found = op(torch.from_numpy(outputs[f"x/{name}"]), int(t[1:]))
        np.testing.assert_allclose(found.numpy(), outputs[key], rtol=0, atol=1e-5, err_msg=key)


def test_noise(outputs):
    keys = [key for key in outputs.files if key.startswith("noise/")]
    assert len(keys) == 2
    for key in keys:
        steps = int(key.rsplit("T", 1)[1])
        np.testing.assert_allclose(cosine_alphas_cumprod(steps)[1:], outputs[key], rtol=0, atol=1e-5, err_msg=key)
