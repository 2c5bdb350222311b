"""What a notebook may have set for all of torch changes no number, or is refused."""

from __future__ import annotations

import pytest
import torch
from checkpoints import assert_same_checkpoint
from conftest import finish, make_trainer

from colddiff_cli.__main__ import run
from colddiff_core import degradations, seeds

OPERATORS = ("blur", "pixelate", "desaturate", "holes", "snow", "mask", "noise")


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def no_gradients():
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)


def degraded(name: str) -> list[torch.Tensor]:
    op = degradations.build(name, **({"steps": 2} if name == "pixelate" else {}))
    x0 = torch.linspace(-1, 1, 3 * 3 * 24 * 32, dtype=torch.float32).view(3, 3, 24, 32)
    pictures = []
    for generator in (seeds.generator(3), seeds.image_generators(0, range(3)), seeds.SlotGenerators((1,), range(2, 5))):
        frozen = op.freeze(x0, generator=generator)
        for t in (1, op.steps, torch.tensor([1, 2, op.steps])):
            x_t = op(x0, t, frozen)
            pictures += [x_t, op.invert(x_t, t, frozen, 1e-3)] if op.has_inverse else [x_t]
    return pictures


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_draw_and_return_float32_whatever_the_default(name, request):
    expected = degraded(name)
    request.getfixturevalue("float64_default")
    for picture, other in zip(degraded(name), expected, strict=True):
        assert picture.dtype == torch.float32
        torch.testing.assert_close(picture, other, atol=2e-6, rtol=0)


@pytest.mark.usefixtures("float64_default")
@pytest.mark.parametrize("command", ["sample", "generate", "eval", "compare", "degrade", "restore"])
def test_another_default_dtype_is_refused(command, tiny_run, photo, capsys):
    words = ["photo.png", "--op", "blur"] if command in ("degrade", "restore") else [str(tiny_run)]
    assert run([command, *words]) == 2
    message = capsys.readouterr().err.splitlines()
    assert "default dtype is torch.float64" in message[0]
    assert message[1:] == ["  Call torch.set_default_dtype(torch.float32) first."]


def test_training_needs_no_gradients_turned_on(tmp_path, request):
    finish(make_trainer(tmp_path / "usual"))
    request.getfixturevalue("no_gradients")
    finish(make_trainer(tmp_path / "without"))
    checkpoint = "checkpoints/step-000006"
    assert_same_checkpoint(tmp_path / "usual" / checkpoint, tmp_path / "without" / checkpoint)
    assert not torch.is_grad_enabled()
