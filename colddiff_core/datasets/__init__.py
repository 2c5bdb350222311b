"""Data sets: images to train and test on, loaded by name."""

from colddiff_core.datasets import afhq as _afhq
from colddiff_core.datasets import celeba as _celeba
from colddiff_core.datasets import cifar10 as _cifar10
from colddiff_core.datasets import digits as _digits
from colddiff_core.datasets import folder as _folder
from colddiff_core.datasets import mnist as _mnist
from colddiff_core.datasets import photos as _photos
from colddiff_core.datasets.base import DatasetRequest, ImageSet, TrainingSet, find, load, names, required_package
from colddiff_core.datasets.held_out import hold_out
from colddiff_core.datasets.shards import opening as _shards
from colddiff_core.datasets.shards.dataset import Shards
from colddiff_core.datasets.shards.opening import open_shards

__all__ = [
    "DatasetRequest",
    "ImageSet",
    "Shards",
    "TrainingSet",
    "find",
    "hold_out",
    "load",
    "names",
    "open_shards",
    "required_package",
]
_REGISTERED = (_afhq, _celeba, _cifar10, _digits, _folder, _mnist, _photos, _shards)
