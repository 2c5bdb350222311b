"""Hold out a fixed share of the training images, to validate on while training; the test images are left for `eval`."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.datasets import epoch_order
from colddiff_core.datasets.base import ImageSet, TrainingSet
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

SHARE, MOST_IMAGES = 0.05, 512


@dataclasses.dataclass(frozen=True)
class TrainingPart(ImageSet):
    """A split without the images that are held out. Indices count through the whole split, and `len` the part.

    Attributes:
        kept: (M,) int64, the indices of the part.
    """

    kept: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.kept)

    def order(self, seed: int, step: int, size: int) -> Tensor:
        """Return the image indices (size,) int64 of a training step; none is held out."""
        return self.kept[epoch_order.shuffled(len(self.kept), seed, step, size)]


def hold_out(images: TrainingSet, *, has_crops: bool) -> tuple[TrainingPart, ImageSet]:
    """Split training images into those to train on and those to validate on, the same ones on every call.

    Args:
        images: The training images, in memory.
        has_crops: Whether several images may be windows of one picture. Then the last ones are held out, so that at
            most one picture is on both sides, and else a random share.

    Raises:
        UsageError: The images are read during training, or there are too few.
    """
    if not isinstance(images, ImageSet):
        what = "train.validate_every needs a data set in memory; shards are read while training."
        raise UsageError(what, "Use train.validate_every=0, or a data set such as folder.")
    count = len(images)
    held = min(MOST_IMAGES, max(1, round(SHARE * count)))
    if held >= count:
        what = f"train.validate_every: {counted(count, 'training image')} cannot be split."
        raise UsageError(what, "Add images, or use train.validate_every=0.")
    order = torch.arange(count)
    if not has_crops:
        order = torch.randperm(count, generator=seeds.generator("held out", count))
    kept, rest = order[:-held].sort().values, order[-held:]
    # The pixels are shared: they may be a file as large as memory.
    part = TrainingPart(
        images.pixels,
        images.labels,
        images.classes,
        images.skipped,
        images.suffixes,
        images.note,
        images.skipped_files,
        images.remarks,
        kept=kept,
    )
    labels = None if images.labels is None else images.labels[rest]
    return part, dataclasses.replace(images, pixels=images.pixels[rest], labels=labels)
