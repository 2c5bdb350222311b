"""What is random about a picture depends on the seed and the picture, not on the other pictures of the call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, make_trainer
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import seeds

OPERATORS = ["noise", "mask", "holes", "snow", "desaturate", "animorph", "blur+snow"]
SAMPLED = {
    "snow": ("degradation.name=snow",),
    "holes": ("degradation.name=holes",),
    "noise": ("degradation.name=noise",),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for name, pixels in zip(("a", "b", "pool/0", "pool/1"), values, strict=True):
        Path(f"{name}.png").parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(f"{name}.png")
    Image.open("b.png").save("copy.bmp")
    return tmp_path


def made(capsys: pytest.CaptureFixture[str], *call: str) -> dict[str, bytes]:
    """Run a command; return the bytes of each picture by the name of its input."""
    capsys.readouterr()
    assert run([*call, "--json", "--force"]) == 0, capsys.readouterr()
    result = json.loads(capsys.readouterr().out)
    return {name: Path(path).read_bytes() for name, path in zip(result["inputs"], result["files"], strict=True)}


@pytest.mark.parametrize("name", OPERATORS)
def test_degrade_draws_by_picture(folder, name, capsys):
    more = ["--second", "pool"] if name == "animorph" else []
    steps = ["--t", "3"] if name != "animorph" else []
    call = ["--op", name, *steps, *more, "--seed", "7", "--out-dir", "out"]
    alone = made(capsys, "degrade", "b.png", *call)
    both = made(capsys, "degrade", "a.png", "copy.bmp", "b.png", *call)
    assert both["b.png"] == alone["b.png"]
    assert both["copy.bmp"] == alone["b.png"]  # the same picture in another file
    assert made(capsys, "degrade", "b.png", "a.png", *call) == {key: both[key] for key in ("a.png", "b.png")}
    if name != "animorph":  # it draws nothing but the second picture
        call[call.index("--seed") + 1] = "8"
        other = made(capsys, "degrade", "b.png", *call)["b.png"]
        assert (other != alone["b.png"]) == (name not in ("desaturate",))


@pytest.mark.parametrize("name", SAMPLED)
def test_sample_draws_by_picture(folder, name, capsys):
    finish(
        make_trainer(
            Path("own"),
            "data.channels=3",
            "model.consistent=false",
            "model.inputs=plain",
            *SAMPLED[name],
            preset="digits-blur",
        )
    )
    call = ["--seed", "7", "--out-dir", "out", "--t", "3"]
    alone = made(capsys, "sample", "own", "b.png", *call)
    both = made(capsys, "sample", "own", "a.png", "b.png", *call)
    assert both["b.png"] == alone["b.png"]


def test_different_pictures_get_different_noise(folder, capsys):
    Image.new("L", (32, 32), 100).save("c.png")
    Image.new("L", (32, 32), 101).save("d.png")
    both = made(capsys, "degrade", "c.png", "d.png", "--op", "noise", "--out-dir", "out")
    first, second = both.values()
    assert first != second


def test_a_key_is_that_of_the_pixels_and_their_shape():
    x = torch.rand(3, 4, 6)
    assert seeds.picture_key(x) == seeds.picture_key(x.clone().transpose(1, 2).contiguous().transpose(1, 2))
    assert len({seeds.picture_key(y) for y in (x, -x, x.view(3, 6, 4), x[:1])}) == 4
