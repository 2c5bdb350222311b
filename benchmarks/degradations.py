"""Time D(x, t) of every operator against its literal, step-by-step form.

Usage: python benchmarks/degradations.py [--json] [NAME...]
The literal forms are the paper's definitions in tests/literal.py, in float32 on the same images and threads.
`ratio` is their time over ours at t = T; `flat` is our longest time over our shortest across t; `mixed` is our time
with a different t for each image; `difference` is the largest between the results. Times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from colddiff_core import degradations, seeds

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import literal

SMALL, LARGE = (64, 3, 32, 32), (8, 3, 128, 128)
CASES = (
    # label, operator, parameters, shape
    ("blur MNIST T=20", "blur", {"steps": 20, "schedule": "constant", "std": 7.0, "kernel_size": 11}, (64, 1, 32, 32)),
    (
        "blur T=50",
        "blur",
        {"steps": 50, "schedule": "linear", "std": 0.35, "kernel_size": 11, "padding": "reflect"},
        SMALL,
    ),
    ("blur T=200", "blur", {"steps": 200, "kernel_size": 15, "padding": "reflect"}, LARGE),
    ("blur T=300", "blur", {"steps": 300, "kernel_size": 27}, LARGE),
    *((f"{name} T={steps}", name, {"steps": steps}, shape)
      for shape in (SMALL, LARGE)
      for name, steps in (("noise", 200), ("mask", 50), ("pixelate", 3 if shape is SMALL else 6),
                          ("desaturate", 50), ("snow", 200), ("animorph", 200))),
)  # fmt: skip
REPEATS, ROUNDS = 5, 9


def seconds(work: Callable[[], Tensor], rounds: int = ROUNDS, repeats: int = REPEATS) -> list[float]:
    """Return the mean time of a call in seconds, for each round of `repeats` calls."""
    times = []
    for _ in range(rounds):
        start = _now()
        for _ in range(repeats):
            work()
        times.append((_now() - start) / repeats)
    return times


def _now() -> float:
    if torch.cuda.is_initialized():  # kernels run asynchronously
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    label: str, name: str, parameters: dict, shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> dict:
    """Return a row of the table; `literal_rounds` and `closed_rounds` are the seconds of each round at t = T."""
    op = degradations.build(name, **parameters)
    x0 = (torch.rand(shape, generator=seeds.generator(0)) * 2 - 1).to(device)
    second = {op.second_field: x0.flip(-1)} if op.second_field else {}
    frozen = op.freeze(x0, generator=seeds.generator(1, device=device), **second)
    form = literal.FORMS[name]
    closed = op(x0, op.steps, frozen)  # also builds the tables
    difference = (closed - form(op, x0, op.steps, frozen)).abs().max().item()
    severities = sorted({1, 2, op.steps // 4, op.steps // 2, op.steps} - {0})
    rounds = {t: seconds(lambda t=t: op(x0, t, frozen)) for t in severities}
    times = {t: statistics.median(values) for t, values in rounds.items()}
    mixed = torch.randint(1, op.steps + 1, (len(x0),), generator=seeds.generator(2)).to(device)
    slow_rounds = seconds(lambda: form(op, x0, op.steps, frozen), rounds=3, repeats=1)
    slow = statistics.median(slow_rounds)
    return {
        "case": label,
        "shape": list(shape),
        "literal_ms": slow * 1e3,
        "closed_ms": times[op.steps] * 1e3,
        "mixed_ms": statistics.median(seconds(lambda: op(x0, mixed, frozen))) * 1e3,
        "ratio": slow / times[op.steps],
        "flat": max(times.values()) / min(times.values()),
        "difference": difference,
        "literal_rounds": slow_rounds,
        "closed_rounds": rounds[op.steps],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="operators (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rows = [measure(*case) for case in CASES if not arguments.names or case[1] in arguments.names]
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}, indent=1))
        return
    print(f"D(x, T), {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    headings = f"{'literal ms':>11}{'ours ms':>9}{'mixed ms':>9}{'ratio':>9}{'flat':>6}{'difference':>12}"
    print(f"{'case':<18}{'shape':<17}{headings}")
    for r in rows:
        shape = "x".join(map(str, r["shape"]))
        print(
            f"{r['case']:<18}{shape:<17}{r['literal_ms']:>11.1f}{r['closed_ms']:>9.3f}{r['mixed_ms']:>9.3f}"
            f"{'x' + format(r['ratio'], ',.0f'):>9}{r['flat']:>6.2f}{r['difference']:>12.1e}"
        )


if __name__ == "__main__":
    main()
