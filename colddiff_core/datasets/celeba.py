"""The aligned faces of CelebA, from the published archive or from image folders."""

from __future__ import annotations

from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.decoding import decode, list_images
from colddiff_core.datasets.folder import hashed_split
from colddiff_core.datasets.layouts import data_root, load_split

CELEBA_SPLITS = {"train": "0", "test": "2"}  # as numbered in list_eval_partition.txt


@register("celeba", has_crops=True)
def load_celeba(request: DatasetRequest) -> ImageSet:
    """Return the aligned CelebA faces as (N, C, H, W) uint8, the center square of each.

    Source: Liu et al. 2015.

    Raises:
        UsageError: The data set is not in the data folder or cannot be read.
    """
    root = data_root(request)
    aligned = root / "celeba" / "img_align_celeba"
    if aligned.is_dir():
        return decode(_celeba_paths(aligned, request.split), request, aligned)
    remedy = (
        "Unpack img_align_celeba.zip from mmlab.ie.cuhk.edu.hk/projects/CelebA.html into "
        f"{root / 'celeba'}, next to list_eval_partition.txt, or name another folder with --data-dir."
    )
    return load_split("CelebA", root, ("celeba", "celeba-half"), request, remedy)


def _celeba_paths(aligned: Path, split: str) -> list[Path]:
    paths = list_images(aligned)
    partition = aligned.parent / "list_eval_partition.txt"
    if not partition.is_file():
        return hashed_split(paths, aligned, split)
    rows = (line.split() for line in partition.read_text(encoding="ascii", errors="replace").splitlines())
    chosen = {row[0] for row in rows if len(row) == 2 and row[1] == CELEBA_SPLITS[split]}
    return [path for path in paths if path.name in chosen]
