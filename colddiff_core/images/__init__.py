"""Image files, pixels and contact sheets."""

from colddiff_core.images.codec import count_channels, count_pixels, read, read_bytes, read_like
from colddiff_core.images.encoding import ANIMATED, SUFFIXES, check_sides, check_suffix, write, write_animation
from colddiff_core.images.formats import HEAD_BYTES, READABLE, suffix_of
from colddiff_core.images.jpeg import jpeg_round_trip
from colddiff_core.images.opening import Work
from colddiff_core.images.pixels import (
    LUMA,
    dequantize,
    quantize,
    resize_and_crop,
    to_bytes,
    to_floats,
    to_pillow,
)
from colddiff_core.images.sheets import enlarge, image_grid, lay_out, sheet, side_by_side, tile

__all__ = [
    "ANIMATED",
    "HEAD_BYTES",
    "LUMA",
    "READABLE",
    "SUFFIXES",
    "Work",
    "check_sides",
    "check_suffix",
    "count_channels",
    "count_pixels",
    "dequantize",
    "enlarge",
    "image_grid",
    "jpeg_round_trip",
    "lay_out",
    "quantize",
    "read",
    "read_bytes",
    "read_like",
    "resize_and_crop",
    "sheet",
    "side_by_side",
    "suffix_of",
    "tile",
    "to_bytes",
    "to_floats",
    "to_pillow",
    "write",
    "write_animation",
]
