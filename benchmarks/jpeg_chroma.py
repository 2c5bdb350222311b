"""Measure how much color JPEG removes from pictures of 32 pixels, by its effect on the `desaturate` column.

Usage: python benchmarks/jpeg_chroma.py PHOTO...
Scales photographs to 32, 64 and 128 pixels and cuts them into tiles of 32. Prints RMSE and SSIM of the desaturated
tiles before and after JPEG of quality 75 with halved chroma, the format of CIFAR-10 (JPEG).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from colddiff_core import degradations, images
from colddiff_core.evaluation.fidelity import Fidelity

TILE_PIXELS, SIDES_PIXELS = 32, (32, 64, 128)
QUALITY = 75


def tiles(photo: Path, side: int) -> Tensor:
    """Return a photograph's tiles (N, 3, 32, 32) float32 in [-1, 1], after scaling it to `side` pixels."""
    x = images.read(photo, size=side, channels=3)
    grid = x.unfold(1, TILE_PIXELS, TILE_PIXELS).unfold(2, TILE_PIXELS, TILE_PIXELS)
    return grid.permute(1, 2, 0, 3, 4).reshape(-1, 3, TILE_PIXELS, TILE_PIXELS)


def main() -> None:
    op = degradations.build("desaturate", steps=50)
    for side in SIDES_PIXELS:
        before = torch.cat([tiles(Path(name), side) for name in sys.argv[1:]])
        after = images.jpeg_round_trip(before, torch.full((len(before),), QUALITY))
        for label, x0 in (("original", before), ("after JPEG", after)):
            meter = Fidelity()
            meter.update(op(x0, 50), x0)
            figures = meter.result()
            name = f"scaled to {side}, {len(x0)} tiles, {label}"
            print(f"{name:<40}RMSE {figures['rmse']:.4f}  SSIM {figures['ssim']:.3f}")


if __name__ == "__main__":
    main()
