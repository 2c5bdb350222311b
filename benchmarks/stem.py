"""Measure what the precision of the network's first layers (`model.stem`) costs in RMSE and SSIM, emulated on the CPU.

python benchmarks/stem.py DATA_DIR RUN [--n 1000]
python benchmarks/stem.py DATA_DIR PRESET --train STEPS [--seeds 2] [--set section.key=value]

The first restores test images with a run's weights; the second trains a preset with each precision. "tf32" rounds the
inputs and weights of the stem's convolutions to ten bits of mantissa, "tf32 cut" truncates them, "bf16" rounds inputs,
weights and results to bfloat16, and "split" is the program's own. Intervals are 95 %, paired over the images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colddiff_core import datasets, experiment, seeds
from colddiff_core.config import presets
from colddiff_core.evaluation import bootstrap
from colddiff_core.evaluation.fidelity import Fidelity
from colddiff_core.inference import open_run
from colddiff_core.models import stem
from colddiff_core.sampling import DegradedImages, Sampling, final
from colddiff_core.training.log_meter import TrainingLog
from colddiff_core.training.step import Stepper

KINDS = ("float32", "tf32", "tf32 cut", "split", "bf16")
MANTISSA_BITS_LEFT_OUT = 13  # of float32's 23: TF32 keeps ten
AT_ONCE = 250
BODY = "train.precision=bf16"  # as on a GPU
exact = stem.convolve


def rounded(x: Tensor, kind: str) -> Tensor:
    """Return x (any shape, float32) rounded as by a kind of stem; the gradient passes straight through."""
    if kind == "bf16":
        low = x.detach().to(torch.bfloat16).float()
    else:
        half = 1 << (MANTISSA_BITS_LEFT_OUT - 1) if kind == "tf32" else 0
        bits = x.detach().contiguous().view(torch.int32) + half
        low = (bits >> MANTISSA_BITS_LEFT_OUT << MANTISSA_BITS_LEFT_OUT).view(torch.float32)
    return x + (low - x.detach())


def convolve(layer: nn.Conv2d, x: Tensor, kind: str) -> Tensor:
    """Replacement of `stem.convolve` that knows the kinds of this file."""
    if kind in ("float32", "split"):
        return exact(layer, x, kind)
    assert layer.bias is not None
    sums = F.conv2d(rounded(x, kind), rounded(layer.weight, kind), padding=layer.padding)
    return (rounded(sums, kind) if kind == "bf16" else sums) + layer.bias[:, None, None]


def measure(built: experiment.Experiment, x0: Tensor, sampler: str, t: int) -> Tensor:
    """Return the squared error and the SSIM of each image restored from severity t, (N, 2) float64."""
    rows = []
    for first in range(0, len(x0), AT_ONCE):
        originals = x0[first : first + AT_ONCE]
        generators = seeds.image_generators(0, range(first, first + len(originals)))
        x_t, frozen = built.degrade(originals, t, generators)
        images = DegradedImages(x_t, t, frozen)
        restored = final(built.restore(images, Sampling(sampler)))
        rows.append(Fidelity().measure(restored, originals)[:, [0, 2]])
    return torch.cat(rows)


def differences(rows: Tensor, reference: Tensor) -> str:
    """Return RMSE and SSIM, and their differences from a reference with intervals, as table cells."""

    def finish(means: Tensor) -> Tensor:
        return torch.stack([means[..., 0].sqrt() - means[..., 2].sqrt(), means[..., 1] - means[..., 3]], -1)

    both = torch.cat([rows, reference], 1)
    cells = []
    found = zip((rows[:, 0].mean().sqrt(), rows[:, 1].mean()), finish(both.mean(0)), strict=True)
    for (value, change), (low, high) in zip(found, bootstrap.intervals(both, finish), strict=True):
        cells += [f"{value:.4f}", f"{change:+.6f} ({low:+.6f} to {high:+.6f})"]
    return " | ".join(cells)


def set_kind(built: experiment.Experiment, kind: str) -> None:
    """Set the precision of the network's stem to one of this file's kinds."""
    unet: Any = built.restorer.unet
    unet.stem.precision = kind


def train(preset: str, overrides: list[str], kind: str, data: Path) -> experiment.Experiment:
    """Train a preset with a kind of stem, in memory."""
    config = presets.load(preset, [BODY, f'data.directory="{data}"', *overrides])
    request = datasets.DatasetRequest("train", config.data.size, directory=data)
    images = datasets.load(config.data.dataset, request)
    built = experiment.build(config, images.shape[0], torch.device("cpu"))
    set_kind(built, kind)
    stepper, log = Stepper(built, images, print), TrainingLog(torch.device("cpu"), 0)
    for step in range(config.train.steps):
        stepper.take(step, log)
    built.restorer.unet.eval().requires_grad_(False)
    return built


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("run", help="a run, or with --train a preset")
    options.add_argument("--n", type=int, default=1000)
    options.add_argument("--t", type=int, default=0, help="severity; the most severe if 0")
    options.add_argument("--train", type=int, default=0, help="steps")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--kinds", default=",".join(KINDS))
    options.add_argument("--samplers", default="direct,tacos")
    options.add_argument("--set", action="append", default=[], dest="overrides")
    chosen = options.parse_args()
    print("| seed | sampler | stem | RMSE | difference | SSIM | difference |\n|---|---|---|---|---|---|---|")
    with mock.patch.object(stem, "convolve", convolve):
        for seed in range(chosen.seeds):
            reference: dict[str, Tensor] = {}
            for kind in chosen.kinds.split(","):
                if chosen.train:
                    settings = [f"train.seed={seed}", f"train.steps={chosen.train}", *chosen.overrides]
                    built = train(chosen.run, settings, kind, chosen.data)
                else:
                    built = open_run.open_run(chosen.run, device="cpu", overrides=(BODY,)).experiment
                    set_kind(built, kind)
                data = built.config.data
                request = datasets.DatasetRequest("test", data.size, directory=chosen.data)
                x0 = datasets.load(data.dataset, request).images(slice(chosen.n))
                for sampler in chosen.samplers.split(","):
                    with torch.no_grad():
                        rows = measure(built, x0, sampler, chosen.t or built.operator.steps)
                    cells = differences(rows, reference.setdefault(sampler, rows))
                    print(f"| {seed} | {sampler} | {kind} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
