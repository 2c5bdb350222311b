"""The aligned faces of CelebA, from the published archive or from image folders."""

from __future__ import annotations

from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.damage import kind_of
from colddiff_core.datasets.decoding import decode
from colddiff_core.datasets.folder import hashed_split
from colddiff_core.datasets.layouts import data_root, load_split
from colddiff_core.datasets.picture_files import find_pictures
from colddiff_core.errors import UsageError
from colddiff_core.files import read_ordinary

MAX_LIST_BYTES = 1 << 26
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
    found = find_pictures(aligned)
    partition = aligned.parent / "list_eval_partition.txt"
    if not partition.is_file():
        return hashed_split(found.paths, aligned, split, found)
    try:
        content = read_ordinary(partition, MAX_LIST_BYTES)
    except OSError as error:
        raise UsageError(f"Cannot read {partition}: {error.strerror or error}.", "Check the file.") from None
    rows = [line.split() for line in content.decode("ascii", errors="replace").splitlines()]
    chosen = {row[0] for row in rows if len(row) == 2 and row[1] == CELEBA_SPLITS[split]}
    if not chosen:
        kind = kind_of(content) or "no list of CelebA's splits"
        raise UsageError(f"{partition} is {kind}.", "Delete it and download it again, or do without it.")
    paths = [path for path in found.paths if path.name in chosen]
    if len(found.paths) > 1 and not paths:
        raise UsageError(f"{partition} names none of the images in {aligned}.", "Check that both are of CelebA.")
    return paths
