"""A run's sample sheets: find new ones, cut them into images and lay those out for the screen."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colddiff_core.files import parse_json, read_ordinary

if TYPE_CHECKING:
    from PIL import Image

NAME = re.compile(r"step-(\d+)\.png")
GAP = 1  # pixels between images in half-blocks
SCREEN_GAP = 4  # pixels between images in terminals that draw real pixels
GAP_COLOR = (48, 48, 56)
CACHED_SHEETS = 3  # a large decoded sheet takes megabytes
MOST_METADATA_BYTES = 1 << 24
MAX_PIXELS = 50_000_000  # of a sheet, so that it fits into memory once decoded
MIN_ROWS = 2  # rows that should be visible before images are enlarged


@dataclasses.dataclass(frozen=True, eq=False)
class SampleSheet:
    """A decoded sheet, and the JSON beside it ({} if missing)."""

    name: str
    step: int
    picture: Image.Image
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SheetLayout:
    """Images laid out for the screen, with the name and left edge (in pixels) of each column."""

    picture: Image.Image
    headings: list[tuple[str, int]]


class SampleSheets:
    """The sheets of one run, oldest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cache: dict[str, tuple[tuple[int, ...], SampleSheet]] = {}  # by name, with times and sizes of the files

    def names(self) -> list[str]:
        """Return the file names by step. Drafts have other names until they are complete."""
        try:
            matches = [match for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))]
        except OSError:
            return []
        return [match[0] for match in sorted(matches, key=lambda match: (int(match[1]), match[0]))]

    def load(self, name: str) -> SampleSheet | None:
        """Return a sheet, or None if it cannot be read (deleted, or still being written)."""
        from PIL import Image  # imported late, so the dashboard opens faster

        path = self.folder / name
        notes = path.with_suffix(".json")
        if not path.is_file() or (notes.exists() and not notes.is_file()):  # reading a pipe would block forever
            return None
        try:
            key = _fingerprint(path) + _fingerprint(path.with_suffix(".json"))
            if name in self._cache and self._cache[name][0] == key:
                return self._cache[name][1]
            with Image.open(path, formats=("PNG",)) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    return None
                picture = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
        match = NAME.fullmatch(name)
        sheet = SampleSheet(name, int(match[1]) if match else 0, picture, self._metadata(path))
        self._cache = {**dict(list(self._cache.items())[1 - CACHED_SHEETS :]), name: (key, sheet)}
        return sheet

    def _metadata(self, path: Path) -> dict[str, Any]:
        try:
            metadata = parse_json(read_ordinary(path.with_suffix(".json"), MOST_METADATA_BYTES))
        except (OSError, ValueError):
            return {}
        return metadata if isinstance(metadata, dict) else {}


def _fingerprint(path: Path) -> tuple[int, ...]:
    """Return time and size of a file; () if it is missing."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size


def arrange(sheet: SampleSheet, width: int, height: int, *, gap: int = GAP) -> SheetLayout:
    """Lay out as many images of a sheet as fit into width x height pixels, enlarged by whole factors if there is room.

    A sheet whose JSON does not locate its images is shown whole.
    """
    from PIL import Image

    width, height = max(4, width), max(2, height)
    try:
        return _layout(sheet, width, height, gap)
    except Exception:  # the JSON may hold anything
        shrunk = sheet.picture.copy()
        shrunk.thumbnail((width, height), Image.Resampling.BOX)
        return SheetLayout(shrunk, [])


def _layout(sheet: SampleSheet, width: int, height: int, gap: int) -> SheetLayout:
    """Lay out the images that the sheet's JSON locates; whatever Python or Pillow raises means it is unusable."""
    from PIL import Image

    tile_w, tile_h = (int(side) for side in sheet.metadata["tile"])
    scale = int(sheet.metadata["scale"])
    columns = {str(name): [(int(x), int(y)) for x, y in corners] for name, corners in sheet.metadata["corners"].items()}
    image_w, image_h = tile_w // scale, tile_h // scale
    count = min(len(corners) for corners in columns.values())
    max_x, max_y = sheet.picture.width - tile_w, sheet.picture.height - tile_h
    if image_w < 1 or image_h < 1 or count < 1 or len(columns) * 2 > width:
        raise ValueError("no images to show")
    if not all(0 <= x <= max_x and 0 <= y <= max_y for corners in columns.values() for x, y in corners):
        raise ValueError("corners outside the sheet")
    zoom = _zoom((image_w, image_h), len(columns), count, (width, height), gap)
    side_w, side_h = max(1, int(image_w * zoom)), max(1, int(image_h * zoom))
    rows = max(1, min(count, (height + gap) // (side_h + gap)))
    block_w = len(columns) * (side_w + gap)
    blocks = max(1, min(-(-count // rows), (width + 2 * gap) // (block_w + gap)))
    size = blocks * (block_w + gap) - 2 * gap, rows * (side_h + gap) - gap
    if size[0] > width + len(columns) * gap or size[1] > height + rows * gap:
        raise ValueError("images too thin for the screen")
    canvas = Image.new("RGB", size, GAP_COLOR)
    headings = []
    resampling = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX
    for block in range(blocks):
        for column, (name, corners) in enumerate(columns.items()):
            left = block * (block_w + gap) + column * (side_w + gap)
            headings.append((name, left))
            for row, (x, y) in enumerate(corners[block * rows : (block + 1) * rows]):
                tile = sheet.picture.crop((x, y, x + tile_w, y + tile_h))
                image = tile.resize((image_w, image_h), Image.Resampling.NEAREST)
                canvas.paste(image.resize((side_w, side_h), resampling), (left, row * (side_h + gap)))
    return SheetLayout(canvas, headings)


def _zoom(image: tuple[int, int], columns: int, rows: int, screen: tuple[int, int], gap: int) -> float:
    """Return the factor that makes all columns and `MIN_ROWS` rows of images fit: a whole number if it enlarges."""
    (image_w, image_h), (width, height) = image, screen
    to_width = ((width + gap) / columns - gap) / image_w
    zoom = min(to_width, (height + gap) / min(MIN_ROWS, rows) / image_h - gap / image_h)
    if zoom >= 1 or min(image) == 1:  # an image one pixel high or wide cannot shrink
        return max(1, int(zoom))
    # If two rows do not fit without shrinking, one larger row is easier to read.
    return min(1.0, to_width, height / image_h)
