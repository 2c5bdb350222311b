"""Batch sizes that fit into memory, and smaller ones once memory has run out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colddiff_core.config.schema import ModelConfig
from colddiff_core.config.sizes import Size, sides
from colddiff_core.errors import ColddiffWarning, MachineError, is_out_of_memory
from colddiff_core.models.blocks import LinearAttention
from colddiff_core.text import counted

# For a tile of a photograph on a CPU: more takes memory from the photograph and hardly reduces the overlap.
MAX_TILE_BYTES = 1.5 * 2**30
MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.5}  # the rest is for weights, workspaces of kernels and other programs
# Peak number of live values, measured (docs/decisions/012-memory.md): per channel of a pixel at the finest level, and
# at the coarser ones, which hold both sides on the way up; per inner channel of attention, and per input channel of it.
FINEST_VALUES, COARSER_VALUES = 10, 14
ATTENTION_VALUES, ATTENTION_INPUT_VALUES = 8, 2
BYTES_PER_VALUE = {torch.float32: 4, torch.bfloat16: 3}  # 3 allows for stem and head, which stay float32
# The part of the memory beside weights, optimizer and training images that passes may use; the rest is for kernel
# workspaces, sheets and other programs.
TRAINING_SHARE = 0.7
CGROUP_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclasses.dataclass(frozen=True)
class TrainingBytes:
    """Bytes per pixel of the activations kept for the backward pass (docs/decisions/012-memory.md).

    Attributes:
        block: Per input and output channel of a block.
        attention_inner: Per inner channel of attention.
        attention_input: Per input channel of attention.
        finest: Per channel of the finest level, for stem and head.
    """

    block: int
    attention_inner: int
    attention_input: int
    finest: int


TRAINING_BYTES = {torch.float32: TrainingBytes(16, 16, 6, 24), torch.bfloat16: TrainingBytes(8, 5, 11, 24)}


def batch_size(model: ModelConfig, size: Size, dtype: torch.dtype, device: torch.device, most: int) -> int:
    """Return how many images to evaluate at a time: the largest power of two that fits, from 1 to `most`.

    It depends on the device's total memory, not on free memory: the last bits of a result depend on the batch size, and
    an image must come out the same every time.
    """
    room = int(MEMORY_SHARE[device.type] * total_bytes(device)) // image_bytes(model, size, dtype)
    return min(most, 2 ** max(0, room.bit_length() - 1))


def image_bytes(model: ModelConfig, size: Size, dtype: torch.dtype) -> int:
    """Return the estimated bytes that one image of a size takes in a network whose body has this dtype."""
    height, width = sides(size)
    last = len(model.multipliers) - 1
    inner = LinearAttention.heads * LinearAttention.head_width
    most = 0
    for level, multiplier in enumerate(model.multipliers):
        channels = model.width * multiplier
        values = (COARSER_VALUES if level else FINEST_VALUES) * channels
        if model.attention == "all" or (model.attention == "middle" and level == last):
            values = max(values, ATTENTION_VALUES * inner + ATTENTION_INPUT_VALUES * channels)
        most = max(most, values * (height >> level) * (width >> level))
    return most * BYTES_PER_VALUE[dtype]


def training_batch_size(model: ModelConfig, size: Size, dtype: torch.dtype, room_bytes: int) -> int:
    """Return the most images that fit in a training pass, at least 1.

    Args:
        model: The network.
        size: Of the images.
        dtype: Of the network's body.
        room_bytes: The device's memory minus weights, optimizer and training images.
    """
    return max(1, int(TRAINING_SHARE * room_bytes) // training_image_bytes(model, size, dtype))


def training_image_bytes(model: ModelConfig, size: Size, dtype: torch.dtype) -> int:
    """Return the estimated memory of one image in a forward and backward pass, in bytes."""
    height, width = sides(size)
    each = TRAINING_BYTES[dtype]
    widths = [model.width * multiplier for multiplier in model.multipliers]
    finest, coarsest, last = widths[0], widths[-1], len(widths) - 1
    inner = LinearAttention.heads * LinearAttention.head_width
    # Input and output channels of the blocks at each level, as in UNet.
    blocks = [(0, finest, finest), (0, 2 * finest if model.block == "local" else finest, finest)]
    blocks += [(last, coarsest, coarsest)] * 2
    attention = [(last, coarsest)] if model.attention != "none" else []
    for level, (before, after) in enumerate(itertools.pairwise(widths), 1):
        blocks += [(level, before, after), (level, after, after)]  # on the way down
        blocks += [(level, 2 * after, before), (level, before, before)]  # and up
    if model.attention == "all":
        attention += [(level, channels) for level, channels in enumerate(widths)]
        attention += [(level, channels) for level, channels in enumerate(widths[:-1], 1)]
    total = each.finest * finest * height * width
    for level, channels_in, channels_out in blocks:
        total += each.block * (channels_in + channels_out) * (height >> level) * (width >> level)
    for level, channels in attention:
        values = each.attention_inner * inner + each.attention_input * channels
        total += values * (height >> level) * (width >> level)
        total += 4 * inner * (inner + channels)  # products over all pixels, in float32
    return total


def tile_side(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Return the side in pixels of the largest square that a network can take at once, a multiple of 64."""
    room = MEMORY_SHARE[device.type] * total_bytes(device)
    if device.type == "cpu":
        room = min(room, MAX_TILE_BYTES)
    least = 2 ** max(6, len(model.multipliers) - 1)
    return max(1, int((room / image_bytes(model, least, dtype)) ** 0.5)) * least


def total_bytes(device: torch.device) -> int:
    """Return a device's total memory in bytes; for the CPU at most the limit of the container."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = []
    for path in CGROUP_LIMIT_FILES:
        with contextlib.suppress(OSError):
            limits.append(Path(path).read_text(encoding="ascii").strip())
    return min([_physical_memory(), *(int(limit) for limit in limits if limit.isdecimal())])


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        import psutil  # noqa: PLC0415 - only on systems without these values

        return int(psutil.virtual_memory().total)


class TooLargeError(MachineError):
    """A single image does not fit into memory."""


class ChunkedRestorer:
    """Call a restorer on whole batches, or in chunks once memory has run out.

    size: images per chunk, or None for the whole batch. It is halved whenever memory runs out, and stays halved.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def __call__(
        self,
        restorer: Callable[..., Tensor],
        x_t: Tensor,
        t: int | Tensor,
        frozen: Any,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return R(x_t, t), (B, C, H, W) float32; arguments as for `Restorer`.

        The result does not depend on the chunks, up to the rounding of the body's dtype. Every halving issues a
        ColddiffWarning.

        Raises:
            TooLargeError: if a single image does not fit into memory.
        """
        restored: list[Tensor] = []
        first = 0
        while first < len(x_t):
            chunk = slice(first, first + (self.size or len(x_t)))
            x_chunk = x_t[chunk]
            t_chunk = t[chunk] if isinstance(t, Tensor) else t
            label_chunk = None if labels is None else labels[chunk]
            try:
                restored.append(restorer(x_chunk, t_chunk, frozen[chunk], labels=label_chunk))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(x_chunk) == 1:
                    raise _too_large(x_t) from None
            else:
                first += len(x_chunk)
                continue
            # Outside the handler: the exception keeps the network's activations alive.
            if x_t.is_cuda:
                torch.cuda.empty_cache()
            self.size = len(x_chunk) // 2
            images = counted(len(x_chunk), "image")
            message = f"memory ran out on {x_t.device} with {images} at a time; continuing with {self.size}"
            warnings.warn(message, ColddiffWarning, stacklevel=2)
        return restored[0] if len(restored) == 1 else torch.cat(restored)


def _too_large(x_t: Tensor) -> TooLargeError:
    height, width = x_t.shape[-2:]
    what = f"Not enough memory on {x_t.device} for one image of {width}x{height} pixels."
    remedy = "Use --device cpu, or a run of smaller images." if x_t.is_cuda else "Use a run of smaller images."
    return TooLargeError(what, f"A smaller batch does not help. {remedy}")
