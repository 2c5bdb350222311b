"""The cost model of a training step on many GPUs: bytes, seconds, and what a preset asks for.

`cost.py` prints its tables; `cost_check.py` compares it with two hosts on a slow network.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

FLOAT_BYTES = 4
FIRST_BUCKET_BYTES, BUCKET_BYTES = 2**20, 25 * 2**20  # gradients that DistributedDataParallel sends at a time
BACKWARD = 2 / 3  # of a pass; gradients become ready at about an even rate
GPU_COUNTS = (1, 8, 64, 512)
STRONG, WEAK = 2048, 64  # images per step: in total, and per process


@dataclasses.dataclass(frozen=True)
class WorkCost:
    """The work of a preset.

    flops: floating-point operations per image and training step, three forward passes; launches: kernels per pass,
    forward and backward; passed: the most images per pass that fit in GPU memory.
    """

    name: str
    side: int
    parameters: int
    flops: float
    launches: int
    passed: int
    severities: int
    checkpoint_every: int
    sample_every: int

    @property
    def gradient(self) -> int:
        """Return the size of the float32 gradients, in bytes."""
        return FLOAT_BYTES * self.parameters

    @property
    def checkpoint(self) -> int:
        """Return the size of the weights, their average and the optimizer's two moments, in bytes."""
        return 4 * FLOAT_BYTES * self.parameters


@dataclasses.dataclass(frozen=True)
class Rates:
    """Assumed rates of the machines; the defaults are those of docs/scaling.md."""

    peak: float = 989e12  # FLOP/s, dense bf16
    share: float = 0.35  # of the peak, for large passes
    launch: float = 8e-6  # CPU seconds per kernel
    memory: float = 3.35e12  # bytes/s of GPU memory
    node: int = 8  # GPUs per machine
    inside: float = 450e9  # bytes/s per GPU and direction, within a machine
    between: float = 50e9  # bytes/s per GPU and direction, between machines
    hop: float = 30e-6  # seconds of a small message between CPUs
    room: float = 80e9  # bytes of GPU memory
    bus: float = 25e9  # bytes/s from a GPU to pinned memory, from which a thread writes a checkpoint
    file: float = 11_165.0  # bytes of a JPEG of 128 pixels, the mean of AFHQ's cats
    decode: float = 3100.0  # JPEGs per second and core
    critical: float = 4096.0  # images per step beyond which gains fall


def ring_bytes(count: int, size: float) -> float:
    """Return the bytes each of `count` processes sends to all-reduce `size` bytes: 2 (N - 1) / N of them.

    Source: Patarasuk and Yuan 2009, section 3.
    """
    return 2 * (count - 1) / count * size


def buckets(gradient: float) -> list[float]:
    """Return the sizes of the gradient buckets in sending order, in bytes."""
    first = min(float(FIRST_BUCKET_BYTES), gradient)
    rest = gradient - first
    return [
        first,
        *[float(BUCKET_BYTES)] * int(rest // BUCKET_BYTES),
        *([rest % BUCKET_BYTES] if rest % BUCKET_BYTES else []),
    ]


def exposed(count: int, gradient: float, bandwidth: float, backward: float, latency: float = 0.0) -> float:
    """Return how many seconds a step waits for gradients after the backward pass, which overlaps with sending them.

    A bucket is sent when all its gradients are ready and the previous bucket has arrived.
    """
    if count == 1:
        return 0.0
    ready, arrived = 0.0, 0.0
    for size in buckets(gradient):
        ready += size / gradient * backward
        arrived = max(ready, arrived) + ring_bytes(count, size) / bandwidth + 2 * (count - 1) * latency
    return arrived - backward


def agreement(count: int, hop: float) -> float:
    """Return the seconds of a small all-reduce by Gloo, which goes around a ring twice."""
    return 2 * (count - 1) * hop


def useful(images: float, critical: float) -> float:
    """Return the gain of a step relative to the same images in small steps.

    Source: McCandlish et al. 2018, An Empirical Model of Large-Batch Training, equation 2.11.
    """
    return 1 / (1 + images / critical)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of a step of `images` on `count` GPUs, in seconds unless noted."""

    count: int
    images: int
    compute: float  # on the GPU: passes and optimizer
    launching: float  # on the CPU, at the same time
    sent: float  # bytes per GPU
    sending: float
    waiting: float  # for gradients after the backward pass
    agreeing: float
    saving: float  # share of the checkpoints
    sheets: float  # share of the sample sheets

    @property
    def total(self) -> float:
        """Return the total; the GPU keeps working while the CPUs agree, which delays only the next launch."""
        return max(self.compute + self.waiting, self.launching + self.agreeing) + self.saving + self.sheets

    @property
    def rate(self) -> float:
        return self.images / self.total


def step(work: WorkCost, rates: Rates, count: int, images: int) -> StepCost:
    """Return the cost of a step whose images `count` GPUs share."""
    own = math.ceil(images / count)
    speed = rates.peak * rates.share
    passes = math.ceil(own / work.passed)
    last = own - (passes - 1) * work.passed
    updating = (
        7 * FLOAT_BYTES * work.parameters / rates.memory
    )  # AdamW reads four values per parameter and writes three
    bandwidth = rates.inside if count <= rates.node else rates.between
    sample = 16 * (work.severities + 1) * work.flops / 3
    floor = (work.severities + 1) * work.launches / 3 * rates.launch
    return StepCost(
        count=count,
        images=images,
        compute=own * work.flops / speed + updating,
        launching=passes * work.launches * rates.launch,
        sent=ring_bytes(count, work.gradient),
        sending=ring_bytes(count, work.gradient) / bandwidth,
        waiting=exposed(count, work.gradient, bandwidth, BACKWARD * last * work.flops / speed),
        agreeing=agreement(count, rates.hop),
        saving=work.checkpoint / rates.bus / work.checkpoint_every,
        sheets=max(sample / speed, floor) / work.sample_every if work.sample_every else 0.0,
    )


def why(at: StepCost) -> str:
    """Return what takes most of a step."""
    if at.launching + at.agreeing > at.compute + at.waiting:
        return "agreeing" if at.agreeing > at.launching else "launching kernels"
    return "gradients" if at.waiting > at.compute else "computing"


def count_work(name: str, room: float = Rates.room) -> WorkCost:
    """Count a preset's parameters, operations and kernels in a forward and backward pass of one image on a GPU.

    `room` is the GPU's memory in bytes. Kernels are counted as torch operations on the CPU, close to the launches
    of torch's CUDA build.
    """
    from unittest import mock

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only
    from torch.utils.flop_counter import FlopCounterMode

    from colddiff_core.config import presets
    from colddiff_core.models import UNet, low_weights, memory
    from colddiff_core.training.passes import WEIGHT_COPIES

    config = presets.load(name)
    model, train = config.model, config.train
    channels = config.data.channels or (1 if config.data.dataset in ("mnist", "digits") else 3)
    settings: dict[str, Any] = {key: getattr(model, key) for key in ("width", "multipliers", "block", "attention")}
    shown = channels * (2 if model.inputs == "inverse" else 1)
    launched, aten = 0, torch.ops.aten
    allocations = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)
    products = (aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            nonlocal launched
            launched += call.namespace == "aten" and not call.is_view and call.overloadpacket not in allocations
            if call.overloadpacket not in products:
                return call(*arguments, **(options or {}))
            # Count them without computing them, which takes minutes without bfloat16 instructions.
            shapes = call(*tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), arguments), **(options or {}))
            return tree_map_only(torch.Tensor, lambda shape: torch.zeros_like(shape, device="cpu"), shapes)

    with torch.device("meta"):  # drawing random weights would take a third of the time
        network = UNet(shown, channels, body_dtype=torch.bfloat16, **settings)
    network.to_empty(device="cpu")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    x, t = torch.zeros(1, shown, config.data.size, config.data.size), torch.zeros(1, dtype=torch.int64)
    with Counting(), mock.patch.object(low_weights, "suits", return_value=True):  # as on a GPU
        with FlopCounterMode(display=False) as counter:
            found = network(x, t)
        found.abs().mean().backward()
    return WorkCost(
        name=name,
        side=config.data.size,
        parameters=parameters,
        flops=3.0 * counter.get_total_flops(),
        launches=launched,
        passed=memory.training_batch_size(
            model, config.data.size, torch.bfloat16, int(room - WEIGHT_COPIES * FLOAT_BYTES * parameters)
        ),
        severities=int(config.degradation.parameters["steps"]),
        checkpoint_every=train.checkpoint_every,
        sample_every=train.sample_every,
    )


# The tables
