"""Train on a null GPU with GIB of memory and print the pass sizes as JSON: python passes_worker.py GIB [FREE_MIB].

With FREE_MIB, memory shrinks after the first step to what is in use plus FREE_MIB.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import calls
import torch

from colddiff_core import devices, experiment
from colddiff_core.config import presets
from colddiff_core.datasets import ImageSet
from colddiff_core.training.log_meter import TrainingLog
from colddiff_core.training.step import Stepper

CUDA = devices.choose("cuda")
SMALL = ["data.dataset=digits", "train.compile=off", "model.width=32", "train.precision=float32"]
SMALL += ["train.batch_size=32", "train.accumulate=8"]


def stepper(said: list[str]) -> Stepper:
    """Return the stepper of a small training, with 256 one-channel images of 32x32 pixels per step."""
    config = presets.load("mnist-blur", SMALL)
    images = ImageSet(torch.zeros((64, 1, 32, 32), dtype=torch.uint8))
    return Stepper(experiment.build(config, 1, CUDA), images, said.append)


def sizes(made: Stepper) -> list[int]:
    """Return the number of images in each pass."""
    return [len(part.slots) for part in made.draw(0)]


def main() -> None:
    gib, *free_mib = map(int, sys.argv[1:])
    calls.runtime.null_memory(gib << 30)
    warnings.simplefilter("ignore")
    said: list[str] = []
    made, log = stepper(said), TrainingLog(CUDA, 0)
    found: dict[str, Any] = {"sizes": sizes(made)}
    made.take(0, log)
    torch.cuda.empty_cache()
    for mib in free_mib:
        calls.runtime.null_memory(torch.cuda.memory_reserved() + (mib << 20))
    for step in (1, 2):
        made.take(step, log)
    found |= {"then": sizes(made), "said": said, "images": sum(map(len, log.losses))}
    print(json.dumps(found | {"peak": torch.cuda.max_memory_reserved()}))  # noqa: T201


if __name__ == "__main__":
    main()
    calls.leave()
