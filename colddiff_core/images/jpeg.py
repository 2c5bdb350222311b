"""JPEG compression and decompression of a batch of images, on the device that holds them.

All products and sums are of integers and multiples of powers of two that need far fewer than float64's 53 bits, so they
are exact: the result does not depend on the device or the order of summation, and equals Pillow's with libjpeg-turbo
bit for bit. Nothing is read back from the device.

Sources: ITU-T T.81 (the transform, the tables and the quantization) and ITU-T T.871 (JFIF: the colors); libjpeg for
what they leave open: the table for a quality, how values are rounded, and how chroma is subsampled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core.devices import on_device, upload
from colddiff_core.images.pixels import to_bytes, to_floats

BLOCK = 8
LOWEST, HIGHEST = -128.0, 127.0  # of a component's samples when transformed
QUALITIES = (1, 100)

# Tables K.1 and K.2 of T.81, annex K: steps for luminance and chrominance, at quality 50.
STEPS = torch.tensor(
    [
        [
            [16, 11, 10, 16, 24, 40, 51, 61],
            [12, 12, 14, 19, 26, 58, 60, 55],
            [14, 13, 16, 24, 40, 57, 69, 56],
            [14, 17, 22, 29, 51, 87, 80, 62],
            [18, 22, 37, 56, 68, 109, 103, 77],
            [24, 35, 55, 64, 81, 104, 113, 92],
            [49, 64, 78, 87, 103, 121, 120, 101],
            [72, 92, 95, 98, 112, 100, 103, 99],
        ],
        [
            [17, 18, 24, 47, 99, 99, 99, 99],
            [18, 21, 26, 66, 99, 99, 99, 99],
            [24, 26, 56, 99, 99, 99, 99, 99],
            [47, 66, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
            [99, 99, 99, 99, 99, 99, 99, 99],
        ],
    ]
)

# The cosine transform of 8 samples, times sqrt(8) * 2^13. The entries are sums of the factors of Loeffler, Ligtenberg
# and Moschytz (1989), each rounded to 13 bits, so one cosine can have several values, such as 2259, 2260 and 2261.
DCT = torch.tensor(
    [
        [8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192],
        [11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363],
        [10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703],
        [9633, -2259, -11362, -6436, 6436, 11362, 2259, -9633],
        [8192, -8192, -8192, 8192, 8192, -8192, -8192, 8192],
        [6437, -11362, 2261, 9633, -9633, -2261, 11362, -6437],
        [4433, -10704, 10704, -4433, -4433, 10704, -10704, 4433],
        [2260, -6436, 9633, -11363, 11363, -9633, 6436, -2260],
    ],
    dtype=torch.float64,
)
# Each direction has two passes. The first keeps two extra bits; the second drops them, and in the inverse a factor 8.
FIRST_PASS, FORWARD, INVERSE = DCT.T.contiguous() / 2**11, DCT / 2**15, DCT / 2**18

# Red, green and blue to Y, Cb and Cr and back, in 16 bits. T.871, section 7.
TO_YCC = torch.tensor([[19595, 38470, 7471], [-11059, -21709, 32768], [32768, -27439, -5329]]).double() / 2**16
FROM_YCC = torch.tensor([[65536, 0, 91881], [65536, -22554, -46802], [65536, 116130, 0]]).double() / 2**16
# Y is shifted to be centered and rounds halves up; Cb and Cr are centered already and round halves down.
YCC_SHIFT = torch.tensor([[0.5 + LOWEST], [0.5 - 2**-16], [0.5 - 2**-16]], dtype=torch.float64)
PAST_HALF = 1 + 2**-30  # rounds halves away from zero; no other quotient is within 1/2040 of a half
SMOOTHED_WIDTH = 3  # narrower chroma is repeated, not interpolated


def jpeg_round_trip(x: Tensor, qualities: Tensor) -> Tensor:
    """Return images after JPEG compression, each at its own quality, with chroma at half resolution (4:2:0).

    Equals what Pillow's `save(file, "JPEG", quality=...)` and `open` return with libjpeg-turbo. The CPU does not wait
    for a GPU. There are no gradients.

    Shapes: x and the result (B, C, H, W) float32 in [-1, 1], C = 1 or 3, of any height and width. `qualities` is (B,)
    int64, from 1 to 100; others are clamped.
    """
    height, width = x.shape[-2:]
    pixels, steps = to_bytes(x).double(), quantization_steps(upload(qualities, x.device))
    if x.shape[1] == 1:
        decoded = _through_blocks(_extended(pixels.add_(LOWEST), BLOCK, BLOCK), steps[:, :1]).sub_(LOWEST)
        return to_floats(decoded[..., :height, :width].to(torch.uint8))
    colors = (on_device(TO_YCC, x.device) @ pixels.flatten(2)).add_(on_device(YCC_SHIFT, x.device)).floor_()
    colors = colors.view_as(pixels)
    luminance = _through_blocks(_extended(colors[:, :1], BLOCK, BLOCK), steps[:, :1])
    # libjpeg pads columns before it halves chroma, but rows afterwards, except for the one row of an odd height.
    halved = _halved(_extended(colors[:, 1:], 2, 2 * BLOCK))
    halved = _through_blocks(_extended(halved, BLOCK, BLOCK), steps[:, 1:])
    chrominance = _doubled(halved[..., : (height + 1) // 2, : (width + 1) // 2])
    colors = torch.cat([planes[..., :height, :width] for planes in (luminance, chrominance)], 1)
    decoded = (on_device(FROM_YCC, x.device) @ colors.flatten(2)).add_(0.5 - LOWEST).floor_().clamp_(0, 255)
    return to_floats(decoded.view_as(colors).to(torch.uint8))


def quantization_steps(qualities: Tensor) -> Tensor:
    """Return libjpeg's quantization tables of luminance and chrominance for each quality.

    Shapes: qualities (B,) int64, 1 to 100; the result (B, 2, 8, 8) int64, 1 to 255.
    """
    qualities = qualities.clamp(*QUALITIES).view(-1, 1, 1, 1)
    percent = torch.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    return ((on_device(STEPS, qualities.device) * percent + 50) // 100).clamp_(1, 255)


def _through_blocks(planes: Tensor, steps: Tensor) -> Tensor:
    """Return components after DCT, quantization and inverse DCT of their blocks.

    Shapes: planes and the result (B, C, H, W) float64 whole numbers in -128..127, H and W multiples of 8; steps
    (B, 1, 8, 8).
    """
    batch, channels, height, width = planes.shape
    first, forward, inverse = (on_device(table, planes.device) for table in (FIRST_PASS, FORWARD, INVERSE))
    steps = steps.double().view(batch, 1, 1, BLOCK, 1, BLOCK)
    along_rows = _rounded(planes.reshape(-1, BLOCK) @ first)
    coefficients = _rounded(forward @ along_rows.view(-1, BLOCK, width))  # eight times those of T.81
    blocks = coefficients.view(batch, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    blocks.mul_(PAST_HALF / (BLOCK * steps)).round_().mul_(steps)
    down_columns = _rounded(first @ coefficients)
    return _rounded(down_columns.view(-1, BLOCK) @ inverse).clamp_(LOWEST, HIGHEST).view_as(planes)


def _rounded(x: Tensor) -> Tensor:
    """Round in place; halves go up."""
    return x.add_(0.5).floor_()


def _extended(planes: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column of (B, C, H, W) until H and W are multiples of `rows` and `columns`."""
    down, right = -planes.shape[-2] % rows, -planes.shape[-1] % columns
    return F.pad(planes, (0, right, 0, down), mode="replicate") if down or right else planes


def _halved(planes: Tensor) -> Tensor:
    """Return the means of 2 x 2 samples; halves go down in even columns, up in odd ones.

    Shapes: (B, C, 2H, 2W) float64 whole numbers; the result (B, C, H, W).
    """
    means = F.avg_pool2d(planes, 2)
    means[..., ::2].add_(0.25)
    means[..., 1::2].add_(0.5)
    return means.floor_()


def _doubled(planes: Tensor) -> Tensor:
    """Return twice as many rows and columns, interpolated; halves go up in even columns, down in odd ones.

    Shapes: (B, C, H, W) float64 whole numbers; the result (B, C, 2H, 2W).
    """
    if planes.shape[-1] < SMOOTHED_WIDTH:
        return F.interpolate(planes, scale_factor=2)
    doubled = F.interpolate(planes, scale_factor=2, mode="bilinear")
    doubled[..., ::2].add_(8 / 16)
    doubled[..., 1::2].add_(7 / 16)
    return doubled.floor_()
