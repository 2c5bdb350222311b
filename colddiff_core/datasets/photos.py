"""The photographs that come with scikit-image and scikit-learn; no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.decoding import decode_by_name
from colddiff_core.errors import UsageError

FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}  # where each package keeps its photographs
COLORED = {
    "train": {
        "skimage": (
            "astronaut.png",
            "chelsea.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "motorcycle_left.png",
            "retina.jpg",
        ),
        "sklearn": ("china.jpg",),
    },
    "test": {"skimage": ("coffee.png", "rocket.jpg"), "sklearn": ("flower.jpg",)},
}
GRAY = ("brick.png", "camera.png", "grass.png", "gravel.png")  # from scikit-image, training only


@register("photos", package="scikit-image", has_crops=True)
def load(request: DatasetRequest) -> ImageSet:
    """Return 7 training or 3 test photographs of 300 to 1411 pixels as (N, C, H, W) uint8.

    With one channel, 4 gray photographs join the training set; they carry no color, so they are left out otherwise.
    Best used with `DatasetRequest.crop`; without it, each photograph is scaled down to a single image. The packages
    are not imported: only their image files are read.

    Source: `skimage.data` and `sklearn.datasets.load_sample_images`, which name the authors and licenses.

    Raises:
        UsageError: scikit-image is not installed.
    """
    folders = {package: folder(package) for package in FOLDERS}
    paths = [folders[package] / name for package, names in COLORED[request.split].items() for name in names]
    if request.channels == 1 and request.split == "train":
        paths += [folders["skimage"] / name for name in GRAY]
    return decode_by_name(paths, request, folders["skimage"])


def folder(package: str) -> Path:
    """Return the photograph folder of a package, "skimage" or "sklearn".

    Raises:
        UsageError: The package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "The data set 'photos' needs scikit-image.",
            "Run pip install 'colddiff[photos]' or pip install scikit-image.",
        )
    return Path(spec.submodule_search_locations[0]) / FOLDERS[package]
