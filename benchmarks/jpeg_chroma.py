"""What JPEG takes from the color of 32 pixel pictures, measured through the `desaturate` column.

Usage: python benchmarks/jpeg_chroma.py PHOTO...
Cuts photographs, scaled down to 32, 64 and 128 pixels, into tiles of 32; prints RMSE and SSIM of their desaturation
before and after JPEG of quality 75 with halved chroma, which is how CIFAR-10 (JPEG) is stored.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from colddiff_core import degradations, images
from colddiff_core.evaluation.fidelity import Fidelity

TILE, SIDES = 32, (32, 64, 128)


def tiles(photo: Path, side: int) -> Tensor:
    x = images.read(photo, size=side, channels=3)
    return x.unfold(1, TILE, TILE).unfold(2, TILE, TILE).permute(1, 2, 0, 3, 4).reshape(-1, 3, TILE, TILE)


def through_jpeg(x: Tensor) -> Tensor:
    stored = io.BytesIO()
    images.to_pillow(x).save(stored, "JPEG", quality=75, subsampling="4:2:0")
    stored.seek(0)
    pixels = torch.frombuffer(bytearray(Image.open(stored).convert("RGB").tobytes()), dtype=torch.uint8)
    return images.to_floats(pixels.view(TILE, TILE, 3).permute(2, 0, 1))


def main() -> None:
    op = degradations.build("desaturate", steps=50)
    for side in SIDES:
        before = torch.cat([tiles(Path(name), side) for name in sys.argv[1:]])
        for label, x0 in (("as they are", before), ("through JPEG", torch.stack([through_jpeg(x) for x in before]))):
            meter = Fidelity()
            meter.update(op(x0, 50), x0)
            found = meter.result()
            where = f"scaled to {side}, {len(x0)} tiles, {label}"
            print(f"{where:<40}RMSE {found['rmse']:.4f}  SSIM {found['ssim']:.3f}")


if __name__ == "__main__":
    main()
