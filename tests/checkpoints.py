"""Read and compare checkpoints."""

from __future__ import annotations

import torch
from safetensors.torch import load

WEIGHTS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def read_tensors(path):
    return load(path.read_bytes())  # not mapped: the tests truncate files


def assert_same_checkpoint(a, b):
    for name in WEIGHTS:
        first, second = read_tensors(a / name), read_tensors(b / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), f"{name}: {key}"
