"""MNIST, through torchvision."""

from __future__ import annotations

from colddiff_core.datasets.base import DatasetRequest, ImageSet, fit, register
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.paths import cache_folder

CLASSES = tuple("0123456789")


@register("mnist")
def load(request: DatasetRequest) -> ImageSet:
    """Return 60,000 training or 10,000 test digits as (N, C, H, W) uint8, scaled from 28 x 28.

    Raises:
        UsageError: The files are damaged, or missing while downloads are off.
        MachineError: The files are missing and the download failed.
    """
    from torchvision.datasets import MNIST  # noqa: PLC0415 - a second that other data sets should not pay

    directory = request.directory or cache_folder("data")
    is_train = request.split == "train"
    remedy = f"Put its four idx files in {directory / 'MNIST' / 'raw'}, or name the folder above MNIST with --data-dir."
    try:
        data = MNIST(str(directory), train=is_train, download=False)
    except RuntimeError as missing:
        if not _is_absent(missing):
            raise UsageError(f"The MNIST files in {directory} cannot be read ({missing}).", remedy) from None
        if not request.download:
            raise UsageError(f"MNIST is not in {directory}.", remedy) from None
        try:
            data = MNIST(str(directory), train=is_train, download=True)
        except (RuntimeError, OSError) as error:
            raise MachineError(f"MNIST is not in {directory} and could not be downloaded ({error}).", remedy) from None
    except (OSError, ValueError, AssertionError) as error:
        raise UsageError(f"The MNIST files in {directory} cannot be read ({error}).", remedy) from None
    return ImageSet(fit(data.data.unsqueeze(1), request), data.targets, CLASSES)


def _is_absent(error: RuntimeError) -> bool:
    """Return whether torchvision found no files; it raises the same error for a truncated file."""
    return "not found" in str(error)
