"""Images to pack into shards: from folders, files or a data set."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from colddiff_core.config.sizes import Size
from colddiff_core.datasets import base, decoding
from colddiff_core.datasets.base import DatasetRequest, ImageSet, Split
from colddiff_core.datasets.folder import hashed_split
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.files import read_ordinary
from colddiff_core.images import SUFFIXES, read_bytes

SPLITS: tuple[Split, ...] = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Record:
    """An encoded image, its suffix, and its class number if there are classes."""

    content: bytes
    suffix: str
    label: int | None


class PackSource(Protocol):
    """Images to pack, by index."""

    def __len__(self) -> int: ...

    def size_of(self, index: int) -> int:
        """Return the approximate size of an image in bytes."""
        ...

    def record(self, index: int) -> Record | None:
        """Return an image, or None if it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class FileList:
    """Image files, packed unchanged unless `size` or `channels` is set.

    Changed images, and formats that shards do not support, are stored as PNG.
    """

    paths: Sequence[Path]
    labels: Sequence[int] | None
    size: Size = 0
    channels: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def size_of(self, index: int) -> int:
        """Return the size of a file in bytes; 0 if it is missing."""
        try:
            return self.paths[index].stat().st_size
        except OSError:
            return 0

    def record(self, index: int) -> Record | None:
        """Return an image, or None if it cannot be read."""
        path, label = self.paths[index], self.labels[index] if self.labels is not None else None
        try:
            content = read_ordinary(path, decoding.MAX_MEMBER_BYTES)
            pixels = read_bytes(path, size=self.size, channels=self.channels, content=content)
        except (OSError, ColddiffError):
            return None
        suffix = path.suffix.lower()
        if self.size or self.channels or suffix not in SUFFIXES:
            return Record(_png(pixels), ".png", label)
        return Record(content, suffix, label)


@dataclasses.dataclass(frozen=True)
class PackedPixels:
    """The images of a data set, stored as PNG."""

    images: ImageSet

    def __len__(self) -> int:
        return len(self.images)

    def size_of(self, index: int) -> int:
        """Return the size of the pixels in bytes."""
        return self.images.pixels[0].nbytes

    def record(self, index: int) -> Record | None:
        """Return an image."""
        labels = self.images.labels
        label = int(labels[index]) if labels is not None else None
        return Record(_png(self.images.pixels[index].numpy()), ".png", label)


@dataclasses.dataclass(frozen=True)
class Splits:
    """The images to pack, by split, and the class names; empty without classes or if they are unnamed."""

    sources: Mapping[Split, PackSource]
    classes: tuple[str, ...] = ()


def from_folder(root: Path, size: Size = 0, channels: int = 0) -> Splits:
    """Return the images under a folder, with the splits and classes of the data set `folder`.

    Both splits number the classes alike.

    Raises:
        UsageError: A split has no images or is an archive.
    """
    folders = {split: root / split for split in SPLITS}
    if all(decoding.find_split(root, [split]) for split in SPLITS):
        for folder in folders.values():
            if not folder.is_dir():
                raise UsageError(f"{folder} is not a folder.", "Unpack the archive first.")
        paths = {split: decoding.list_images(folder) for split, folder in folders.items()}
    else:
        all_paths = decoding.list_images(root)
        paths = {split: hashed_split(all_paths, root, split) for split in SPLITS}
        folders = dict.fromkeys(SPLITS, root)
    for split in SPLITS:
        if not paths[split]:
            raise UsageError(f"No images in {folders[split]}.", "Name images, folders of images or globs.")
    return _with_classes(paths, folders, size, channels)


def from_files(paths: Sequence[Path], size: Size = 0, channels: int = 0) -> Splits:
    """Return image files from anywhere, about a tenth of them for testing, chosen by a hash of their relative paths.

    Paths are relative to the folder that all files share. If its subfolders contain every file, they are the classes.

    Raises:
        UsageError: There are fewer than two files.
    """
    absolute = [Path(path) for path in dict.fromkeys(map(os.path.abspath, paths))]
    root = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    split_paths = {split: hashed_split(absolute, root, split) for split in SPLITS}
    return _with_classes(split_paths, dict.fromkeys(SPLITS, root), size, channels)


def from_dataset(name: str, request: DatasetRequest) -> Splits:
    """Return both splits of the data set `name`.

    Raises:
        UsageError: See `datasets.load`; or the data set is shards already.
        MachineError: See `datasets.load`.
    """
    if name == "shards":
        raise UsageError("The images of 'shards' are packed already.", "Copy the files instead.")
    images = {split: base.load(name, dataclasses.replace(request, split=split)) for split in SPLITS}
    return Splits({split: PackedPixels(images[split]) for split in SPLITS}, images["train"].classes)


def _with_classes(
    paths: Mapping[Split, Sequence[Path]], roots: Mapping[Split, Path], size: Size, channels: int
) -> Splits:
    folders = {split: decoding.relative_folders(paths[split], roots[split]) for split in paths}
    classes = tuple(sorted(set().union(*folders.values())))
    if len(classes) < 2 or "." in classes:
        return Splits({split: FileList(paths[split], None, size, channels) for split in paths})
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {split: [numbers[name] for name in names] for split, names in folders.items()}
    return Splits({split: FileList(paths[split], labels[split], size, channels) for split in paths}, classes)


def _png(pixels: np.ndarray) -> bytes:
    """Encode pixels (C, H, W) uint8 as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(stream, "png")
    return stream.getvalue()
