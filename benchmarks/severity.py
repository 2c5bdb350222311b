"""Measure severity estimates: the median relative error by operator, data set and band of severities.

Usage: python benchmarks/severity.py --data-dir DIR [--n N] [--per N] [OPERATOR...]
DIR/kodak holds PNGs; DIR/celeba-half holds test.tar or a folder `test` of JPEGs; missing sets are skipped. Each picture
is degraded at severities spread over 1..steps, rounded to 8 bits and passed to `estimate`. Parameters come from the
preset photos-OPERATOR if there is one for that operator.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from colddiff_core import degradations, seeds
from colddiff_core.config import presets
from colddiff_core.degradations import Degradation
from colddiff_core.images import quantize

OPERATORS = {
    "blur": {"steps": 32, "schedule": "constant", "std": 0.7, "kernel_size": 9, "padding": "reflect"},
    "pixelate": {"steps": 2, "mode": "area"},
    "desaturate": {"steps": 20},
    "mask": {"steps": 50, "std": 4.0, "growth": 0.5},
    "mask-color": {"steps": 50, "std": 4.0, "growth": 0.5, "fill": "color"},
    "snow": {"steps": 50, "level": 3},
}
BANDS = (1 / 3, 2 / 3, 1.0)
GOLDEN_RATIO = 0.618  # spreads the severities differently for each picture


def operator(name: str) -> Degradation:
    """Return the operator of a preset photos-NAME, or of OPERATORS."""
    preset = f"photos-{name}"
    degradation = presets.load(preset).degradation if preset in presets.names() else None
    if degradation is not None and degradation.name == name:
        return degradations.build(name, **degradation.parameters)
    return degradations.build(name.partition("-")[0], **OPERATORS[name])


def picture(source: Path | io.BytesIO) -> Tensor:
    """Return an image file as (1, 3, H, W) float32 in [-1, 1]."""
    values = np.array(Image.open(source, formats=("PNG", "JPEG")).convert("RGB"))
    return torch.from_numpy(values).permute(2, 0, 1)[None] / 127.5 - 1


def kodak(directory: Path, most: int) -> Iterator[Tensor]:
    """Yield up to `most` of the Kodak photographs."""
    for path in sorted((directory / "kodak").glob("*.png"))[:most]:
        yield picture(path)


def celeba(directory: Path, most: int) -> Iterator[Tensor]:
    """Yield up to `most` test images of CelebA at half size, evenly spread."""
    return spread(directory / "celeba-half", most)


def spread(folder: Path, most: int) -> Iterator[Tensor]:
    """Yield up to `most` JPEGs of FOLDER/test.tar or of the folder FOLDER/test, evenly spread."""
    archive = folder / "test.tar"
    if not archive.exists():
        paths = sorted((folder / "test").glob("**/*.jpg"))
        yield from map(picture, paths[:: max(1, len(paths) // most)][:most])
        return
    with tarfile.open(archive) as files:
        members = [member for member in files if member.isfile() and member.name.endswith(".jpg")]
        for member in members[:: max(1, len(members) // most)][:most]:
            file = files.extractfile(member)
            assert file is not None
            yield picture(io.BytesIO(file.read()))


def degraded(op: Degradation, pictures: list[Tensor], per: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each picture at `per` severities spread over 1..steps, rounded to 8 bits, with its severity."""
    for number, x0 in enumerate(pictures):
        for index in range(per):
            t = 1 + int((index + number * GOLDEN_RATIO % 1) / per * op.steps)
            frozen = op.freeze(x0, generator=seeds.generator(1000 * number + index))
            yield t, quantize(op(x0, t, frozen), 8)


def measure(op: Degradation, pictures: list[Tensor], per: int) -> None:
    """Estimate `per` severities of each picture and print the row's figures."""
    results, seconds = [], 0.0
    for t, x_t in degraded(op, pictures, per):
        started = time.perf_counter()
        estimate = op.estimate(x_t)
        seconds += time.perf_counter() - started
        results.append((t, abs(estimate.t - t) / t, estimate.low <= t <= estimate.high))
    errors = [error for _, error, _ in results]
    row = f"{len(results):>5}{statistics.median(errors):>9.1%}"
    low = 0.0
    for high in BANDS:
        band = [error for t, error, _ in results if low < t / op.steps <= high + 1e-9]
        row += f"{statistics.median(band):>9.1%}" if band else f"{'-':>9}"
        low = high + 1e-9
    inside = sum(is_inside for *_, is_inside in results) / len(results)
    print(f"{row}{inside:>9.0%}{seconds / len(results):>9.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", help=f"of {', '.join(OPERATORS)} (default: all)")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that contains kodak and celeba-half")
    parser.add_argument("--n", type=int, default=50, help="maximum number of pictures per set")
    parser.add_argument("--per", type=int, default=4, help="severities per picture")
    arguments = parser.parse_args()
    sets = {
        "kodak": list(kodak(arguments.data_dir, arguments.n)),
        "celeba": list(celeba(arguments.data_dir, arguments.n)),
    }
    print("median |t - truth| / truth, also by thirds of the severities; how often low..high contains the truth")
    print(
        f"{'operator':<12}{'set':<8}{'n':>5}{'median':>9}{'mild':>9}{'middle':>9}{'severe':>9}{'inside':>9}{'seconds':>9}"
    )
    for name in arguments.operators or OPERATORS:
        for label, pictures in sets.items():
            if pictures:
                print(f"{name:<12}{label:<8}", end="")
                measure(operator(name), pictures, arguments.per)


if __name__ == "__main__":
    main()
