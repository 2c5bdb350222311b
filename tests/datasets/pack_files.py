"""Image folders to pack, and the shards that come out."""

from __future__ import annotations

import tarfile
from pathlib import Path

from conftest import pictures_in
from PIL import Image

from colddiff_cli.__main__ import run

CLASSES = ("cat", "dog", "owl")


def write_tree(root: Path, each: int = 8, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Write a folder per class, in which every image has its own color; one file per split is broken."""
    for s, split in enumerate(splits):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(each):
                shade = (100 * label + 2 * number + s, number, label)
                Image.new("RGB", (6, 5), shade).save(root / split / name / f"{number:02}.png")
        (root / split / "cat" / "00.png").write_bytes(b"broken")
    return root


def run_pack(*arguments: object, code: int = 0) -> None:
    assert run(["data", "pack", *map(str, arguments)]) == code


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in pictures_in(folder)}


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}
