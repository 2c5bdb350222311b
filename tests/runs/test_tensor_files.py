"""safetensors files have the same bytes as from the format's own package, whatever the tensors' memory layout."""

from __future__ import annotations

import hashlib

import pytest
import safetensors.torch
import torch

from colddiff_core import tensor_files


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {f"of {dtype}": torch.arange(7).to(dtype) for dtype in tensor_files.KINDS},
        {"b": torch.rand(2, 3), "a": torch.rand(()), 'é"\\\n': torch.zeros(0, 4), "c": torch.rand(3).double()},
    ],
)
def test_a_file_has_the_bytes_of_the_format(tmp_path, tensors):
    digest = tensor_files.write(tensors, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    assert content == safetensors.torch.save(tensors)
    assert digest == hashlib.sha256(content).hexdigest()


def test_tensors_in_other_layouts_are_written_contiguously(tmp_path):
    weight = torch.nn.Parameter(torch.rand(2, 8, 3, 3).to(memory_format=torch.channels_last))
    tensors = {"weight": weight, "part": torch.rand(4, 6)[:, ::2], "expanded": torch.rand(1).expand(5)}
    tensor_files.write(tensors, tmp_path / "file")
    found = safetensors.torch.load((tmp_path / "file").read_bytes())
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
