"""Image folders for the tests of the cache, and an independent decoder."""

from __future__ import annotations

import collections
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colddiff_core import datasets, images
from colddiff_core.datasets import cache, decoding
from colddiff_core.errors import ColddiffError

CLASSES = {"cat": 12, "dog": 6, "owl": 8}


def use_temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache the sets of a test in its own folder, if they have more than eight images; return that folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CHUNK_IMAGES", 8)
    monkeypatch.setattr(cache, "RESERVE_BYTES", 0)
    return tmp_path / "cache" / "colddiff" / "decoded"


def record_decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the name of each file that is decoded."""
    names: list[str] = []

    def recording(path, **values):
        names.append(path.name)
        return images.read_bytes(path, **values)

    monkeypatch.setattr(decoding, "read_bytes", recording)
    return names


def write_images(root: Path, *, classes=CLASSES, splits=("train", "test"), broken: bool = True) -> Path:
    """Write noise images of several sizes, with a folder per class and one broken file per split."""
    numbers = np.random.default_rng(0)
    for split in splits:
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = numbers.integers(0, 256, (9 + i % 3, 8 + i % 5, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02}.{'png' if i % 2 else 'jpg'}")
        if broken:
            (root / split / next(iter(classes)) / "03.png").write_bytes(b"broken")
    return root


def load(root: Path, split: str = "train", channels: int = 0, size: int = 8) -> datasets.ImageSet:
    return datasets.load("folder", datasets.DatasetRequest(split, size, channels, root))


def decode_literally(root: Path, split: str, channels: int) -> tuple[torch.Tensor, list[int]]:
    """Return pixels and labels, decoded class after class and then sorted so that the classes take turns."""
    turns: collections.Counter[str] = collections.Counter()
    rows = []
    for path in sorted((root / split).rglob("*.*g")):
        try:
            pixels = images.read_bytes(path, size=8, channels=channels or 3)
        except ColddiffError:
            continue
        rows.append((turns[path.parent.name], path.parent.name, torch.from_numpy(pixels)))
        turns[path.parent.name] += 1
    rows.sort(key=lambda row: row[:2])
    classes = sorted(turns)
    return torch.stack([row[2] for row in rows]), [classes.index(row[1]) for row in rows]


def are_equal(one: datasets.ImageSet, other: datasets.ImageSet) -> bool:
    labels = (one.labels is None) == (other.labels is None) and (
        one.labels is None or (torch.equal(one.labels, other.labels) and one.labels.dtype == other.labels.dtype)
    )
    rest = ("classes", "skipped", "suffixes", "note")
    return labels and torch.equal(one.pixels, other.pixels) and all(getattr(one, k) == getattr(other, k) for k in rest)


def pack_archives(root: Path, outer: bool) -> None:
    for split in ("train", "test"):
        with tarfile.open(root / f"{split}.tar.gz", "w:gz") as archive:
            for path in sorted((root / split).rglob("*.*")):
                archive.add(path, path.relative_to(root if outer else root / split))
        shutil.rmtree(root / split)
