"""Folders of pictures to write into and to compare."""

from __future__ import annotations

from pathlib import Path

from conftest import left_behind, pictures_in
from PIL import Image

BLUR = ["--op", "noise", "--steps", "10", "--t", "4"]


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in left_behind(folder)}


def bytes_below(folder: Path) -> dict[str, bytes]:
    """Return the content of every picture in and below a folder by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def states_in(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes where a file is written again, even with the same bytes."""
    found = {name: (folder / name).stat() for name in pictures_in(folder)}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def noise_photos(folder: Path) -> Path:
    """Write six small color pictures into a new folder."""
    folder.mkdir()
    for number in range(6):
        Image.effect_noise((12, 12), 40).convert("RGB").save(folder / f"{number}.png")
    return folder
