"""Measure how often `choose` finds the operator that degraded a picture.

Usage: python benchmarks/choice.py --data-dir DIR [--n N] [--per N] [--quality Q]
Prints a confusion table per data set: each picture as it is and degraded by each operator of the presets photos-*, at
severities spread over 1..steps and rounded to 8 bits. DIR/kodak holds PNGs; DIR/celeba-half and DIR/afhq-cat-128 hold
test.tar or a folder `test` of JPEGs; missing sets are skipped. AFHQ's cats and the photographs from scikit-image and
scikit-learn are only asked as they are. With --quality every picture is compressed by JPEG before it is asked.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import severity
import torch
from torch import Tensor

from colddiff_core import degradations
from colddiff_core.config import presets
from colddiff_core.datasets import photos
from colddiff_core.degradations import Degradation
from colddiff_core.degradations.estimation.choice import choose
from colddiff_core.images import jpeg_round_trip

PRESETS = ("photos-blur", "photos-pixelate", "photos-mask", "photos-desaturate", "photos-snow")
NONE = "none"


def operators() -> dict[str, Degradation]:
    """Return the operators of PRESETS by their own names."""
    settings = [presets.load(preset).degradation for preset in PRESETS]
    return {each.name: degradations.build(each.name, **each.parameters) for each in settings}


def own_photographs() -> list[Tensor]:
    """Return the color photographs from scikit-image and scikit-learn, training and test."""
    return [
        severity.picture(photos.folder(package) / name)
        for split in photos.COLORED.values()
        for package, names in split.items()
        for name in names
    ]


def measure(
    truth: str, pictures: Iterable[Tensor], asked: dict[str, Degradation], quality: int
) -> tuple[int, int, float]:
    """Print how often each operator was chosen; return how often the right one, of how many, and the CPU seconds."""
    chosen: Counter[str] = Counter()
    seconds = 0.0
    for x_t in pictures:
        stored = jpeg_round_trip(x_t, torch.full((len(x_t),), quality)) if quality else x_t
        started = time.process_time()
        chosen[choose(stored, asked).name or NONE] += 1
        seconds += time.process_time() - started
    count = chosen.total()
    row = "".join(f"{chosen[name] or '.':>12}" for name in (NONE, *asked))
    print(f"  {truth:<12}{row}{chosen[truth] / count:>10.1%}{seconds / count:>10.2f}", flush=True)
    return chosen[truth], count, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of kodak, celeba-half and afhq-cat-128")
    parser.add_argument("--n", type=int, default=50, help="maximum number of pictures per set")
    parser.add_argument("--per", type=int, default=4, help="severities per picture and operator")
    parser.add_argument("--quality", type=int, default=0, help="JPEG quality to store every picture at; 0 for none")
    arguments = parser.parse_args()
    asked = operators()
    sets = {
        "kodak": list(severity.kodak(arguments.data_dir, arguments.n)),
        "celeba": list(severity.celeba(arguments.data_dir, arguments.n)),
        "afhq": list(severity.spread(arguments.data_dir / "afhq-cat-128", arguments.n)),
        "scikit": own_photographs()[: arguments.n],
    }
    print("rows: what degraded a picture; columns: what was chosen; CPU seconds per picture")
    print(f"  {'':<12}" + "".join(f"{name:>12}" for name in (NONE, *asked)) + f"{'right':>10}{'seconds':>10}")
    for label, pictures in sets.items():
        if not pictures:
            continue
        print(label)
        results = [measure(NONE, pictures, asked, arguments.quality)]
        if label in ("kodak", "celeba"):
            for name, operator in asked.items():
                made = (x_t for _, x_t in severity.degraded(operator, pictures, arguments.per))
                results.append(measure(name, made, asked, arguments.quality))
            right, count, seconds = map(sum, zip(*results, strict=True))
            print(f"  {'all':<84}{right / count:>10.1%}{seconds / count:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
