"""Write and open small shards in which every image has its own shade."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from colddiff_core.datasets import DatasetRequest, Shards, cache, open_shards
from colddiff_core.datasets.shards import archive, counts, listing

SIDE = 4


def use_temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cache of a test in its own folder, however full the disk is; return that folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "RESERVE_BYTES", 0)
    return tmp_path / "cache" / "colddiff"


def png(shade: int, side: int = SIDE) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, shade // 256, 7)).save(stream, "png")
    return stream.getvalue()


def tar(members: list[tuple[str, bytes]], **values) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **values) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def members_of(first: int, count: int, classes: int = 0) -> list[tuple[str, bytes]]:
    """Return the members of a shard with images of the shades first, first + 1, ..."""
    members = []
    for number in range(first, first + count):
        members.append((f"{number:06}.png", png(number)))
        if classes:
            members.append((f"{number:06}.cls", str(number % classes).encode()))
    return members


def write_shards(root: Path, sizes=(5, 7, 6), classes: int = 0, split: str = "train") -> Path:
    """Write shards of the given sizes, each image one shade brighter than the last, and one test shard."""
    root.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, size in enumerate(sizes):
        (root / f"{split}-{number:03}.tar").write_bytes(tar(members_of(first, size, classes)))
        first += size
    if split == "train":
        (root / "test-000.tar").write_bytes(tar(members_of(1000, 4, classes)))
    return root


def write_urls(root: Path, *lines: str, test: str = "test-000.tar") -> Path:
    (root / "train.urls").write_text("\n".join(lines) + "\n")
    (root / "test.urls").write_text(test + "\n")
    return root


def write_counts_file(root: Path, **changes) -> dict:
    shards = {}
    for path in sorted(root.glob("*.tar")):
        index = archive.ShardOpener().open(listing.ShardLocation(path.name, root, path)).index
        shards[path.name] = (path.stat().st_size, counts.ShardCount.of(index))
    text = json.loads(counts.counts_json(shards, ["a", "b", "c"]))
    for entry in text["shards"]:
        entry.update(changes)
    (root / counts.COUNTS_FILE).write_text(json.dumps(text))
    return text


def open_split(root: Path, split: str = "train", lanes: int = 4, channels: int = 0, **values) -> Shards:
    return open_shards(DatasetRequest(split, SIDE, channels, root, **values), lanes)


def shades_of(pixels: torch.Tensor) -> list[int]:
    return (pixels[:, 0, 0, 0].long() + 256 * pixels[:, 1, 0, 0].long()).tolist()


def all_shades(shards: Shards) -> list[int]:
    return shades_of(shards.rows(torch.arange(len(shards))))
