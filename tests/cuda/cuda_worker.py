"""Run cases on the null CUDA runtime and print a line of JSON for each: python cuda_worker.py CASE..."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from typing import Any

import calls
import cuda_operators
import torch

from colddiff_cli import __main__ as command_line
from colddiff_core import devices, experiment, seeds
from colddiff_core.config import presets
from colddiff_core.config.schema import Config
from colddiff_core.config.sizes import sides
from colddiff_core.datasets import ImageSet
from colddiff_core.sampling import DegradedImages, Sampling
from colddiff_core.training.log_meter import TrainingLog
from colddiff_core.training.step import Stepper

CUDA = devices.choose("cuda")
for _name in (
    "kaiming_uniform_",
    "uniform_",
    "normal_",
):  # values mean nothing here, and drawing them would take half the time
    setattr(torch.nn.init, _name, lambda tensor, *_, **__: tensor)


def train(preset: str, *overrides: str) -> dict[str, Any]:
    """Take three steps of a preset's training and count the last."""
    config, channels = _settings(preset, *overrides)
    shape = (64, channels, *(side + config.data.crop for side in sides(config.data.size)))
    images = ImageSet(torch.zeros(shape, dtype=torch.uint8), labels=torch.arange(64) % 10)
    built = experiment.build(config, channels, CUDA)
    said: list[str] = []
    stepper, log = Stepper(built, images, said.append), TrainingLog(CUDA, 0)
    for step in range(2):
        stepper.take(step, log)
    torch.cuda.reset_peak_memory_stats()
    with calls.watched() as seen:
        stepper.take(2, log)
    return seen.summary() | {
        "images": stepper.size,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "said": said,
    }


def restore(preset: str, *overrides: str) -> dict[str, Any]:
    """Restore 16 images by TACoS with a preset's network and count the third step."""
    config, channels = _settings(preset, *overrides)
    built = experiment.build(config, channels, CUDA, "test")
    built.restorer.unet.prepare_for_inference()
    x0, t = torch.zeros((16, *built.shape), device=CUDA), built.operator.steps
    x_t, frozen = built.degrade(x0, t, seeds.image_generators(0, range(16)))
    torch.cuda.reset_peak_memory_stats()
    steps = built.restore(DegradedImages(x_t, t, frozen), Sampling("tacos"))
    for _ in range(2):
        next(steps)
    with calls.watched() as seen:
        next(steps)
    return seen.summary() | {"images": 16, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def _settings(preset: str, *overrides: str) -> tuple[Config, int]:
    """Return a preset's configuration on data sets that need no download, and the channels of its own."""
    base = presets.load(preset)
    channels = base.data.channels or (1 if base.data.dataset in ("mnist", "digits") else 3)
    second = ["data.second=digits"] if base.data.second else []
    changes = ["data.dataset=digits", f"data.channels={channels}", "train.compile=off", *second, *overrides]
    return presets.load(preset, changes), channels


def command(*words: str) -> dict[str, Any]:
    """Run a command line in this process and count all its calls."""
    out = io.StringIO()
    with calls.watched() as seen, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = command_line.run(list(words))
    return seen.summary() | {"status": status, "said": out.getvalue()}


WORK = {
    "train": train,
    "restore": restore,
    "command": command,
    "operators": cuda_operators.operators,
    "samplers": cuda_operators.samplers,
}


def main() -> None:
    for case in sys.argv[1:]:
        kind, *arguments = case.split()
        try:
            found = WORK[kind](*arguments)
        except Exception as error:
            where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]]
            found = {"failed": f"{type(error).__name__}: {error}", "where": where}
        sys.stdout.write(json.dumps({"case": case} | found) + "\n")
        sys.stdout.flush()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
    calls.leave()
