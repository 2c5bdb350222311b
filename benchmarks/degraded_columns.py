"""Compare the "Degraded" columns of the paper's tables with ours: D(x, T) on test images, without a network.

Usage: python benchmarks/degraded_columns.py DATA_DIR [--n N] [PRESET...]
Measures every preset that has published figures for its degraded images. Data sets missing from DATA_DIR are reported
and skipped. RMSE and SSIM are those of `colddiff eval`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from colddiff_core import datasets, degradations, seeds
from colddiff_core.config import presets, schema
from colddiff_core.errors import ColddiffError
from colddiff_core.evaluation.fidelity import Fidelity

BATCH_IMAGES = 250


def measure(config: schema.Config, directory: Path, most: int) -> tuple[int, dict]:
    """Return how many test images were degraded, at most `most`, and their mean figures."""
    request = datasets.DatasetRequest("test", config.data.size, config.data.channels, directory, download=False)
    images = datasets.load(config.data.dataset, request)
    op = degradations.build(config.degradation.name, **config.degradation.parameters)
    meter = Fidelity()
    count = min(len(images), most)
    for first in range(0, count, BATCH_IMAGES):
        x0 = images.images(slice(first, min(first + BATCH_IMAGES, count)))
        frozen = op.freeze(x0, generator=seeds.image_generators(0, range(first, first + len(x0))))
        meter.update(op(x0, op.steps, frozen), x0)
    return count, meter.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="folder of the data sets")
    parser.add_argument("presets", nargs="*", help="presets (default: all with published figures)")
    parser.add_argument("--n", type=int, default=10_000, help="maximum number of images per set")
    arguments = parser.parse_args()
    print(f"{'preset':<20}{'images':>7}{'RMSE':>8}{'paper':>8}{'off':>8}{'SSIM':>8}{'paper':>8}  source")
    for name in arguments.presets or presets.names():
        config = presets.load(name)
        published = config.paper.get("degraded")
        if not published:
            continue
        try:
            count, figures = measure(config, arguments.directory, arguments.n)
        except ColddiffError as error:
            print(f"{name:<20}{error.what}")
            continue
        off = figures["rmse"] / published["rmse"] - 1
        print(
            f"{name:<20}{count:>7}{figures['rmse']:>8.4f}{published['rmse']:>8.3f}{off:>+8.1%}"
            f"{figures['ssim']:>8.3f}{published['ssim']:>8.3f}  {config.paper['source']}"
        )


if __name__ == "__main__":
    main()
