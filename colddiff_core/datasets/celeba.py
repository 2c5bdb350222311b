"""CelebA's aligned faces, from the published archive's folder or from folders of images."""

from __future__ import annotations

from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.decoding import decode, list_images
from colddiff_core.datasets.folder import hashed_split
from colddiff_core.datasets.layouts import _root, _split

CELEBA_SPLITS = {"train": "0", "test": "2"}


@register("celeba", has_crops=True)
def load_celeba(request: DatasetRequest) -> ImageSet:
    """Return CelebA's aligned faces, the center square. Source: Liu et al. 2015."""
    root = _root(request)
    aligned = root / "celeba" / "img_align_celeba"
    if aligned.is_dir():
        return decode(_celeba_paths(aligned, request.split), request, aligned)
    remedy = (
        "Unpack img_align_celeba.zip of mmlab.ie.cuhk.edu.hk/projects/CelebA.html into "
        f"{root / 'celeba'}, list_eval_partition.txt beside it; or name another folder with --data-dir."
    )
    return _split("CelebA", root, ("celeba", "celeba-half"), request, remedy)


def _celeba_paths(aligned: Path, split: str) -> list[Path]:
    paths = list_images(aligned)
    partition = aligned.parent / "list_eval_partition.txt"
    if not partition.is_file():
        return hashed_split(paths, aligned, split)
    rows = (line.split() for line in partition.read_text(encoding="ascii", errors="replace").splitlines())
    chosen = {row[0] for row in rows if len(row) == 2 and row[1] == CELEBA_SPLITS[split]}
    return [path for path in paths if path.name in chosen]
