"""Tensors in safetensors files, written whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from colddiff_core.files import flush


def write(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write tensors as safetensors, flushed to the disk, and return the SHA-256 of the file; raises OSError.

    Not by the format's own writer: its error for a full disk is of its own kind, and others may not read its files.
    """
    # Channels-last weights are brought to the plain layout, which is all that the format knows.
    content = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    path.write_bytes(content)
    flush(path)
    return hashlib.sha256(content).hexdigest()
