"""Count the kernel launches and waits of a step, without a GPU: python benchmarks/gpu_launches.py [CASE...]

Prints a Markdown table. For a training step, or a TACoS step of restoring, it has the kernel launches, how often the
CPU waits for the GPU, and torch's peak memory; with `--before CHECKOUT`, also those of another checkout's code. It uses
the null CUDA runtime of tests/cuda, so it needs Linux, gcc and torch's CUDA build. The counts depend on the code and
torch's version, not on the machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import null_gpu

CASES = (
    "train mnist-blur",
    "train mnist-blur-small",
    "train celeba-blur",
    "train celeba-snow-small",
    "train celeba-animorph",
    "train cifar10-mask",
    "train photos-blur",
    "train photos-blur degradation.jpeg=50",
    "train photos-mask",
    "train photos-snow",
    "train digits-holes",
    "restore mnist-blur",
    "restore celeba-blur-generate",
    "restore photos-blur",
)


def cells(found: dict[str, Any]) -> list[str]:
    """Return the table cells of one case."""
    if "failed" in found:
        return ["fails", "", ""]
    return [f"{found['launches']:,}", str(found["waits"]), f"{found['peak_gib']:.2f}"]


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="'train PRESET' or 'restore PRESET', then any KEY=VALUE")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    arguments = parser.parse_args()
    cases = arguments.cases or CASES
    roots = [*([arguments.before.resolve()] if arguments.before else []), null_gpu.ROOT]
    sides = [null_gpu.counted(cases, root) for root in roots]
    names = ("launches", "waits", "peak GiB")
    when = [f"{name} {word}".strip() for word in (["before", "now"] if len(roots) > 1 else [""]) for name in names]
    print(f"| step | images | {' | '.join(when)} |")
    print(f"|---|---:|{'---:|' * len(when)}")
    for case, *found in zip(cases, *sides, strict=True):
        row = [f"`{case}`", str(found[-1].get("images", "")), *(cell for side in found for cell in cells(side))]
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
