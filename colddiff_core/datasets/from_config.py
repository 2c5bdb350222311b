"""Load the data sets that a configuration names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from colddiff_core import datasets
from colddiff_core.config.schema import Config, DataConfig
from colddiff_core.config.sizes import Size, grown, in_words, sides
from colddiff_core.errors import UsageError
from colddiff_core.text import counted, named


def load_images(
    config: Config, split: datasets.base.Split, channels: int = 0, *, has_margin: bool = False
) -> datasets.ImageSet:
    """Load a split of the configured data set as (N, C, H, W) uint8 of `data.size`.

    Args:
        config: Its `data` section is used. With `data.crop`, images are tiles of the pictures at full resolution.
        split: "train" or "test".
        channels: 1 or 3; 0 for `data.channels`.
        has_margin: Keep the `data.margin` pixels that random crops need, instead of the center only.

    Raises:
        UsageError: See `datasets.load`.
        MachineError: See `datasets.load`.
    """
    data = config.data
    request = _request(config, data.directory, split, channels or data.channels)
    request = dataclasses.replace(request, size=_loaded_size(data), crop=data.crop, margin=data.margin)
    images = datasets.load(data.dataset, request)
    return images if has_margin else images.center(data.size)


def load_training(config: Config) -> datasets.TrainingSet:
    """Load the training images, with the margin that random crops need.

    Shards are read during training; any other data set is held as one tensor.

    Raises:
        UsageError: See `datasets.load`; or `data.crop` is set for shards.
        MachineError: See `datasets.load`.
    """
    data = config.data
    if data.dataset != "shards":
        return load_images(config, "train", has_margin=True)
    if data.crop:
        raise datasets.base.crop_unsupported(data.dataset)
    request = _request(config, data.directory, "train", data.channels)
    return datasets.open_shards(dataclasses.replace(request, size=_loaded_size(data)), data.lanes)


def load_second(config: Config, split: datasets.base.Split, channels: int, degradation: str) -> datasets.ImageSet:
    """Load a split of the second data set, for a degradation that mixes one in; scaled, never cropped.

    Args:
        config: Its `data` section is used.
        split: "train" or "test".
        channels: Channels of the first data set, which the second must match.
        degradation: Name of the degradation, for messages.

    Raises:
        UsageError: No second data set is configured, its channels do not match, or it cannot be loaded.
    """
    data = config.data
    if not data.second:
        names = ", ".join(datasets.names())
        raise UsageError(f"{degradation} mixes in images of a second data set.", f"Set data.second to one of: {names}.")
    request = _request(config, data.second_directory or data.directory, split, channels)
    images = datasets.load(data.second, request)
    if images.channels != channels:
        raise UsageError(
            f"data.second = {data.second} has {counted(images.channels, 'channel')} and {data.dataset} has {channels}.",
            "Set data.channels=3 to make both color, or 1 for gray.",
        )
    return images


def _request(config: Config, place: str, split: datasets.base.Split, channels: int) -> datasets.DatasetRequest:
    directory = Path(place) if place else None
    may_download = config.data.download and config.may_download
    return datasets.DatasetRequest(split, config.data.size, channels, directory, may_download)


def _loaded_size(data: DataConfig) -> Size:
    """Return the size of loaded images, with the margin that random crops need."""
    return grown(data.size, data.margin)


def left_out(data: DataConfig, images: datasets.TrainingSet, split: str) -> str:
    """Return a sentence on how many files of a split were left out, why, and the first of them; empty if none were."""
    if not images.skipped:
        return ""
    why = "could not be read"
    if data.crop:
        height, width = sides(_loaded_size(data))
        pixels = f"{height} x {width} pixels" if height == width else f"{in_words((height, width))} pixels"
        why += f" or have no window of {pixels}"
    first = f": {named(images.skipped_files, images.skipped)}" if images.skipped_files else ""
    return f"left out {counted(images.skipped, f'{split} file')} that {why}{first}"
