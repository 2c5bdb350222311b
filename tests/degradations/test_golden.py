"""Equality with the outputs of the authors' published code on fixed inputs, if those are available."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from colddiff_core import degradations
from colddiff_core.degradations.schedules import cosine_alphas_cumprod

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


def keys_of(outputs, family: str, count: int) -> list[str]:
    """Return the keys of a family, and check their number so that none is missed."""
    keys = [key for key in outputs.files if key.startswith(family)]
    assert len(keys) == count
    return keys


def assert_close(actual: torch.Tensor, expected: np.ndarray, key: str) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-5, err_msg=key)


def test_blur(outputs):
    for key in keys_of(outputs, "blur/", 18):
        _, variant, steps, name, t = key.split("/")
        op = degradations.build("blur", steps=int(steps[1:]), **BLURS[variant])
        actual = op(torch.from_numpy(outputs[f"x/{name}"]), int(t[1:]))
        assert_close(actual, outputs[key], key)


def test_noise(outputs):
    for key in keys_of(outputs, "noise/", 2):
        steps = int(key.rsplit("T", 1)[1])
        assert_close(cosine_alphas_cumprod(steps)[1:], outputs[key], key)


def test_mask(outputs):
    for key in keys_of(outputs, "mask", 13):
        family, steps_or_place, t = (key.split("/")[i] for i in (0, -2, -1))
        if family == "mask_random":
            op = degradations.build("mask", steps=50, std=1.1, growth=0.1)
            row, col = (31 - int(part[3:]) for part in steps_or_place.split("_"))
            side, place = 32, {"center_row": torch.tensor([row]), "center_col": torch.tensor([col])}
        else:
            width = 0.2 if family == "mask_centered" else 0.05
            op = degradations.build("mask", steps=100, std=width, growth=width, location="center")
            side, place = 64, {}
        ones = torch.ones(1, 1, side, side)
        actual = op(ones, int(t[1:]), op.freeze(ones, **place))[0, 0]
        assert_close(actual, outputs[key], key)


def test_pixelate(outputs):
    for key in keys_of(outputs, "pixelate/", 12):
        _, variant, steps, name, t = key.split("/")
        op = degradations.build(
            "pixelate", steps=int(steps[1:]), mode="bilinear" if "bilinear" in variant else "bicubic"
        )
        actual = op(torch.from_numpy(outputs[f"x/{name}"]), int(t[1:]))
        assert_close(actual, outputs[key], key)


def test_desaturate(outputs):
    for key in keys_of(outputs, "desaturate/", 5):
        actual = degradations.build("desaturate", steps=20)(
            torch.from_numpy(outputs["x/rgb32"]), int(key.rsplit("t", 1)[1])
        )
        assert_close(actual, outputs[key], key)


def test_snow(outputs):
    keys = [key for key in outputs.files if key.startswith("snow/") and "/T200/" in key]
    assert len(keys) == 24
    x0 = torch.from_numpy(outputs["x/rgb32"])
    for key in keys:
        level, kind, t = int(key.split("/")[1][-1]), key.split("/")[-2], int(key.rsplit("t", 1)[1])
        op = degradations.build("snow", steps=200, level=level, brighten=kind == "brightness")
        seed_matrix = torch.from_numpy(outputs[f"snow/level{level}/seed_matrix"]).expand(len(x0), -1, -1)
        vertical = torch.from_numpy(outputs[f"snow/level{level}/vertical"]).expand(len(x0))
        frozen = op.freeze(x0, seed_matrix=seed_matrix, vertical=vertical)
        actual = op.layer(x0, t, frozen).unsqueeze(1) if kind == "layer" else op(x0, t, frozen)
        expected = outputs[key]
        if kind == "layer":  # stored once for each channel
            expected = expected[:, :1]
        np.testing.assert_allclose(
            actual.numpy(), np.broadcast_to(expected, actual.shape), rtol=0, atol=1e-5, err_msg=key
        )
