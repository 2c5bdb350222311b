"""What a data set is, and the registry of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.datasets import epoch_order
from colddiff_core.errors import UsageError
from colddiff_core.images import to_floats
from colddiff_core.text import nearest, shown

Split = Literal["train", "test"]
DIGEST_PART = 1024  # images at a time


@dataclasses.dataclass(frozen=True)
class DatasetRequest:
    """What is wanted of a data set.

    `size` is the side in pixels; `channels` is 1, 3, or 0 for what the data set has; `directory` is
    where its files lie or go; `download` allows fetching them. `crop` > 0 takes up to so many squares of that side from
    each picture at its own resolution, so that each window `margin` pixels smaller lies within one, where they suffice.
    """

    split: Split
    size: int
    channels: int = 0
    directory: Path | None = None
    download: bool = True
    crop: int = 0
    margin: int = 0


class TrainingSet(Protocol):
    """What a training needs of its images, whether they lie in memory or are read while it goes on.

    shape: (C, H, W) of each; class_count: how many classes its labels tell apart, 0 where there are none; the rest as
    in `ImageSet`. `rows` and `labels_of` may be called from two threads.
    """

    @property
    def channels(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def class_count(self) -> int: ...
    @property
    def has_labels(self) -> bool: ...
    @property
    def skipped(self) -> int: ...
    @property
    def suffixes(self) -> frozenset[str]: ...
    @property
    def note(self) -> str: ...

    def __len__(self) -> int: ...

    def order(self, seed: int, step: int, size: int) -> Tensor:
        """Return the numbers (size,) int64 of the images that a step takes, the same whenever it is asked."""
        ...

    def rows(self, numbers: Tensor) -> Tensor:
        """Return images (B, C, H, W) uint8 by their numbers (B,) int64, in that order."""
        ...

    def labels_of(self, numbers: Tensor) -> Tensor:
        """Return the labels (B,) int64 of what `rows` gives for these numbers."""
        ...

    def digest(self, most: int | None = None) -> str:
        """Return a short name of what the images are, looking at no more than `most` of them, if given."""
        ...

    def close(self) -> None:
        """Let go of files and processes; nothing can be read after that."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A split held as one tensor.

    pixels: (N, C, H, W) uint8; labels: (N,) int64 or None; classes: their names where they have any; skipped: how many
    files were left out, which could not be read or have no room for a crop; suffixes: of the image files, where it
    comes from such; note: in what they differ from the data set as published, such as "JPEG".
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: int = 0
    suffixes: frozenset[str] = frozenset()
    note: str = ""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    @property
    def class_count(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def order(self, seed: int, step: int, size: int) -> Tensor:
        """Return the numbers (size,) int64 of the images that a step takes: every epoch a new permutation."""
        return epoch_order.shuffled(len(self), seed, step, size)

    def rows(self, numbers: Tensor) -> Tensor:
        """Return images (B, C, H, W) uint8 by their numbers (B,) int64, in that order."""
        return self.pixels[numbers]

    def labels_of(self, numbers: Tensor) -> Tensor:
        """Return the labels (B,) int64 of images; raises ValueError where there are none."""
        if self.labels is None:
            raise ValueError("these images have no labels")
        return self.labels[numbers]

    def close(self) -> None:
        """Let go of nothing: the pixels stay for as long as somebody has them."""

    def draw(self, count: int) -> Tensor:
        """Return the numbers (count,) int64 of images drawn at random, the same every time; all where there are fewer.

        The first images of a set may be of one class or of one source (those of MNIST's test set are the easier half),
        and evenly spaced ones too, where classes take turns. A smaller draw is the beginning of a larger one.
        """
        return torch.randperm(len(self), generator=seeds.generator("draw", len(self)))[:count]

    def center(self, size: int) -> ImageSet:
        """Return the set with the middle of every image, size x size pixels: a view of these."""
        top, left = ((side - size) // 2 for side in self.pixels.shape[-2:])
        return dataclasses.replace(self, pixels=self.pixels[..., top : top + size, left : left + size])

    def digest(self, most: int | None = None) -> str:
        """Return a short name of these pixels, in hexadecimal; of at most `most` images, evenly spread, if given."""
        step = 1 if most is None else max(1, -(-len(self) // most))
        found = hashlib.blake2b(digest_size=8)
        for part in self.pixels[::step].split(DIGEST_PART):
            found.update(part.cpu().contiguous().numpy())  # part by part: the set may be as large as memory
        return found.hexdigest()

    def images(self, indices: Tensor | slice) -> Tensor:
        """Return some images as (B, C, H, W) float32 in [-1, 1], on the pixels' device."""
        if isinstance(indices, Tensor):
            indices = indices.to(self.pixels.device)
        return to_floats(self.pixels[indices])


Loader = Callable[[DatasetRequest], ImageSet]
_REGISTRY: dict[str, Loader] = {}
_PACKAGES: dict[str, str] = {}
_CROPPED: set[str] = set()


def register(name: str, *, package: str = "", has_crops: bool = False) -> Callable[[Loader], Loader]:
    """Register the function that loads the data set `name`.

    `package` is what installs it, where one does; `has_crops` tells that its images come in sizes of their own, so that
    `Request.crop` has a meaning for it.
    """

    def add(loader: Loader) -> Loader:
        _REGISTRY[name] = loader
        _PACKAGES[name] = package
        if has_crops:
            _CROPPED.add(name)
        return loader

    return add


def names() -> list[str]:
    """Return every data set's name, sorted."""
    return sorted(_REGISTRY)


def package_of(name: str) -> str:
    """Return the package that a data set comes with; empty where its files lie in a folder."""
    return _PACKAGES.get(name, "")


def load(name: str, request: DatasetRequest) -> ImageSet:
    """Return one split of the data set `name`.

    Raises UsageError for an unknown name, for a crop of images that have none, and what the data set's loader says of
    bad input, MachineError where files cannot be had.
    """
    return find(name, crop=request.crop)(request)


def find(name: str, *, crop: int = 0) -> Loader:
    """Return the loader of the data set `name`.

    Raises UsageError with the nearest known name, and for a crop of images that have no sizes of their own.
    """
    if name not in _REGISTRY:
        raise UsageError(f"Unknown dataset {shown(name)}.", nearest(name, _REGISTRY))
    if crop and name not in _CROPPED:
        raise uncropped(name)
    return _REGISTRY[name]


def uncropped(what: str) -> UsageError:
    """Return what is told where a crop is asked of images that are all of one small size."""
    known = ", ".join(sorted(_CROPPED))
    return UsageError(f"data.crop: the images of {what} are all of one small size.", f"Leave it out; {known} know it.")


def fit(pixels: Tensor, request: DatasetRequest) -> Tensor:
    """Return (N, C, H, W) uint8 pixels at the size and channels asked for, bilinear with antialias."""
    if pixels.shape[-1] != request.size or pixels.shape[-2] != request.size:
        size = (request.size, request.size)
        resized = [
            F.interpolate(part.float(), size=size, mode="bilinear", antialias=True)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
            for part in pixels.split(4096)
        ]
        pixels = torch.cat(resized)
    if request.channels == 3 and pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    return pixels
