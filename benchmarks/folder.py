"""The cost of feeding images to training: seconds per million pixels, in batches, onto the device.

The folder holds CIFAR-10 as JPEG if the data directory has it, otherwise synthetic JPEGs.
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jobs import BenchmarkJob, Rows, row
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from colddiff_core.training.loader import BatchLoader

BATCH = 64
SYNTHETIC_SIZE, CIFAR_SIZE = 128, 32  # pixels a side


@contextmanager
def _jpeg_folder(job: BenchmarkJob) -> Iterable[tuple[Path, int]]:
    """Yield a folder of JPEGs and their side in pixels; the files were just written, so they are in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        archive = job.directory / "cifar10-jpeg" / "train.tar.gz" if job.directory else None
        if archive and archive.is_file():
            _extract(archive, Path(folder), job.pick(20, 5000, 20_000))
            yield Path(folder), CIFAR_SIZE
        else:
            _write_synthetic(Path(folder), job.pick(20, 500, 2000))
            yield Path(folder), SYNTHETIC_SIZE


def _extract(archive: Path, folder: Path, count: int) -> None:
    with tarfile.open(archive, "r|gz") as members:
        pictures = (m for m in members if m.isfile() and m.name.lower().endswith((".jpg", ".jpeg")))
        for number, member in zip(range(count), pictures, strict=False):
            source = members.extractfile(member)
            assert source is not None
            (folder / f"{number:06d}.jpg").write_bytes(source.read())


def _write_synthetic(folder: Path, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        coarse = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(coarse.numpy()).resize((SYNTHETIC_SIZE, SYNTHETIC_SIZE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        (folder / f"{number:06d}.jpg").write_bytes(buffer.getvalue())


def _epoch(job: BenchmarkJob, batches: Iterable[Tensor]) -> tuple[float, float]:
    """Return the seconds and the millions of pixels of an epoch."""
    start, pixels = job.now(), 0
    for batch in batches:
        x0 = batch.to(job.device)
        pixels += len(x0) * x0.shape[-2] * x0.shape[-1]
    return job.now() - start, pixels / 1e6


def _import_readers() -> None:
    """Import the packages with which both sides read MNIST and the digits."""
    import sklearn.datasets  # noqa: F401
    import torchvision.datasets  # noqa: F401


def _rate(times: Iterable[tuple[float, float]]) -> dict:
    return row([seconds / millions for seconds, millions in times], unit="s/Mpx")


def plain_side(job: BenchmarkJob) -> Rows:
    import plain

    plain.transform(1, False)  # its imports should not count
    _import_readers()
    rows = {}
    with _jpeg_folder(job) as (folder, size):
        paths = sorted(folder.iterdir())
        rows["JPEGs, first epoch"] = _rate([_epoch(job, plain.decode_folder(paths, size, BATCH))])
        later = [_epoch(job, plain.decode_folder(paths, size, BATCH)) for _ in range(job.pick(1, 2, 2))]
        rows["JPEGs, later epochs"] = _rate(later)
    start = job.now()
    pictures = plain.Pictures(job.settings["data"])
    opening = job.now() - start
    share = min(len(pictures), job.pick(2, 100, 100) * BATCH)
    name = job.settings["data"]["dataset"]
    for label in (f"{name}, first epoch", f"{name}, later epochs"):
        feed = plain.batches(pictures, BATCH)
        seconds, pixels = _epoch(job, (next(feed) for _ in range(share // BATCH)))
        whole = pixels * len(pictures) / (share // BATCH * BATCH)  # extrapolated to a whole epoch
        rows[label] = _rate([(opening + seconds * whole / pixels, whole)])
        opening = 0.0
    return rows


def ours_side(job: BenchmarkJob) -> Rows:
    from colddiff_core import datasets

    _import_readers()
    data = job.settings["data"]
    directory = Path(data["directory"]) if data["directory"] else None
    with _jpeg_folder(job) as (folder, size), tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # an empty cache, so that files are decoded
        request = datasets.DatasetRequest("train", size, 3, folder)
        rows = _ours(job, "JPEGs", "folder", request)
    request = datasets.DatasetRequest("train", data["size"], data["channels"], directory, download=False)
    return rows | _ours(job, data["dataset"], data["dataset"], request)


def _batches(loader: BatchLoader, order: Sequence[Tensor], generator: torch.Generator) -> Iterator[Tensor]:
    """Take batches as training does, announcing the next one first."""
    loader.ahead(order[0])
    for part, following in itertools.zip_longest(order, order[1:]):
        if following is not None:
            loader.ahead(following)
        yield loader.take(part, loader.draw(len(part), generator))


def _ours(job: BenchmarkJob, label: str, name: str, request: object) -> Rows:
    from colddiff_core import datasets
    from colddiff_core.training.loader import BatchLoader

    start = job.now()
    images = datasets.load(name, request)
    loader = BatchLoader(images, job.device, size=images.pixels.shape[-1], flip=False)
    opening = job.now() - start
    generator = torch.Generator().manual_seed(0)

    def epoch() -> tuple[float, float]:
        order = torch.randperm(len(images), generator=generator).split(BATCH)
        return _epoch(job, _batches(loader, order, generator))

    seconds, pixels = epoch()
    later = [epoch() for _ in range(job.pick(1, 3, 3))]
    return {f"{label}, first epoch": _rate([(opening + seconds, pixels)]), f"{label}, later epochs": _rate(later)}
