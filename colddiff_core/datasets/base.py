"""The interface of a data set, and the registry of data sets."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core import devices, seeds
from colddiff_core.config.sizes import Size, sides
from colddiff_core.datasets import epoch_order
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.images import to_floats
from colddiff_core.text import nearest, shown

Split = Literal["train", "test"]
DIGEST_CHUNK_IMAGES = 1024
RESIZE_CHUNK_IMAGES = 4096


@dataclasses.dataclass(frozen=True)
class DatasetRequest:
    """Which split of a data set to load, and in what form.

    Attributes:
        split: "train" or "test".
        size: Side of the images in pixels, or (height, width) if they are not squares; `sides` returns both.
        channels: 1, 3, or 0 for the channels of the data set.
        directory: Where the files are or go; None for the default data folder.
        download: Whether missing files may be downloaded.
        crop: If above 0, take up to this many windows of `size` pixels from each picture at its own resolution.
        margin: How much smaller than `size` the training windows are. Crops overlap so that every window lies within
            one of them, unless `crop` is too low to cover the picture.
    """

    split: Split
    size: Size
    channels: int = 0
    directory: Path | None = None
    download: bool = True
    crop: int = 0
    margin: int = 0

    @property
    def sides(self) -> tuple[int, int]:
        """Return the height and width of the images in pixels."""
        return sides(self.size)


class TrainingSet(Protocol):
    """Images to train on, held in memory or read during training.

    Images are (C, H, W) uint8 in 0..255 and are addressed by index, 0 to len - 1. `rows` and `labels_of` may be called
    from two threads at once.
    """

    @property
    def channels(self) -> int:
        """Channels per image, 1 or 3."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; empty if the classes are unnamed."""
        ...

    @property
    def class_count(self) -> int:
        """Number of classes; 0 without labels."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether every image has a label."""
        ...

    @property
    def skipped(self) -> int:
        """Number of files left out so far."""
        ...

    @property
    def skipped_files(self) -> tuple[str, ...]:
        """The first few of these files, each with the reason: "a/1.png (truncated)"."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know about how the files were found, a line each."""
        ...

    @property
    def suffixes(self) -> frozenset[str]:
        """Suffixes of the image files, such as ".png"; empty if there are no files."""
        ...

    @property
    def note(self) -> str:
        """How the images differ from the published data set, such as "JPEG"."""
        ...

    def __len__(self) -> int: ...

    def order(self, seed: int, step: int, size: int) -> Tensor:
        """Return the image indices (size,) int64 of a training step; same arguments, same indices."""
        ...

    def rows(self, indices: Tensor) -> Tensor:
        """Return the images (B, C, H, W) uint8 at the indices (B,) int64, in that order."""
        ...

    def labels_of(self, indices: Tensor) -> Tensor:
        """Return the labels (B,) int64 of the images that `rows` returns for the same indices."""
        ...

    def digest(self, max_images: int | None = None) -> str:
        """Return a short hex digest of the data, based on at most `max_images` images if given."""
        ...

    def close(self) -> None:
        """Release files and processes; the set cannot be read afterwards."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A split held as one tensor.

    Attributes:
        pixels: (N, C, H, W) uint8 in 0..255.
        labels: (N,) int64, or None.
        classes: Class names; empty if the classes are unnamed.
        skipped: Number of files left out because they are unreadable or too small for a crop.
        suffixes: Suffixes of the image files; empty if the images do not come from files.
        note: How the images differ from the published data set, such as "JPEG".
        skipped_files: The first few of the files left out, each with the reason: "a/1.png (truncated)".
        remarks: What a user should know about how the files were found, a line each.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: int = 0
    suffixes: frozenset[str] = frozenset()
    note: str = ""
    skipped_files: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """Channels per image, 1 or 3."""
        return self.pixels.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def has_labels(self) -> bool:
        """Whether the images have labels."""
        return self.labels is not None

    @property
    def class_count(self) -> int:
        """Number of classes; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def order(self, seed: int, step: int, size: int) -> Tensor:
        """Return the image indices (size,) int64 of a training step, from a new permutation every epoch."""
        return epoch_order.shuffled(len(self), seed, step, size)

    def rows(self, indices: Tensor) -> Tensor:
        """Return the images (B, C, H, W) uint8 at the indices (B,) int64, in that order."""
        return self.pixels[indices]

    def labels_of(self, indices: Tensor) -> Tensor:
        """Return the labels (B,) int64 of the images at the indices (B,) int64.

        Raises:
            ValueError: The images have no labels.
        """
        if self.labels is None:
            raise ValueError("these images have no labels")
        return self.labels[indices]

    def close(self) -> None:
        """No-op: the tensor owns no files."""

    def draw(self, count: int) -> Tensor:
        """Return the indices (count,) int64 of a fixed random subset; all indices if there are fewer images.

        The subset is random because neighboring images are often alike: of one class, or of one source (the first half
        of the MNIST test set is easier). A smaller draw is the beginning of a larger one.
        """
        return torch.randperm(len(self), generator=seeds.generator("draw", len(self)))[:count]

    def center(self, size: Size) -> ImageSet:
        """Return the set cropped to the central pixels of this size, as a view."""
        height, width = sides(size)
        top, left = (self.pixels.shape[-2] - height) // 2, (self.pixels.shape[-1] - width) // 2
        return dataclasses.replace(self, pixels=self.pixels[..., top : top + height, left : left + width])

    def digest(self, max_images: int | None = None) -> str:
        """Return a short hex digest of the pixels, or of at most `max_images` evenly spaced images."""
        step = 1 if max_images is None else max(1, -(-len(self) // max_images))
        pixel_hash = hashlib.blake2b(digest_size=8)
        for chunk in self.pixels[::step].split(DIGEST_CHUNK_IMAGES):
            pixel_hash.update(chunk.cpu().contiguous().numpy())  # in chunks: the set may be as large as memory
        return pixel_hash.hexdigest()

    def images(self, indices: Tensor | slice, device: torch.device | None = None) -> Tensor:
        """Return the images at the indices as (B, C, H, W) float32 in [-1, 1], on `device` or the pixels' own.

        If the indices are on the CPU, the CPU does not wait for a GPU.
        """
        if isinstance(indices, Tensor):
            indices = devices.upload(indices, self.pixels.device)
        return to_floats(devices.upload(self.pixels[indices], device or self.pixels.device))

    def kept_on(self, device: torch.device) -> ImageSet:
        """Return the set with its pixels on `device` if they fit there, otherwise unchanged."""
        if not devices.fits(self.pixels, device):
            return self
        return dataclasses.replace(self, pixels=self.pixels.to(device))


Loader = Callable[[DatasetRequest], ImageSet]
_REGISTRY: dict[str, Loader] = {}
_PACKAGES: dict[str, str] = {}
_CROPPABLE: set[str] = set()


def register(name: str, *, package: str = "", has_crops: bool = False) -> Callable[[Loader], Loader]:
    """Return a decorator that registers the loader of the data set `name`.

    Args:
        name: What users call the data set.
        package: The package that contains the data set, if one does.
        has_crops: Whether pictures come at their own resolutions, so that `DatasetRequest.crop` works.
    """

    def add(loader: Loader) -> Loader:
        _REGISTRY[name] = loader
        _PACKAGES[name] = package
        if has_crops:
            _CROPPABLE.add(name)
        return loader

    return add


def names() -> list[str]:
    """Return the names of all data sets, sorted."""
    return sorted(_REGISTRY)


def required_package(name: str) -> str:
    """Return the package that contains a data set; empty if the data set is read from a folder."""
    return _PACKAGES.get(name, "")


def load(name: str, request: DatasetRequest) -> ImageSet:
    """Load one split of the data set `name`.

    Raises:
        UsageError: The name is unknown, the data set cannot be cropped, or its files are missing or damaged.
        MachineError: The files cannot be downloaded or written.
    """
    images = find(name, crop=request.crop)(request)
    for remark in images.remarks:
        warn_once(remark)
    return images


@functools.cache
def warn_once(message: str) -> None:
    """Warn, unless this process already has: both splits of a data set have the same to say about its folder."""
    warnings.warn(ColddiffWarning(message), stacklevel=3)


def find(name: str, *, crop: int = 0) -> Loader:
    """Return the loader of the data set `name`.

    Raises:
        UsageError: The name is unknown, or `crop` is above 0 and the data set cannot be cropped.
    """
    if name not in _REGISTRY:
        raise UsageError(f"Unknown dataset {shown(name)}.", nearest(name, _REGISTRY))
    if crop and name not in _CROPPABLE:
        raise crop_unsupported(name)
    return _REGISTRY[name]


def crop_unsupported(name: str) -> UsageError:
    """Return the error for a crop of a data set whose images have one small size, or are shards."""
    supported = ", ".join(sorted(_CROPPABLE))
    return UsageError(f"data.crop does not work with {name}.", f"Use data.crop=0, or one of: {supported}.")


def fit(pixels: Tensor, request: DatasetRequest) -> Tensor:
    """Return (N, C, H, W) uint8 pixels at the requested size and channels; bilinear with antialias."""
    if tuple(pixels.shape[-2:]) != request.sides:
        resized = [
            F.interpolate(chunk.float(), size=request.sides, mode="bilinear", antialias=True)
            .round()
            .clamp(0, 255)
            .to(torch.uint8)
            for chunk in pixels.split(RESIZE_CHUNK_IMAGES)
        ]
        pixels = torch.cat(resized)
    if request.channels == 3 and pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    return pixels
