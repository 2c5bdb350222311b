"""Write trajectories as films."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colddiff_cli.arguments.outputs import free_path

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FILMS = (".gif", ".webp")
MOST_FRAMES = 60
TILE_PIXELS = 64


def outputs(
    out: Path | None, default: Path, *, animate: bool, force: bool, keep: bool = False
) -> tuple[Path | None, Path | None]:
    """Return the paths of a picture and its film; --out may name either.

    Args:
        keep: If --out exists, write neither and return None for both.

    Raises:
        UsageError: A path exists without `force`, or has an unknown suffix.
    """
    from colddiff_core import images

    if keep and out is not None and out.exists():
        return None, None
    film = out if animate and out is not None and out.suffix.lower() in FILMS else None
    picture = free_path(out.with_suffix(".png") if out is not None and film else out, default, force=force)
    images.check_suffix(picture, images.SUFFIXES)
    if not animate:
        return picture, None
    return picture, free_path(film, picture.with_suffix(".gif"), force=force)


def frames(trajectory: list[Tensor]) -> list[Image.Image]:
    """Return at most MOST_FRAMES grids of images (B, C, H, W) float32 in [-1, 1], including the first and the last."""
    from colddiff_core import images

    count = min(len(trajectory), MOST_FRAMES)
    picked = sorted({round(i * (len(trajectory) - 1) / max(count - 1, 1)) for i in range(count)})
    across = max(1, round(len(trajectory[0]) ** 0.5))
    side = TILE_PIXELS * across
    return [images.enlarge(images.to_pillow(images.tile(trajectory[i], across)), side) for i in picked]
