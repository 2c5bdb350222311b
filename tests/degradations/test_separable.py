"""Composed convolutions: matrices against FFT, and kernels wider than the picture."""

from __future__ import annotations

import math

import pytest
import torch

from colddiff_core import seeds
from colddiff_core.degradations import separable
from colddiff_core.degradations.separable import ConvolutionStack, gaussian


def stack(padding: str, size: int = 5, steps: int = 7, **settings: bool) -> ConvolutionStack:
    return ConvolutionStack(torch.stack([gaussian(0.5 + 0.2 * i, size) for i in range(steps)]), padding, **settings)


@pytest.mark.parametrize("padding", ["circular", "reflect"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (16, 16), (17, 30)])
def test_fft_equals_matrices(padding, shape, monkeypatch):
    x = torch.rand(3, 2, *shape, generator=seeds.generator(0))
    for t in (3, torch.tensor([0, 2, 7])):
        dense = stack(padding).apply(x, t)
        with monkeypatch.context() as patch:
            patch.setattr(separable, "DENSE_TABLE_BYTES", 0)
            by_fft = stack(padding).apply(x, t)
        torch.testing.assert_close(dense, by_fft, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("padding", "period"), [("circular", [0, 1, 2, 3]), ("reflect", [0, 1, 2, 3, 2, 1])])
def test_a_kernel_wider_than_the_picture_sees_it_continued(padding, period):
    row = torch.rand(1, 1, 1, 4, generator=seeds.generator(0))
    weights = gaussian(3.0, 11).float()
    expected = [
        sum(weights[k + 5] * row[0, 0, 0, period[(j + k) % len(period)]] for k in range(-5, 6)) for j in range(4)
    ]
    actual = ConvolutionStack(gaussian(3.0, 11)[None], padding).apply(row, 1)
    torch.testing.assert_close(actual[0, 0, 0], torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("padding", ["circular", "reflect"])
def test_a_constant_stays_constant(padding):
    x = torch.full((1, 1, 12, 15), 0.37)
    torch.testing.assert_close(stack(padding).apply(x, 7), x, rtol=0, atol=1e-6)


def test_the_floor_bounds_the_noise_of_the_inverse():
    """The inverse amplifies noise by at most 1 / (2 floor), over both axes together."""
    heavy_blur = ConvolutionStack(torch.stack([gaussian(7.0, 11)] * 20), "circular")
    noise = torch.randn(4, 1, 32, 32, generator=seeds.generator(0))
    for floor in (1e-2, 1e-4):
        for t in (1, 5, 20):
            amplification = heavy_blur.invert(noise, t, floor).norm() / noise.norm()
            assert amplification <= 1.01 / (2 * floor)


@pytest.mark.parametrize("padding", ["circular", "reflect"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (16, 16), (17, 30)])
@pytest.mark.parametrize("is_natural", [False, True])
def test_inverse_by_fft_equals_inverse_by_matrices(padding, shape, is_natural, monkeypatch):
    x = torch.rand(3, 2, *shape, generator=seeds.generator(0))
    for t in (3, torch.tensor([0, 2, 7])):
        by_matrices = stack(padding, is_natural=is_natural).invert(x, t, 0.01)
        with monkeypatch.context() as patch:
            patch.setattr(separable, "BASIS_SIDE_PIXELS", 0)
            patch.setattr(separable, "ROWS_PER_FFT", 5)
            by_fft = stack(padding, is_natural=is_natural).invert(x, t, 0.01)
        torch.testing.assert_close(by_matrices, by_fft, rtol=0, atol=2e-5)


@pytest.mark.parametrize("padding", ["circular", "reflect"])
def test_natural_inverse_damps_high_frequencies_and_keeps_the_mean(padding):
    """A wave of w radians per pixel with blur gain g is scaled by g / (g^2 + (floor w)^2)."""
    natural, floor, n = stack(padding, is_natural=True), 0.3, 33
    period = n if padding == "circular" else 2 * n - 2
    for cycles in (0, 3, 11):
        w = 2 * math.pi * cycles / period
        wave = torch.cos(w * torch.arange(n)).expand(1, 1, 5, n)
        blurred = natural.apply(wave, 4)
        gain = float(blurred[0, 0, 0, 0])
        expected = wave * gain**2 / (gain**2 + (floor * w) ** 2)
        torch.testing.assert_close(natural.invert(blurred, 4, floor), expected, rtol=0, atol=1e-5)
