"""Write tensors to safetensors files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from colddiff_core.files import flush


def write(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write tensors of any shape and dtype, flush them to the disk and return the file's SHA-256; raises OSError.

    safetensors' own `save_file` reports a full disk as another error, and makes files that other users cannot read.
    """
    # safetensors only stores the contiguous layout, not channels-last.
    content = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    path.write_bytes(content)
    flush(path)
    return hashlib.sha256(content).hexdigest()
