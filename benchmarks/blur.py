"""D(x, t) of `blur` against the chain of convolutions it replaces: times in one run, ratio and difference.

Usage: python benchmarks/blur.py [--json]
The baseline is the paper's definition written out: t convolutions, each a padded two-dimensional kernel
per channel. Both run in float32 on the same images and threads; medians of the repeats.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core import degradations
from colddiff_core.degradations import Degradation

CASES = (
    # name, batch, channels, side, parameters
    ("MNIST T=20", 64, 1, 32, {"steps": 20, "schedule": "constant", "std": 7.0, "kernel_size": 11}),
    (
        "CIFAR-10 T=50",
        64,
        3,
        32,
        {"steps": 50, "schedule": "linear", "std": 0.35, "kernel_size": 11, "padding": "reflect"},
    ),
    ("128 px T=200", 8, 3, 128, {"steps": 200, "kernel_size": 15, "padding": "reflect"}),
    ("128 px T=300", 8, 3, 128, {"steps": 300, "kernel_size": 27}),
)


def kernels(op: Degradation, channels: int) -> list[Tensor]:
    """Return the chain's kernels, (channels, 1, k, k) each, built beforehand as the authors' code does."""
    half = op.kernel_size // 2
    y, x = torch.meshgrid(torch.arange(-half, half + 1.0), torch.arange(-half, half + 1.0), indexing="ij")
    made = []
    for i in range(op.steps):
        std = {
            "constant": op.std,
            "linear": op.std + op.growth * i,
            "exponential": op.std * math.exp(op.growth * i),
        }[op.schedule]
        kernel = torch.exp(-(y**2 + x**2) / (2 * std**2))
        made.append((kernel / kernel.sum()).expand(channels, 1, -1, -1).contiguous())
    return made


def chain(x: Tensor, op: Degradation, weights: list[Tensor]) -> Tensor:
    half = op.kernel_size // 2
    for weight in weights:
        x = F.conv2d(F.pad(x, [half] * 4, mode=op.padding), weight, groups=x.shape[1])
    return x


def seconds(work: Callable[[], Tensor], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name: str, batch: int, channels: int, side: int, parameters: dict) -> dict:
    op = degradations.build("blur", **parameters)
    x0 = torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weights = kernels(op, channels)
    start = time.perf_counter()
    closed = op(x0, op.steps)  # builds the table
    building = time.perf_counter() - start
    difference = (closed - chain(x0, op, weights)).abs().max().item()
    mixed = torch.randint(1, op.steps + 1, (batch,), generator=torch.Generator().manual_seed(1))
    times = {t: seconds(lambda t=t: op(x0, t), 30) for t in (1, op.steps // 2, op.steps)}
    literal = seconds(lambda: chain(x0, op, weights), 3)
    return {
        "case": name,
        "literal_ms": literal * 1e3,
        "closed_ms": times[op.steps] * 1e3,
        "mixed_t_ms": seconds(lambda: op(x0, mixed), 30) * 1e3,
        "ratio": literal / times[op.steps],
        "flat_in_t": max(times.values()) / min(times.values()),
        "table_s": building,
        "difference": difference,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--json", action="store_true", help="print JSON instead of a table")
    as_json = arguments.parse_args().json
    rows = [measure(*case) for case in CASES]
    if as_json:
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}, indent=1))
        return
    print(f"D(x, T) of blur, {torch.get_num_threads()} threads, torch {torch.__version__}")
    headings = f"{'chain ms':>10}{'closed ms':>11}{'mixed t ms':>12}{'ratio':>10}{'max/min t':>11}{'difference':>12}"
    print(f"{'case':<15}{headings}")
    for r in rows:
        print(
            f"{r['case']:<15}{r['literal_ms']:>10.1f}{r['closed_ms']:>11.3f}{r['mixed_t_ms']:>12.3f}"
            f"{'x' + format(r['ratio'], ',.0f'):>10}{r['flat_in_t']:>11.2f}{r['difference']:>12.1e}"
        )


if __name__ == "__main__":
    main()
