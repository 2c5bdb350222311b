"""Contact sheets: images in labeled columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from colddiff_core.images.pixels import to_pillow

TILE = 64  # least side, in pixels, of a picture on a contact sheet


GAP = 4


HEAD = 18  # pixels above a sheet for its labels


BACKGROUND, INK = (24, 24, 28), (220, 220, 220)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the pictures of a contact sheet stand, in pixels: what a reader needs to take one out again.

    `corners` holds the (left, top) of each picture by column; all are `tile` wide and high, which is the
    picture's own size times `scale`.
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    scale: int
    corners: dict[str, list[tuple[int, int]]]


def lay_out(columns: Mapping[str, Tensor], *, blocks: int = 1) -> Layout:
    """Return the layout of `sheet` for the same arguments."""
    count, (height, width) = len(next(iter(columns.values()))), next(iter(columns.values())).shape[-2:]
    rows = -(-count // blocks)
    scale = max(1, -(-TILE // min(height, width)))
    pitch_x, pitch_y = width * scale + GAP, height * scale + GAP
    block_w = len(columns) * pitch_x + GAP
    corners: dict[str, list[tuple[int, int]]] = {}
    for column, name in enumerate(columns):
        places = [divmod(index, rows) for index in range(count)]
        corners[name] = [
            (block * (block_w + GAP * 2) + GAP + column * pitch_x, HEAD + row * pitch_y) for block, row in places
        ]
    canvas = (blocks * block_w + (blocks - 1) * GAP * 2, HEAD + rows * pitch_y + GAP)
    return Layout(canvas, (width * scale, height * scale), scale, corners)


def sheet(columns: Mapping[str, Tensor], *, blocks: int = 1) -> Image.Image:
    """Return a labeled contact sheet: a column per kind, a row per image, `blocks` such tables abreast.

    Shapes: every column (B, C, H, W) in [-1, 1]. Small pictures are enlarged by whole pixels.
    """
    layout = lay_out(columns, blocks=blocks)
    font = ImageFont.load_default(12)
    canvas = Image.new("RGB", layout.canvas, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for name, corners in layout.corners.items():
        for left in sorted({left for left, _ in corners}):
            draw.text((left, 2), _fitting(name, font, layout.tile[0]), fill=INK, font=font)
        for x, corner in zip(columns[name], corners, strict=True):
            canvas.paste(to_pillow(x).resize(layout.tile, Image.Resampling.NEAREST), corner)
    return canvas


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a label cut to a width in pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"{name}…") > width:
        name = name[:-1]
    return f"{name}…"


def album(groups: Mapping[str, Tensor], *, across: int) -> Image.Image:
    """Return a labeled contact sheet without rows that belong together: a grid `across` images wide for each group.

    Shapes: every group (B, C, H, W) in [-1, 1]. Small pictures are enlarged by whole pixels.
    """
    height, width = next(iter(groups.values())).shape[-2:]
    scale = max(1, -(-TILE // min(height, width)))
    tile_w, tile_h = width * scale + GAP, height * scale + GAP
    rows = max(-(-len(stack) // across) for stack in groups.values())
    head = HEAD if any(groups) else 0
    group_w = across * tile_w + 3 * GAP
    canvas = Image.new("RGB", (len(groups) * group_w - GAP, head + rows * tile_h + 2 * GAP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for number, (name, stack) in enumerate(groups.items()):
        left = number * group_w + GAP
        draw.text((left, 2), name, fill=INK, font=ImageFont.load_default(12))
        for place, x in enumerate(stack):
            tile = to_pillow(x).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            row, column = divmod(place, across)
            canvas.paste(tile, (left + column * tile_w, head + GAP + row * tile_h))
    return canvas


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures side by side, from left to right, on the ground of a contact sheet where one is lower."""
    size = (sum(picture.width for picture in pictures), max(picture.height for picture in pictures))
    ground = BACKGROUND if pictures[0].mode == "RGB" else 0
    canvas = Image.new(pictures[0].mode, size, ground)
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width
    return canvas


def tile(batch: Tensor, columns: int) -> Tensor:
    """Return a batch (B, C, H, W) as one picture (C, rows * H, columns * W); empty places are black."""
    count, channels, height, width = batch.shape
    rows = -(-count // columns)
    filled = batch.new_full((rows * columns, channels, height, width), -1.0)
    filled[:count] = batch
    grid = filled.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def enlarge(picture: Image.Image, least: int) -> Image.Image:
    """Enlarge by whole pixels until the shorter side is at least `least` pixels."""
    scale = max(1, -(-least // min(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
