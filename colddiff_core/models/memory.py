"""How many images the network is given at a time: as many as memory has room for, fewer once it has run out."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colddiff_core.config.schema import ModelConfig
from colddiff_core.errors import ColddiffWarning, MachineError, is_out_of_memory
from colddiff_core.models.blocks import LinearAttention
from colddiff_core.text import counted

# Of a tile of a photograph on a CPU: more costs memory that the photograph wants, and saves little of the overlap.
MOST_TILE = 1.5 * 2**30  # bytes
SHARE = {"cpu": 0.25, "cuda": 0.5}  # the rest is for weights, for what kernels take themselves and for other programs
# Values that live at once where they are most, measured (docs/decisions/012-memory.md): for each channel of a pixel at
# the finest level, and at the others, where the way up has both sides; for each of attention's; of its input beside.
FINEST, COARSER = 10, 14
ATTENTION, BESIDE = 8, 2
BYTES = {torch.float32: 4, torch.bfloat16: 3}  # a value: stem, norms and softmax stay float32
CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def batch_size(model: ModelConfig, side: int, dtype: torch.dtype, device: torch.device, most: int) -> int:
    """Return how many images a network takes at a time: a power of two that fits, or `most`; 1 at least.

    It follows from the network and from the whole of the device's memory, not from what is free of it: arithmetic
    differs in its last bits with the size of a batch, and an image is to be the same every time.
    """
    room = int(SHARE[device.type] * total(device)) // image_bytes(model, side, dtype)
    return min(most, 2 ** max(0, room.bit_length() - 1))


def image_bytes(model: ModelConfig, side: int, dtype: torch.dtype) -> int:
    """Return about how many bytes an image of side x side pixels takes in a network whose body is of a dtype."""
    last = len(model.multipliers) - 1
    inner = LinearAttention.heads * LinearAttention.head_width
    most = 0
    for level, multiplier in enumerate(model.multipliers):
        channels = model.width * multiplier
        values = (COARSER if level else FINEST) * channels
        if model.attention == "all" or (model.attention == "middle" and level == last):
            values = max(values, ATTENTION * inner + BESIDE * channels)
        most = max(most, values * (side >> level) ** 2)
    return most * BYTES[dtype]


def tile_side(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Return the side in pixels of the largest square that a network takes at a time, a multiple of 64."""
    room = SHARE[device.type] * total(device)
    if device.type == "cpu":
        room = min(room, MOST_TILE)
    least = 2 ** max(6, len(model.multipliers) - 1)
    return max(1, int((room / image_bytes(model, least, dtype)) ** 0.5)) * least


def total(device: torch.device) -> int:
    """Return the bytes of memory that a device has, on the CPU no more than the container may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = []
    for path in CONTAINER:
        with contextlib.suppress(OSError):
            limits.append(Path(path).read_text(encoding="ascii").strip())
    return min([_machines(), *(int(limit) for limit in limits if limit.isdecimal())])


def _machines() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        import psutil  # noqa: PLC0415 - where the system has no such call

        return int(psutil.virtual_memory().total)


class TooLargeError(MachineError):
    """One image is more than there is memory for."""


class ChunkedRestorer:
    """Evaluates a restorer on whole batches, and in pieces once memory has run out.

    size: images at a time, None for all of a batch. It is halved whenever memory runs out, and stays so.
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
        """Return R(x_t, t), (B, C, H, W) float32; all but the restorer is as `Restorer` takes it.

        Pieces agree with the whole to the rounding of the body's dtype. Warns of every halving by a ColddiffWarning.
        Raises TooLargeError where there is no memory for a single image.
        """
        made: list[Tensor] = []
        first = 0
        while first < len(x_t):
            piece = slice(first, first + (self.size or len(x_t)))
            here = x_t[piece]
            own_t = t[piece] if isinstance(t, Tensor) else t
            own_labels = None if labels is None else labels[piece]
            try:
                made.append(restorer(here, own_t, frozen[piece], labels=own_labels))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(here) == 1:
                    raise _too_large(x_t) from None
            else:
                first += len(here)
                continue
            # Not above: until the error is gone it holds what the network had made.
            if x_t.is_cuda:
                torch.cuda.empty_cache()
            self.size = len(here) // 2
            many = counted(len(here), "image")
            message = f"memory ran out on {x_t.device} with {many} at a time; going on with {self.size}"
            warnings.warn(message, ColddiffWarning, stacklevel=2)
        return made[0] if len(made) == 1 else torch.cat(made)


def _too_large(x_t: Tensor) -> TooLargeError:
    height, width = x_t.shape[-2:]
    what = f"There is not enough memory on {x_t.device} for one image of {width}x{height} pixels."
    other = "use --device cpu, or a run of smaller images" if x_t.is_cuda else "use a run of smaller images"
    return TooLargeError(what, f"A smaller batch does not help: {other}.")
