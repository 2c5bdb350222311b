"""Write tensors to safetensors files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colddiff_core.files import flush

# dtypes and their names in the format, in the order in which the safetensors package stores tensors.
KINDS = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8  # of the data in a file
_PLACES = {dtype: place for place, dtype in enumerate(KINDS)}


def write(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write tensors of any shape, with dtypes of KINDS, flush the file to disk and return its SHA-256.

    The bytes equal those of `safetensors.torch.save`, which holds the GIL while it copies all tensors into one buffer:
    even in a thread, that would stop training. Here each tensor is written from its own memory. `save_file` reports a
    full disk as a different error and creates files that other users cannot read.

    Source: the format, https://github.com/huggingface/safetensors#format.

    Raises:
        OSError: The disk refuses.
    """
    ordered = sorted(tensors.items(), key=lambda item: (_PLACES[item[1].dtype], item[0]))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = _header(ordered)
        digest.update(header)
        file.write(header)
        for _, tensor in ordered:
            content = _bytes(tensor)
            digest.update(content)
            file.write(content)
    flush(path)
    return digest.hexdigest()


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    """Return a file's header, which says where each tensor's bytes are, with its length in front."""
    entries, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    """Return a tensor's bytes in contiguous layout, the only one in the format; without a copy where possible."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
