"""Contact sheets: images in labeled columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from colddiff_core.images.pixels import to_pillow

MIN_TILE_PIXELS = 64  # smaller images are enlarged until their shorter side reaches this
GAP_PIXELS = 4
HEAD_PIXELS = 18  # room for labels above a sheet
BACKGROUND, INK = (24, 24, 28), (220, 220, 220)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Positions of the images on a contact sheet, in pixels, so that a reader can cut them out.

    Attributes:
        canvas: (width, height) of the sheet.
        tile: (width, height) of every image on it, its own size times `scale`.
        scale: How many times an image is enlarged.
        corners: (left, top) of each image, by column.
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    scale: int
    corners: dict[str, list[tuple[int, int]]]


def lay_out(columns: Mapping[str, Tensor], *, blocks: int = 1) -> Layout:
    """Return the layout that `sheet` uses for the same arguments."""
    count, (height, width) = len(next(iter(columns.values()))), next(iter(columns.values())).shape[-2:]
    rows = -(-count // blocks)
    scale = max(1, -(-MIN_TILE_PIXELS // min(height, width)))
    pitch_x, pitch_y = width * scale + GAP_PIXELS, height * scale + GAP_PIXELS
    block_w = len(columns) * pitch_x + GAP_PIXELS
    corners: dict[str, list[tuple[int, int]]] = {}
    for column, name in enumerate(columns):
        cells = [divmod(index, rows) for index in range(count)]
        corners[name] = [
            (block * (block_w + GAP_PIXELS * 2) + GAP_PIXELS + column * pitch_x, HEAD_PIXELS + row * pitch_y)
            for block, row in cells
        ]
    canvas = (blocks * block_w + (blocks - 1) * GAP_PIXELS * 2, HEAD_PIXELS + rows * pitch_y + GAP_PIXELS)
    return Layout(canvas, (width * scale, height * scale), scale, corners)


def sheet(columns: Mapping[str, Tensor], *, blocks: int = 1) -> Image.Image:
    """Return a labeled contact sheet: a column per name, a row per image, split into `blocks` side by side.

    Shapes: every column (B, C, H, W) in [-1, 1], C = 1 or 3. Small images are enlarged by an integer factor.
    """
    layout = lay_out(columns, blocks=blocks)
    font = ImageFont.load_default(12)
    canvas = Image.new("RGB", layout.canvas, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for name, corners in layout.corners.items():
        for left in sorted({left for left, _ in corners}):
            draw.text((left, 2), _shorten(name, font, layout.tile[0]), fill=INK, font=font)
        for x, corner in zip(columns[name].cpu(), corners, strict=True):
            canvas.paste(to_pillow(x).resize(layout.tile, Image.Resampling.NEAREST), corner)
    return canvas


def _shorten(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a label shortened to a width in pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"{name}…") > width:
        name = name[:-1]
    return f"{name}…"


def image_grid(groups: Mapping[str, Tensor], *, across: int) -> Image.Image:
    """Return one labeled grid of images per group, `across` images wide, side by side.

    Shapes: every group (B, C, H, W) in [-1, 1], C = 1 or 3. Small images are enlarged by an integer factor.
    """
    height, width = next(iter(groups.values())).shape[-2:]
    scale = max(1, -(-MIN_TILE_PIXELS // min(height, width)))
    tile_w, tile_h = width * scale + GAP_PIXELS, height * scale + GAP_PIXELS
    rows = max(-(-len(stack) // across) for stack in groups.values())
    head = HEAD_PIXELS if any(groups) else 0
    group_w = across * tile_w + 3 * GAP_PIXELS
    canvas = Image.new("RGB", (len(groups) * group_w - GAP_PIXELS, head + rows * tile_h + 2 * GAP_PIXELS), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, (name, stack) in enumerate(groups.items()):
        left = number * group_w + GAP_PIXELS
        draw.text((left, 2), _shorten(name, font, group_w - 2 * GAP_PIXELS), fill=INK, font=font)
        for index, x in enumerate(stack):
            tile = to_pillow(x).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            row, column = divmod(index, across)
            canvas.paste(tile, (left + column * tile_w, head + GAP_PIXELS + row * tile_h))
    return canvas


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures in a row, aligned at the top; the contact sheet's background fills below shorter ones."""
    size = (sum(picture.width for picture in pictures), max(picture.height for picture in pictures))
    ground = BACKGROUND if pictures[0].mode == "RGB" else 0
    canvas = Image.new(pictures[0].mode, size, ground)
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width
    return canvas


def tile(batch: Tensor, columns: int) -> Tensor:
    """Return a batch (B, C, H, W) in [-1, 1] as one image (C, rows * H, columns * W); empty cells are black."""
    count, channels, height, width = batch.shape
    rows = -(-count // columns)
    filled = batch.new_full((rows * columns, channels, height, width), -1.0)
    filled[:count] = batch
    grid = filled.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def enlarge(picture: Image.Image, min_side: int) -> Image.Image:
    """Enlarge by an integer factor until the shorter side has at least `min_side` pixels."""
    scale = max(1, -(-min_side // min(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
