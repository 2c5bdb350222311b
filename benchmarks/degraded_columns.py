"""The "Degraded" columns of the paper's tables beside ours: D(x, T) on test images, no network.

Usage: python benchmarks/degraded_columns.py DATA_DIR [--n N] [PRESET...]
Every preset with published figures for its degraded images is measured; data sets that are not in DATA_DIR
are named and passed over. RMSE and SSIM as `colddiff eval` defines them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from colddiff_core import datasets, degradations, seeds
from colddiff_core.config import presets, schema
from colddiff_core.errors import ColddiffError
from colddiff_core.evaluation.fidelity import Fidelity

BATCH = 250


def measure(config: schema.Config, directory: Path, most: int) -> tuple[int, dict]:
    request = datasets.DatasetRequest("test", config.data.size, config.data.channels, directory, download=False)
    images = datasets.load(config.data.dataset, request)
    op = degradations.build(config.degradation.name, **config.degradation.parameters)
    meter = Fidelity()
    count = min(len(images), most)
    for first in range(0, count, BATCH):
        x0 = images.images(slice(first, min(first + BATCH, count)))
        frozen = op.freeze(x0, generator=seeds.image_generators(0, range(first, first + len(x0))))
        meter.update(op(x0, op.steps, frozen), x0)
    return count, meter.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="where the data sets lie")
    parser.add_argument("presets", nargs="*", help="presets; all with published figures if none are named")
    parser.add_argument("--n", type=int, default=10_000, help="most images of a set")
    arguments = parser.parse_args()
    print(f"{'preset':<20}{'images':>7}{'RMSE':>8}{'paper':>8}{'off':>8}{'SSIM':>8}{'paper':>8}  source")
    for name in arguments.presets or presets.names():
        config = presets.load(name)
        published = config.paper.get("degraded")
        if not published:
            continue
        try:
            count, found = measure(config, arguments.directory, arguments.n)
        except ColddiffError as error:
            print(f"{name:<20}{error.what}")
            continue
        off = found["rmse"] / published["rmse"] - 1
        print(
            f"{name:<20}{count:>7}{found['rmse']:>8.4f}{published['rmse']:>8.3f}{off:>+8.1%}"
            f"{found['ssim']:>8.3f}{published['ssim']:>8.3f}  {config.paper['source']}"
        )


if __name__ == "__main__":
    main()
