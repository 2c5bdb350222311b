"""AFHQ's cats, from folders of images or archives."""

from __future__ import annotations

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.layouts import _root, _split


@register("afhq", has_crops=True)
def load_afhq(request: DatasetRequest) -> ImageSet:
    """Return AFHQ's cats. Source: Choi et al. 2020."""
    root = _root(request)
    remedy = (
        f"Unpack afhq.zip or afhq_v2.zip of github.com/clovaai/stargan-v2 into {root} (afhq/train/cat, afhq/val/cat); "
        "or name another folder with --data-dir."
    )
    return _split("AFHQ", root, ("afhq-cat-128", "afhq-cat", "afhq"), request, remedy, inner="cat")
