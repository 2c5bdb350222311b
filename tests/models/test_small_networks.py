"""Every network that a configuration can name either processes the smallest pictures or refuses them in two lines."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import TINY, left_behind

from colddiff_cli.__main__ import run
from colddiff_core.errors import UsageError
from colddiff_core.models import UNet

WIDTHS = (4, 5, 8, 12, 64)
LEVELS = ((1,), (2,), (1, 1), (1, 8), (8, 1), (1, 2, 4), (1,) * 6)
KINDS = list(itertools.product(("all", "none"), (0, 3), (torch.float32, torch.bfloat16)))


def evaluate(network, size, classes, images=1):
    labels = torch.tensor([1] * images) if classes else None
    y = network.lay_out(size)(torch.rand(images, 1, size, size), torch.tensor([3] * images), labels)
    assert y.shape == (images, 1, size, size)
    assert y.isfinite().all()
    y.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("block", ["convnext", "resnet", "local"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_network_processes_small_pictures_or_refuses_them(block, width):
    refused = []
    for number, levels in enumerate(LEVELS):
        if width == 64 and len(levels) > 3:
            continue  # seconds each
        attention, classes, dtype = KINDS[(number + width) % len(KINDS)]
        network = UNet(
            1, 1, width=width, multipliers=levels, block=block, attention=attention, classes=classes, body_dtype=dtype
        )
        for size in (network.divisor, 3 * network.divisor):
            try:
                evaluate(network, size, classes)
            except UsageError as error:
                refused.append((levels, size, str(error)))
                with pytest.raises(UsageError):  # not by the number of images
                    evaluate(network, size, classes, images=2)
    assert all(size == 2 ** (len(levels) - 1) for levels, size, _ in refused)
    assert all("GroupNorm" in message and "model.width" in message for _, _, message in refused)
    if block != "resnet" or width in (12, 64):
        assert refused == []
    else:
        assert bool(refused) == (width != 5)


SETTINGS = [
    ("model.block=resnet", "model.width=8", "model.multipliers=[1,1,1]", "data.size=4"),
    ("model.block=resnet", "model.width=4", "model.multipliers=[1]", "data.size=1"),
    ("model.block=convnext", "model.width=4", "model.multipliers=[1]", "data.size=1"),
    ("model.block=local", "model.width=5", "model.multipliers=[1,2]", "data.size=2"),
    ("model.block=convnext", "model.width=5", "model.multipliers=[1,1]", "data.size=3"),
    ("model.block=convnext", "model.width=5", "model.multipliers=[1]", "data.size=3", "model.attention=all"),
    ("model.block=resnet", "model.width=12", "model.multipliers=[1,1,1]", "data.size=4", "model.classes=10"),
    ("model.block=local", "model.width=4", "model.multipliers=[1,1,1,1,1,1]", "data.size=32", "train.precision=bf16"),
    ("model.block=resnet", "model.width=4", "model.multipliers=[1]", "data.size=7", "model.classes=10"),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("plain", [True, False])
def test_a_tiny_training_of_single_images_works_or_is_refused_before_it_begins(in_folder, capfd, settings, plain):
    changes = [*TINY, "train.steps=2", "train.batch_size=1", "data.margin=0", *settings]
    changes += ["model.inputs=plain", "model.consistent=false"] if plain else []
    words = [word for change in changes for word in ("--set", change)]
    code = run(["train", "--preset", "digits-blur", "--out", "run", "--device", "cpu", *words])
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
    if code == 0:
        assert left_behind(in_folder) == ["run"]
        return
    assert code == 2, lines
    assert len(lines) == 2
    assert "Unexpected" not in lines[0]
    assert left_behind(in_folder) == []
