"""The cats of AFHQ, from image folders or archives."""

from __future__ import annotations

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.layouts import data_root, load_split


@register("afhq", has_crops=True)
def load_afhq(request: DatasetRequest) -> ImageSet:
    """Return the AFHQ cats as (N, C, H, W) uint8, the center square of each.

    Source: Choi et al. 2020, StarGAN v2.

    Raises:
        UsageError: The data set is not in the data folder or cannot be read.
    """
    root = data_root(request)
    remedy = (
        f"Unpack afhq.zip or afhq_v2.zip from github.com/clovaai/stargan-v2 into {root} (afhq/train/cat, afhq/val/cat)"
        ", or name another folder with --data-dir."
    )
    return load_split("AFHQ", root, ("afhq-cat-128", "afhq-cat", "afhq"), request, remedy, inner="cat")
