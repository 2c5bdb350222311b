"""Compare the GPU memory of a training pass with its estimate: python benchmarks/pass_memory.py [--all]

Prints a Markdown table of the peak memory per image of torch's allocator (the peak with 64 images minus that with 32)
on the null CUDA runtime of tests/cuda, and of `memory.training_image_bytes`. Kernel workspaces are not included. With
--all, also prints the range of the ratio over 144 more networks. See docs/decisions/012-memory.md.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence

import null_gpu
import torch

from colddiff_core.config import presets
from colddiff_core.models import memory

PRESETS = ("mnist-blur", "celeba-blur", "mnist-blur-small", "celeba-blur-small", "photos-blur")
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
COUNTS = (32, 64)  # images


def others() -> Iterator[str]:
    """Yield more networks, each as a preset with settings."""
    blocks, attentions = ("convnext", "resnet", "local"), ("all", "middle", "none")
    for block, attention, width, levels, side, inputs in itertools.product(
        blocks, attentions, (16, 64), ("[1,2]", "[1,2,4,8]"), (16, 64), ("plain", "inverse")
    ):
        model = f"model.block={block} model.attention={attention} model.width={width} model.multipliers={levels}"
        yield f"mnist-blur {model} model.inputs={inputs} data.size={side}"


def measured(cases: Sequence[str]) -> list[tuple[float, int]]:
    """Return the bytes per image of each case, measured and estimated."""
    steps = [f"train {case} train.batch_size={n} train.accumulate=1" for case in cases for n in COUNTS]
    peaks = [found["peak_gib"] * 2**30 for found in null_gpu.counted(steps)]
    pairs = []
    for case, few, many in zip(cases, peaks[::2], peaks[1::2], strict=True):
        name, *overrides = case.split()
        config = presets.load(name, overrides)
        estimate = memory.training_image_bytes(config.model, config.data.size, DTYPES[config.train.precision])
        pairs.append(((many - few) / (COUNTS[1] - COUNTS[0]), estimate))
    return pairs


def main() -> int:
    """Measure and print."""
    columns = {name: measured([f"{preset} train.precision={name}" for preset in PRESETS]) for name in DTYPES}
    print("| preset, side |", *(f"{name}: measured, estimate |" for name in columns))
    print("|---|", *("---|" for _ in columns))
    for preset, *cells in zip(PRESETS, *columns.values(), strict=True):
        texts = [f"{m / 1e6:.3g} MB, {e / 1e6:.3g} ({e / m - 1:+.0%})" for m, e in cells]
        print(f"| `{preset}`, {presets.load(preset).data.size} | {' | '.join(texts)} |")
    if "--all" in sys.argv:
        for name in DTYPES:
            ratios = [
                estimate / found for found, estimate in measured([f"{c} train.precision={name}" for c in others()])
            ]
            print(f"{len(ratios)} networks, {name}: the estimate is {min(ratios):.2f} to {max(ratios):.2f} times that")
    return 0


if __name__ == "__main__":
    sys.exit(main())
