"""The images that a configuration names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from colddiff_core import datasets
from colddiff_core.config.schema import Config, DataConfig
from colddiff_core.degradations import Degradation
from colddiff_core.errors import UsageError
from colddiff_core.text import counted


def load_images(
    config: Config, split: datasets.base.Split, channels: int = 0, *, has_margin: bool = False
) -> datasets.ImageSet:
    """Return a split of the configured data set, the center of its images; errors as the data set says.

    With `data.crop` they are the centers of windows of the pictures as they are.
    has_margin: with the `data.margin` pixels around them that a random crop is taken from.
    """
    data = config.data
    request = _request(config, data.directory, split, channels or data.channels)
    request = dataclasses.replace(request, size=data.size + data.margin, crop=data.crop, margin=data.margin)
    found = datasets.load(data.dataset, request)
    return found if has_margin else found.center(data.size)


def load_training(config: Config) -> datasets.TrainingSet:
    """Return the images to train on, with the margin that random crops are taken from; errors as the data set says.

    Shards are read while they are trained on, everything else is held as one tensor.
    """
    data = config.data
    if data.dataset != "shards":
        return load_images(config, "train", has_margin=True)
    if data.crop:
        raise datasets.base.uncropped(data.dataset)
    request = _request(config, data.directory, "train", data.channels)
    return datasets.open_shards(dataclasses.replace(request, size=data.size + data.margin), data.lanes)


def load_second(
    config: Config, operator: Degradation, split: datasets.base.Split, channels: int
) -> datasets.ImageSet | None:
    """Return a split of the second data set where the operator mixes one in, else None; scaled, never cropped.

    Raises UsageError where one is needed and none is configured.
    """
    data = config.data
    if not operator.second_field:
        return None
    if not data.second:
        names = ", ".join(datasets.names())
        raise UsageError(f"{operator.name} mixes in images of a second data set.", f"Name it: data.second={names}.")
    request = _request(config, data.second_directory or data.directory, split, channels)
    found = datasets.load(data.second, request)
    if found.channels != channels:
        raise UsageError(
            f"data.second = {data.second} has {counted(found.channels, 'channel')} and {data.dataset} has {channels}.",
            "Set data.channels=3 to make both color, or 1 for gray.",
        )
    return found


def _request(config: Config, place: str, split: datasets.base.Split, channels: int) -> datasets.DatasetRequest:
    directory = Path(place) if place else None
    may_download = config.data.download and config.may_download
    return datasets.DatasetRequest(split, config.data.size, channels, directory, may_download)


def left_out(data: DataConfig, images: datasets.TrainingSet, split: str) -> str:
    """Return how many files of a split were left out, and why, in words; empty where none was."""
    if not images.skipped:
        return ""
    side = data.size + data.margin
    why = f"could not be read or have no window of {side} x {side} pixels" if data.crop else "could not be read"
    return f"left out {counted(images.skipped, f'{split} file')} that {why}"
