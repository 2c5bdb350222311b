"""A run's sample sheets: found as they are written, taken apart, and laid out anew for the space there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colddiff_core.files import parse_json

if TYPE_CHECKING:
    from PIL import Image

NAME = re.compile(r"step-(\d+)\.png")
GAP = 1  # pixels between pictures, as drawn
SCREEN_GAP = 4  # where the terminal has pixels of its own
BETWEEN = (48, 48, 56)  # the color of the gaps
KEPT = 3  # decoded sheets: a large one takes megabytes
LARGEST = 50_000_000  # pixels of a sheet: decoded, as much as the memory of a small machine has room for
LEAST_ROWS = 2  # images that should be seen, before they are enlarged


@dataclasses.dataclass(frozen=True, eq=False)
class SampleSheet:
    """A sheet that was read: the whole picture, and the JSON beside it (empty where there is none)."""

    name: str
    step: int
    picture: Image.Image
    note: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SheetLayout:
    """Pictures laid out for a space, with the columns' names and where each begins, in pixels."""

    picture: Image.Image
    heads: list[tuple[str, int]]


class SampleSheets:
    """The sheets of one run, oldest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[
            str, tuple[tuple[int, ...], SampleSheet]
        ] = {}  # the last few, with their files' times and sizes

    def names(self) -> list[str]:
        """Return the file names, by step; drafts have others until they are whole."""
        try:
            found = [
                (int(match[1]), path.name) for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))
            ]
        except OSError:
            return []
        return [name for _, name in sorted(found)]

    def load(self, name: str) -> SampleSheet | None:
        """Return a sheet; None where it cannot be read, being only half there or deleted."""
        from PIL import Image  # as late as this: the dashboard opens without it

        path = self.folder / name
        if not path.is_file() or path.with_suffix(".json").is_fifo():  # reading a pipe would wait for ever
            return None
        try:
            key = _state(path) + _state(path.with_suffix(".json"))
            if name in self._read and self._read[name][0] == key:
                return self._read[name][1]
            with Image.open(path, formats=("PNG",)) as opened:
                if opened.width * opened.height > LARGEST:
                    return None
                picture = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
        match = NAME.fullmatch(name)
        sheet = SampleSheet(name, int(match[1]) if match else 0, picture, self._note(path))
        self._read = {**dict(list(self._read.items())[1 - KEPT :]), name: (key, sheet)}
        return sheet

    def _note(self, path: Path) -> dict[str, Any]:
        try:
            note = parse_json(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes with a file: nothing where it is absent."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size


def arrange(sheet: SampleSheet, width: int, height: int, *, gap: int = GAP) -> SheetLayout:
    """Return as many images of a sheet as fit in that many pixels, enlarged by whole pixels where there is room.

    A sheet that does not tell where its pictures stand is shown whole.
    """
    from PIL import Image

    width, height = max(4, width), max(2, height)
    try:
        return _taken_out(sheet, width, height, gap)
    except Exception:  # its JSON tells what cannot be
        from PIL import Image

        shrunk = sheet.picture.copy()
        shrunk.thumbnail((width, height), Image.Resampling.BOX)
        return SheetLayout(shrunk, [])


def _taken_out(sheet: SampleSheet, width: int, height: int, gap: int) -> SheetLayout:
    """Return the pictures of a sheet by its JSON; raises what Python and Pillow raise where that is odd."""
    from PIL import Image

    tile_w, tile_h = (int(side) for side in sheet.note["tile"])
    scale = int(sheet.note["scale"])
    columns = {str(name): [(int(x), int(y)) for x, y in places] for name, places in sheet.note["corners"].items()}
    own_w, own_h = tile_w // scale, tile_h // scale
    count = min(len(places) for places in columns.values())
    inner = sheet.picture.width - tile_w, sheet.picture.height - tile_h
    if own_w < 1 or own_h < 1 or count < 1 or len(columns) * 2 > width:
        raise ValueError("nothing that could be shown")
    if not all(0 <= x <= inner[0] and 0 <= y <= inner[1] for places in columns.values() for x, y in places):
        raise ValueError("places that are not on the sheet")
    across = len(columns)
    zoom = min(((width + gap) / across - gap) / own_w, (height + gap) / min(LEAST_ROWS, count) / own_h - gap / own_h)
    zoom = int(zoom) if zoom >= 1 else max(zoom, 1 / min(own_w, own_h))
    # Where even two rows must be made smaller, one that is larger is easier to read.
    if zoom < 1:
        zoom = min(1.0, ((width + gap) / across - gap) / own_w, height / own_h)
    side_w, side_h = max(1, int(own_w * zoom)), max(1, int(own_h * zoom))
    rows = max(1, min(count, (height + gap) // (side_h + gap)))
    block_w = across * (side_w + gap)
    blocks = max(1, min(-(-count // rows), (width + 2 * gap) // (block_w + gap)))
    size = blocks * (block_w + gap) - 2 * gap, rows * (side_h + gap) - gap
    if size[0] > width + across * gap or size[1] > height + rows * gap:
        raise ValueError("pictures too thin for the space")
    canvas = Image.new("RGB", size, BETWEEN)
    heads = []
    how = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX
    for block in range(blocks):
        for column, (name, places) in enumerate(columns.items()):
            left = block * (block_w + gap) + column * (side_w + gap)
            heads.append((name, left))
            for row, (x, y) in enumerate(places[block * rows : (block + 1) * rows]):
                tile = sheet.picture.crop((x, y, x + tile_w, y + tile_h)).resize(
                    (own_w, own_h), Image.Resampling.NEAREST
                )
                canvas.paste(tile.resize((side_w, side_h), how), (left, row * (side_h + gap)))
    return SheetLayout(canvas, heads)
