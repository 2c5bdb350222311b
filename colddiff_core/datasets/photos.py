"""The photographs that come with scikit-image and scikit-learn: nothing to download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register
from colddiff_core.datasets.decoding import decode_apart
from colddiff_core.errors import UsageError

FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}  # of photographs, in the packages
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
GRAY = ("brick.png", "camera.png", "grass.png", "gravel.png")  # scikit-image's, of the training set


@register("photos", package="scikit-image", has_crops=True)
def load(request: DatasetRequest) -> ImageSet:
    """Return 7 training or 3 test photographs of 300 to 1411 pixels, in color; in gray, 4 more to train on.

    A gray photograph has nothing to say of color: with 3 channels it is left out. Made for `Request.crop`; without
    it each is one image, its shorter side scaled. The packages are not imported, only the files in them read.
    Source: `skimage.data` and `sklearn.datasets.load_sample_images`, which name the authors and licenses.

    Raises UsageError where scikit-image is not installed.
    """
    folders = {package: folder(package) for package in FOLDERS}
    paths = [folders[package] / name for package, names in COLORED[request.split].items() for name in names]
    if request.channels == 1 and request.split == "train":
        paths += [folders["skimage"] / name for name in GRAY]
    return decode_apart(paths, request, folders["skimage"])


def folder(package: str) -> Path:
    """Return where a package, "skimage" or "sklearn", has its photographs; raises UsageError where it is absent."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            "The data set 'photos' needs scikit-image.", "pip install 'colddiff[photos]', or pip install scikit-image."
        )
    return Path(found.submodule_search_locations[0]) / FOLDERS[package]
