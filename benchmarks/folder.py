"""What it costs to feed images to a training: seconds of a million pixels, batch by batch, onto the device.

The folder holds images of CIFAR-10 (JPEG) where the data directory has them, else JPEGs made up here.
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
MADE_SIZE, TAKEN_SIZE = 128, 32  # pixels a side


@contextmanager
def _unpacked(job: BenchmarkJob) -> Iterable[tuple[Path, int]]:
    """Yield a folder of JPEGs and their side in pixels; its files are fresh from the disk's cache."""
    with tempfile.TemporaryDirectory() as place:
        archive = job.directory / "cifar10-jpeg" / "train.tar.gz" if job.directory else None
        if archive and archive.is_file():
            _take(archive, Path(place), job.pick(20, 5000, 20_000))
            yield Path(place), TAKEN_SIZE
        else:
            _make(Path(place), job.pick(20, 500, 2000))
            yield Path(place), MADE_SIZE


def _take(archive: Path, place: Path, count: int) -> None:
    with tarfile.open(archive, "r|gz") as members:
        pictures = (m for m in members if m.isfile() and m.name.lower().endswith((".jpg", ".jpeg")))
        for number, member in zip(range(count), pictures, strict=False):
            source = members.extractfile(member)
            assert source is not None
            (place / f"{number:06d}.jpg").write_bytes(source.read())


def _make(place: Path, count: int) -> None:
    numbers = torch.Generator().manual_seed(0)
    for number in range(count):
        coarse = torch.randint(0, 256, (8, 8, 3), generator=numbers, dtype=torch.uint8)
        picture = Image.fromarray(coarse.numpy()).resize((MADE_SIZE, MADE_SIZE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        (place / f"{number:06d}.jpg").write_bytes(buffer.getvalue())


def _epoch(job: BenchmarkJob, batches: Iterable[Tensor]) -> tuple[float, float]:
    """Return the seconds that an epoch took, and its pixels in millions."""
    start, pixels = job.now(), 0
    for batch in batches:
        x0 = batch.to(job.device)
        pixels += len(x0) * x0.shape[-2] * x0.shape[-1]
    return job.now() - start, pixels / 1e6


def _import_readers() -> None:
    """Load what both sides read MNIST and the digits with."""
    import sklearn.datasets  # noqa: F401
    import torchvision.datasets  # noqa: F401


def _rate(times: Iterable[tuple[float, float]]) -> dict:
    return row([seconds / millions for seconds, millions in times], unit="s/Mpx")


def plain_side(job: BenchmarkJob) -> Rows:
    import plain

    plain.transform(1, False)  # its imports are not the feed's time
    _import_readers()
    rows = {}
    with _unpacked(job) as (place, size):
        paths = sorted(place.iterdir())
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
        whole = pixels * len(pictures) / (share // BATCH * BATCH)  # a part of the epoch stands for all of it
        rows[label] = _rate([(opening + seconds * whole / pixels, whole)])
        opening = 0.0
    return rows


def ours_side(job: BenchmarkJob) -> Rows:
    from colddiff_core import datasets

    _import_readers()
    data = job.settings["data"]
    directory = Path(data["directory"]) if data["directory"] else None
    with _unpacked(job) as (place, size), tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # decoded anew, and nothing left in the user's own
        request = datasets.DatasetRequest("train", size, 3, place)
        rows = _ours(job, "JPEGs", "folder", request)
    request = datasets.DatasetRequest("train", data["size"], data["channels"], directory, download=False)
    return rows | _ours(job, data["dataset"], data["dataset"], request)


def _fed(feed: BatchLoader, order: Sequence[Tensor], numbers: torch.Generator) -> Iterator[Tensor]:
    """Take batches as training does: the next one is told of first."""
    feed.ahead(order[0])
    for part, following in itertools.zip_longest(order, order[1:]):
        if following is not None:
            feed.ahead(following)
        yield feed.take(part, feed.draw(len(part), numbers))


def _ours(job: BenchmarkJob, label: str, name: str, request: object) -> Rows:
    from colddiff_core import datasets
    from colddiff_core.training.loader import BatchLoader

    start = job.now()
    images = datasets.load(name, request)
    feed = BatchLoader(images, job.device, size=images.pixels.shape[-1], flip=False)
    opening = job.now() - start
    numbers = torch.Generator().manual_seed(0)

    def epoch() -> tuple[float, float]:
        order = torch.randperm(len(images), generator=numbers).split(BATCH)
        return _epoch(job, _fed(feed, order, numbers))

    seconds, pixels = epoch()
    later = [epoch() for _ in range(job.pick(1, 3, 3))]
    return {f"{label}, first epoch": _rate([(opening + seconds, pixels)]), f"{label}, later epochs": _rate(later)}
