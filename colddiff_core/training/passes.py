"""Divide a process's images of a step into forward and backward passes that fit in memory."""

from __future__ import annotations

import math

import torch

from colddiff_core import devices
from colddiff_core.config.sizes import sides
from colddiff_core.errors import MachineError
from colddiff_core.experiment import Experiment
from colddiff_core.models import memory
from colddiff_core.text import counted

# Weights, average, the optimizer's two moments, gradient; the sixth is for casts of the weights and operator tables.
WEIGHT_COPIES = 6
FLOAT_BYTES = 4


def follow_memory(device: torch.device) -> bool:
    """Return whether passes are as large as memory allows instead of `train.batch_size` images."""
    return device.type == "cuda"


def most_images(experiment: Experiment, pixel_bytes: int) -> int:
    """Return the most images of a pass, at least 1.

    On a GPU as many as fit in memory, because in small passes it waits for the CPU to launch kernels. The number
    follows from total memory, not free memory, so that a resumed run divides its steps as before. On a CPU it is
    `train.batch_size`: larger passes gain nothing there, and users limit memory with this setting.

    Args:
        experiment: What is trained.
        pixel_bytes: Size of the training images, which stay on the device if they fit.
    """
    config, device = experiment.config, experiment.device
    if not follow_memory(device):
        return config.train.batch_size
    total = memory.total_bytes(device)
    weights = sum(weight.numel() for weight in experiment.restorer.parameters())
    held = 0  # bytes of pixels on the device
    for size in (pixel_bytes, experiment.second.pixels.nbytes if experiment.second else 0):
        held += size if size <= devices.RESIDENT_SHARE * (total - held) else 0
    taken = WEIGHT_COPIES * FLOAT_BYTES * weights + held
    return memory.training_batch_size(config.model, config.data.size, experiment.body_dtype, total - taken)


def divide(slots: range, most: int, *, is_even: bool) -> list[range]:
    """Return the slots of each pass, in order.

    Args:
        slots: This process's slots of a step, at least one.
        most: The most images of a pass, at least 1.
        is_even: Whether all passes should have the same size, because a network is compiled once per size. If no
            divisor is near `most`, only the last pass differs.
    """
    size = _even_size(len(slots), most) if is_even else most
    return [range(first, min(first + size, slots.stop)) for first in range(slots.start, slots.stop, size)]


def _even_size(count: int, most: int) -> int:
    """Return the largest divisor of `count` up to `most`; if it is below half of that, the most even size."""
    divisor = next(size for size in range(min(count, most), 0, -1) if count % size == 0)
    return divisor if 2 * divisor > min(count, most) else math.ceil(count / math.ceil(count / most))


def no_room(experiment: Experiment, count: int) -> MachineError:
    """Return the error for a pass of `count` images that does not fit in memory."""
    height, width = sides(experiment.config.data.size)
    images = counted(count, "image")
    what = f"Not enough memory on {experiment.device} for a training pass of {images} of {width}x{height} pixels."
    if count == 1:
        return MachineError(what, "A smaller train.batch_size does not help. Use a smaller model.width or data.size.")
    if follow_memory(experiment.device):
        remedy = "Use more processes, or a smaller train.batch_size, model.width or data.size."
    else:
        remedy = (
            "Use a smaller train.batch_size, with a larger train.accumulate to keep the images per step, or a smaller "
            "model.width or data.size."
        )
    return MachineError(what, f"{remedy} With another batch size, --resume also needs --allow-change.")
