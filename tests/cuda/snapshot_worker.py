"""Copy a checkpoint's tensors from a null GPU twice, and print the CUDA calls of each copy as JSON."""

from __future__ import annotations

import json
import sys

import calls
import torch

from colddiff_core import devices, experiment
from colddiff_core.config import presets
from colddiff_core.datasets import ImageSet
from colddiff_core.training.log_meter import TrainingLog
from colddiff_core.training.saving import SnapshotMemory
from colddiff_core.training.step import Stepper

SMALL = ["data.dataset=digits", "data.channels=1", "train.compile=off", "model.width=16", "train.batch_size=4"]


def main() -> int:
    cuda = devices.choose("cuda")
    config = presets.load("digits-blur", SMALL)
    images = ImageSet(torch.zeros((8, 1, 64, 64), dtype=torch.uint8))
    stepper, log = Stepper(experiment.build(config, 1, cuda), images, lambda _: None), TrainingLog(cuda, 0)
    stepper.take(0, log)
    memory, found = SnapshotMemory(cuda), []
    for _ in range(2):
        tensors = stepper.parts.tensors()
        with calls.watched() as seen:
            snapshot = memory.copy(tensors)
        copies = [tensor for some in snapshot.tensors.values() for tensor in some.values()]
        found.append(
            {
                "waits": seen.total("WAIT"),
                "errors": seen.total("ERROR"),
                "copies": {name: count for name, count in seen.counts.items() if name.startswith("COPY")},
                "allocations": seen.total("cudaHostAlloc"),
                "tensors": len(copies),
                "contiguous": all(tensor.is_contiguous() for tensor in copies),
                "has_event": snapshot.arrival is not None,
            }
        )
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
