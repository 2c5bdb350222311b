"""Gray images, and those of them with more than 8 bits: which value is white."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from colddiff_core.images.opening import packing

GRAY_MODES = frozenset({"1", "L", "LA", "La", "F"})
DEEP_ALPHA = "LA;16B"  # how Pillow names a PNG's gray with alpha of 16 bits, which it opens as RGBA
FLOAT_WHITES = (1.0, 255.0, 65535.0)
MOST_OVERSHOOT = 8.0  # floats up to this are scaled for 1 and overexposed: at 255, they would all be black
INTEGER_WHITES = (255.0, 4095.0, 65535.0)  # of 8 and 12 bits, which are often stored in more, and of 16
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2


def is_gray(picture: Image.Image) -> bool:
    """Return whether an image has one channel of shades and no color, transparency aside.

    Call it before the image is decoded: only then does Pillow know gray with alpha of 16 bits from color.
    """
    return picture.mode in GRAY_MODES or picture.mode.startswith("I") or _is_deep_with_alpha(picture)


def is_deep(picture: Image.Image) -> bool:
    """Return whether an image is gray with more than 8 bits, without transparency."""
    return picture.mode.startswith("I") or picture.mode == "F"


def decode(picture: Image.Image) -> Image.Image:
    """Decode an image file in place and return it; gray with alpha of 16 bits becomes LA, with 8."""
    is_split = _is_deep_with_alpha(picture)
    picture.load()
    if is_split:
        picture.im = picture.im.convert("LA")
        picture._mode = "LA"  # in place: a new image would lose the metadata
    return picture


def _is_deep_with_alpha(picture: Image.Image) -> bool:
    return picture.mode == "RGBA" and DEEP_ALPHA in packing(picture)


@dataclasses.dataclass(frozen=True)
class GrayDepth:
    """How the values of a deep gray image become shades.

    A PNG's, PPM's or JPEG 2000's white is 65535. In a TIFF, which does not say, white is the smallest of 255, 4095,
    65535 and the largest value of its type that no pixel exceeds: 8 and 12 bits are often stored in 16 or 32. So a
    16-bit TIFF whose brightest pixel is at most a sixteenth of white comes out brighter. Floats are 0 to 1, 0 to 255
    or 0 to 65535, again the first that holds them, and up to 8 they are overexposed. Negative values are black.

    Attributes:
        whites: The values that white may have, ascending.
        is_inverted: White is zero.
        is_unsigned: The values are unsigned 32-bit integers, which Pillow takes for signed ones.
    """

    whites: tuple[float, ...] = FLOAT_WHITES
    is_inverted: bool = False
    is_unsigned: bool = False

    @classmethod
    def of(cls, picture: Image.Image) -> GrayDepth:
        """Return the depth of an image file, which may be decoded already but not converted."""
        if picture.mode == "F":
            return cls(FLOAT_WHITES, _tag(picture, PHOTOMETRIC, 1) == WHITE_IS_ZERO)
        if picture.format != "TIFF":
            return cls(INTEGER_WHITES[-1:])
        bits, is_signed = _tag(picture, BITS, 16), _tag(picture, SAMPLE_FORMAT, UNSIGNED) == SIGNED
        largest = 2.0 ** (bits - is_signed) - 1
        whites = (*(white for white in INTEGER_WHITES if white < largest), largest)
        is_inverted = _tag(picture, PHOTOMETRIC, 1) == WHITE_IS_ZERO
        return cls(whites, is_inverted, is_unsigned=bits == 32 and not is_signed)

    def white(self, values: np.ndarray) -> float:
        """Return the value of white in an image (H, W)."""
        values = self._typed(values)
        largest = float(values.max(initial=0, where=np.isfinite(values)))
        if values.dtype.kind == "f" and largest <= MOST_OVERSHOOT:
            return self.whites[0]
        return next((white for white in self.whites if largest <= white), largest)

    def shades(self, values: np.ndarray, white: float) -> np.ndarray:
        """Return values (H, W), all of an image or some rows, as float64 in [0, 1]; those not finite are black."""
        values = self._typed(values)
        with np.errstate(invalid="ignore"):  # casting a NaN
            finite = np.nan_to_num(values.astype(np.float64), copy=False, posinf=0.0, neginf=0.0)
        shades = (finite / white).clip(0, 1)
        return np.asarray(1 - shades if self.is_inverted else shades)

    def _typed(self, values: np.ndarray) -> np.ndarray:
        return values.view(np.uint32) if self.is_unsigned and values.dtype == np.int32 else values


def _tag(picture: Image.Image, number: int, default: int) -> int:
    """Return the first value of a TIFF's tag."""
    value = getattr(picture, "tag_v2", {}).get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)
