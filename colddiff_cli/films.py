"""Trajectories as films."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MOST_FRAMES = 60
TILE = 64


def frames(trajectory: list[Tensor]) -> list[Image.Image]:
    """Return at most MOST_FRAMES grids of the images (B, C, H, W) on their way, the first and the last among them."""
    from colddiff_core import images

    count = min(len(trajectory), MOST_FRAMES)
    picked = sorted({round(i * (len(trajectory) - 1) / max(count - 1, 1)) for i in range(count)})
    across = max(1, round(len(trajectory[0]) ** 0.5))
    side = TILE * across
    return [images.enlarge(images.to_pillow(images.tile(trajectory[i], across)), side) for i in picked]
