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
from colddiff_core.datasets.damage import reason_for
from colddiff_core.datasets.folder import hashed_split, no_training_images, split_folder
from colddiff_core.datasets.picture_files import find_pictures
from colddiff_core.datasets.splits import SPLITS
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.files import read_ordinary
from colddiff_core.images import HEAD_BYTES, SUFFIXES, read_bytes, suffix_of
from colddiff_core.text import counted, named


@dataclasses.dataclass(frozen=True)
class Record:
    """An encoded image, its suffix, and its class number if there are classes."""

    content: bytes
    suffix: str
    label: int | None


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A file that cannot be read, relative to the folder that is packed, and the reason."""

    name: str
    why: str


class PackSource(Protocol):
    """Images to pack, by index."""

    def __len__(self) -> int: ...

    def size_of(self, index: int) -> int:
        """Return the approximate size of an image in bytes."""
        ...

    def record(self, index: int) -> Record | Refusal:
        """Return an image, or why it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class FileList:
    """Image files, packed unchanged unless `size` or `channels` is set.

    Changed images, and formats that shards do not support, are stored as PNG.
    """

    paths: Sequence[Path]
    labels: Sequence[int] | None
    root: Path
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

    def record(self, index: int) -> Record | Refusal:
        """Return an image, or why it cannot be read."""
        path, label = self.paths[index], self.labels[index] if self.labels is not None else None
        name = path.relative_to(self.root).as_posix()
        try:
            content = read_ordinary(path, decoding.MAX_MEMBER_BYTES)
        except OSError as error:
            return Refusal(name, error.strerror or str(error))
        try:
            pixels = read_bytes(path, size=self.size, channels=self.channels, content=content)
        except ColddiffError as error:
            return Refusal(name, reason_for(error, path, content))
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:  # a .jfif is a JPEG
            suffix = suffix_of(content[:HEAD_BYTES])
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

    def record(self, index: int) -> Record | Refusal:
        """Return an image."""
        labels = self.images.labels
        label = int(labels[index]) if labels is not None else None
        return Record(_png(self.images.pixels[index].numpy()), ".png", label)


@dataclasses.dataclass(frozen=True)
class Splits:
    """The images to pack, by split, and the class names; empty without classes or if they are unnamed.

    `remarks` are what a user should know about them, a line each.
    """

    sources: Mapping[Split, PackSource]
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def from_folder(root: Path, size: Size = 0, channels: int = 0) -> Splits:
    """Return the images under a folder, with the splits and classes of the data set `folder`.

    Both splits number the classes alike.

    Raises:
        UsageError: A split has no images or is an archive.
    """
    splits = split_folder(root)
    if splits.found is not None and splits.root is not None:
        paths = {split: hashed_split(splits.found.paths, root, split, splits.found) for split in SPLITS}
        return _with_classes(paths, dict.fromkeys(SPLITS, splits.root), size, channels, splits.remarks)
    if "train" not in splits.places:
        raise no_training_images(root, splits.places["test"])
    for place in splits.places.values():
        if not place.is_dir():
            raise UsageError(f"{place} is not a folder.", "Unpack the archive first.")
    found = {split: find_pictures(splits.places[split]) for split in SPLITS}
    for split in SPLITS:
        if not found[split].paths:
            left_out = f": {found[split].left_out}" if found[split].left_out else ""
            what = f"No images in {splits.places[split]}{left_out}."
            raise UsageError(what, "Name images, folders of images or globs.")
    remarks = (*splits.remarks, *found["train"].remarks, *found["test"].remarks)
    return _with_classes({split: found[split].paths for split in SPLITS}, splits.places, size, channels, remarks)


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
    left_out = [
        f"left out {counted(found.skipped, f'{split} file')} that could not be used: "
        f"{named(found.skipped_files, found.skipped)}"
        for split, found in images.items()
        if found.skipped
    ]
    sources = {split: PackedPixels(images[split]) for split in SPLITS}
    return Splits(sources, images["train"].classes, tuple(left_out))


def _with_classes(
    paths: Mapping[Split, Sequence[Path]],
    roots: Mapping[Split, Path],
    size: Size,
    channels: int,
    remarks: tuple[str, ...] = (),
) -> Splits:
    folders = {split: decoding.relative_folders(paths[split], roots[split]) for split in paths}
    classes = tuple(sorted(set().union(*folders.values())))
    labels: dict[Split, list[int] | None] = dict.fromkeys(paths)
    if len(classes) < 2 or "." in classes:
        classes = ()
    else:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = {split: [numbers[name] for name in names] for split, names in folders.items()}
    sources = {split: FileList(paths[split], labels[split], roots[split], size, channels) for split in paths}
    return Splits(sources, classes, remarks)


def _png(pixels: np.ndarray) -> bytes:
    """Encode pixels (C, H, W) uint8 as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(stream, "png")
    return stream.getvalue()
