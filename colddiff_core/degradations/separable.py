"""Separable operators A_t X B_t^T whose cost does not depend on t.

A convolution by a symmetric kernel is diagonal in the Fourier basis with circular padding. With reflect padding (the
border pixel not repeated) it is circular on the mirrored signal, hence diagonal in the DCT-I basis. So a chain of t
convolutions is a product of t gains per frequency. The products are computed once in float64 for every t, and applied
either as one n x n matrix per t or by FFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DENSE_TABLE_BYTES = 2**25  # larger tables of matrices are not built; the FFT is used instead
BASIS_SIDE_PIXELS = 1024  # up to this side components are computed by a matrix, which is faster than the FFT
ROWS_PER_FFT = 512  # rows transformed at a time


def gaussian(std: float, size: int) -> Tensor:
    """Return a Gaussian kernel, sampled at whole pixels and normalized to sum 1: (size,) float64."""
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-0.5 * (offsets / std) ** 2)
    return weights / weights.sum()


def _period(n: int, padding: str) -> int:
    return n if padding == "circular" else max(2 * n - 2, 1)


def _gains(kernels: Tensor, n: int, padding: str) -> Tensor:
    """Return the gain of each kernel (S, k) at the non-negative frequencies of n samples: (S, F)."""
    period = _period(n, padding)
    half = kernels.shape[1] // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    frequencies = torch.arange(period // 2 + 1, dtype=torch.float64)
    waves = torch.cos(2 * math.pi * frequencies[:, None] * offsets[None, :] / period)
    return kernels @ waves.T


def _basis(n: int, padding: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (analysis, synthesis, frequency), so that synthesis @ diag(gain[frequency]) @ analysis convolves."""
    j = torch.arange(n, dtype=torch.float64)
    if n == 1:
        one = torch.ones(1, 1, dtype=torch.float64)
        return one, one, torch.zeros(1, dtype=torch.int64)
    if padding == "circular":
        rows = torch.arange(n)
        frequency = (rows + 1) // 2  # 0, 1, 1, 2, 2, ...: a cosine, then its sine
        angle = 2 * math.pi / n * (frequency[:, None] * j[None, :])
        analysis = torch.where((rows % 2 == 1)[:, None] | (rows == 0)[:, None], torch.cos(angle), torch.sin(angle))
        analysis = analysis / analysis.norm(dim=1, keepdim=True)
        return analysis, analysis.T.contiguous(), frequency
    ends = torch.ones(n, dtype=torch.float64)
    ends[0] = ends[-1] = 0.5
    cosines = torch.cos(math.pi * j[:, None] * j[None, :] / (n - 1))
    # Scaled so that the noise of a coefficient is about that of a pixel, as `floor` assumes.
    scale = math.sqrt(2 / (n - 1))
    analysis = scale * cosines * ends[None, :]
    synthesis = scale * cosines * ends[None, :]
    return analysis, synthesis, torch.arange(n)


def _dct(x: Tensor, axis: int) -> Tensor:
    """Return the DCT-I of x (B, 1, H, W) along an axis; applying it twice gives 2 (n - 1) x."""
    n = x.shape[axis]
    if n == 1:
        return x * 2**0.5  # so that the factor is that of n = 2
    transformed = torch.empty_like(x)
    other = -2 if axis == -1 else -1
    # In chunks of rows: the mirrored signal and its spectrum take six times the memory of the input.
    for before, after in zip(x.split(ROWS_PER_FFT, other), transformed.split(ROWS_PER_FFT, other), strict=True):
        signal = before.movedim(axis, -1)
        mirrored = torch.cat([signal, signal[..., 1:-1].flip(-1)], -1)
        after.copy_(torch.fft.rfft(mirrored).real.movedim(-1, axis))
    return transformed


class SeparableStack:
    """Apply A_t x B_t^T for t = 0..T, with matrix tables that are built on first use of a size.

    Images are (B, C, H, W) float32; t is an int or (B,) int64 in 0..T. A subclass defines `_build`, which makes the
    tables, and `_split`, which factors A_t^-1 as synthesis @ diag(1 / gain) @ analysis.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._tables: dict[tuple[str, int, torch.device], Tensor] = {}

    def apply(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return A_t x B_t^T, same shape and dtype as x."""
        return self.along_columns(self.along_rows(x, t), t)

    def apply_both(self, x: Tensor, s: int, r: int) -> tuple[Tensor, Tensor]:
        """Return A_s x B_s^T and A_r x B_r^T, sharing one product along the rows."""
        if not self.is_dense(x):
            return self.apply(x, s), self.apply(x, r)
        width = x.shape[-1]
        table = self._table("matrix", width, x.device)
        rows = x @ torch.cat([table[s], table[r]]).to(x.dtype).mT
        return self.along_columns(rows[..., :width], s), self.along_columns(rows[..., width:], r)

    def along_columns(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return A_t x."""
        return self._table_entry("matrix", x.shape[-2], x.device, t).to(x.dtype) @ x

    def along_rows(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return x B_t^T."""
        return x @ self._table_entry("matrix", x.shape[-1], x.device, t).to(x.dtype).mT

    def invert(self, x_t: Tensor, t: int | Tensor, floor: float) -> Tensor:
        """Return the regularized inverse: each gain g becomes g / (g^2 + floor^2).

        g is the product of both axes' gains, so a pair of weak components is damped as well. `floor` is the noise in
        x_t divided by the spread of the picture.
        """
        analysis_h, vertical, synthesis_h = self._split(x_t.shape[-2], x_t.device, t)
        analysis_w, horizontal, synthesis_w = self._split(x_t.shape[-1], x_t.device, t)
        gain = vertical[..., :, None] * horizontal[..., None, :]
        noise = self._noise_to_signal("component", x_t, floor)
        components = (analysis_h @ x_t @ analysis_w.mT) * (gain / (gain.square() + noise))
        return synthesis_h @ components @ synthesis_w.mT

    def _noise_to_signal(self, kind: str, x: Tensor, floor: float) -> Tensor | float:
        """Return the squared ratio of noise to signal, per pair of components or one for all."""
        return floor**2

    def is_dense(self, x: Tensor) -> bool:
        """Return whether the matrix tables for both sides of x fit into DENSE_TABLE_BYTES."""
        return all((self.steps + 1) * n * n * 4 <= DENSE_TABLE_BYTES for n in x.shape[-2:])

    def _split(self, n: int, device: torch.device, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (analysis, gain, synthesis) with A_t^-1 = synthesis @ diag(1 / gain) @ analysis."""
        raise TypeError(f"{type(self).__name__} does not define _split")

    def _build(self, kind: str, n: int) -> Tensor:
        """Build the table of a kind for n samples, in the dtype in which it is used."""
        raise TypeError(f"{type(self).__name__} does not define _build")

    def _table_entry(self, kind: str, n: int, device: torch.device, t: int | Tensor) -> Tensor:
        """Return a table's entry for t, with a channel axis if t is per image."""
        table = self._table(kind, n, device)
        return table[t] if isinstance(t, int) else table[t].unsqueeze(1)

    def _table(self, kind: str, n: int, device: torch.device) -> Tensor:
        key = (kind, n, device)
        if key not in self._tables:
            self._tables[key] = self._build(kind, n).to(device)
        return self._tables[key]


class MatrixStack(SeparableStack):
    """A SeparableStack of arbitrary matrices: `build(n)` returns A_t for t = 0..T, (T + 1, n, n) float64."""

    def __init__(self, build: Callable[[int], Tensor], steps: int) -> None:
        super().__init__(steps)
        self.build = build

    def _split(self, n: int, device: torch.device, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        analysis, gain, synthesis = (
            self._table_entry(kind, n, device, t) for kind in ("analysis", "gain", "synthesis")
        )
        return analysis, gain, synthesis

    def _build(self, kind: str, n: int) -> Tensor:
        if kind == "matrix":
            return self.build(n).float()
        left, gain, right = torch.linalg.svd(self.build(n))
        return {"analysis": left.mT, "gain": gain, "synthesis": right.mT}[kind].float().contiguous()


class ConvolutionStack(SeparableStack):
    """A SeparableStack that convolves columns and rows by the first t kernels in turn.

    Equal to the literal chain of convolutions to float32 precision, and also defined for kernels wider than the image.
    If the matrix tables would be too large, the gains are applied by FFT.

    Args:
        kernels: (T, k) float64, symmetric, k odd.
        padding: "circular" or "reflect".
        is_natural: assume that pictures' amplitude falls as 1 / w with the frequency w, as in photographs (Field 1987):
            the inverse uses floor * w, w in radians per pixel, instead of floor, which makes it a Wiener filter.

    Source: Bansal et al. 2022, section 4.1 (x_t = M_t * ... * M_1 * x_0).
    """

    def __init__(self, kernels: Tensor, padding: str, *, is_natural: bool = False) -> None:
        super().__init__(len(kernels))
        self.kernels = kernels
        self.padding = padding
        self.is_natural = is_natural

    def apply(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return A_t x B_t^T, by matrices or by FFT, same shape and dtype as x."""
        if self.is_dense(x):
            return super().apply(x, t)
        return self._convolve(self._convolve(x, t, -1), t, -2)

    def invert(self, x_t: Tensor, t: int | Tensor, floor: float) -> Tensor:
        """Return the regularized inverse, by matrices or by FFT, same shape and dtype as x_t."""
        if max(x_t.shape[-2:]) <= BASIS_SIDE_PIXELS:
            return super().invert(x_t, t, floor)
        vertical, horizontal = (self._table_entry("spectrum", n, x_t.device, t) for n in x_t.shape[-2:])
        gain = vertical[..., :, None] * horizontal[..., None, :]
        gain = gain.div_(gain.square().add_(self._noise_to_signal("frequency", x_t, floor)))
        inverse = torch.empty_like(x_t)
        for before, after in zip(x_t.split(1, 1), inverse.split(1, 1), strict=True):
            after.copy_(self._filter(before, gain))
        return inverse

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        """Multiply the components of one channel (B, 1, H, W) by the gain of each pair of frequencies."""
        height, width = x.shape[-2:]
        if self.padding == "circular":
            # Frequencies beyond half the period mirror those before it.
            mirrored = torch.arange(height, device=x.device)
            rows = torch.minimum(mirrored, height - mirrored)
            return torch.fft.irfft2(torch.fft.rfft2(x).mul_(gain.index_select(-2, rows)), s=(height, width))
        components = _dct(_dct(x, -1), -2).mul_(gain)
        return _dct(_dct(components, -1), -2).div_(4 * max(height - 1, 1) * max(width - 1, 1))

    def gains(self, n: int, t: Tensor) -> Tensor:
        """Return the gain of the first t kernels, t (S,), at the frequencies 0..n // 2 of n samples: (S, F) float64."""
        gains = _gains(self.kernels, n, "circular")
        return torch.cat([torch.ones_like(gains[:1]), torch.cumprod(gains, 0)])[t]

    def _split(self, n: int, device: torch.device, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gain = self._table_entry("gain", n, device, t)
        return self._table("analysis", n, device), gain, self._table("synthesis", n, device)

    def _noise_to_signal(self, kind: str, x: Tensor, floor: float) -> Tensor | float:
        if not self.is_natural:
            return floor**2
        vertical, horizontal = (self._table(kind, n, x.device) for n in x.shape[-2:])
        return (vertical.square()[:, None] + horizontal.square()).mul_(floor**2)

    def _build(self, kind: str, n: int) -> Tensor:
        if kind == "spectrum":
            return self._cumulative_gains(n).float()
        period = _period(n, self.padding)
        if kind == "frequency":
            return torch.arange(period // 2 + 1) * (2 * math.pi / period)
        analysis, synthesis, frequency = _basis(n, self.padding)
        by_kind = {"analysis": analysis, "synthesis": synthesis, "component": frequency * (2 * math.pi / period)}
        if kind in by_kind:
            return by_kind[kind].float()
        gain = self._cumulative_gains(n)[:, frequency]
        if kind == "gain":
            return gain.float()
        return torch.stack([(synthesis * g) @ analysis for g in gain]).float()

    def _cumulative_gains(self, n: int) -> Tensor:
        """Return the gains of the first t kernels, t = 0..T, with this padding: (T + 1, F) float64."""
        gains = _gains(self.kernels, n, self.padding)
        return torch.cat([torch.ones_like(gains[:1]), torch.cumprod(gains, 0)])

    def _convolve(self, x: Tensor, t: int | Tensor, axis: int) -> Tensor:
        """Convolve along one axis by FFT, for sizes whose matrix table would be too large."""
        gain = self._table_entry("spectrum", x.shape[axis], x.device, t)
        if not isinstance(t, int):
            gain = gain.unsqueeze(1)
        convolved = torch.empty_like(x)
        other = -2 if axis == -1 else -1
        for before, after in zip(x.split(ROWS_PER_FFT, other), convolved.split(ROWS_PER_FFT, other), strict=True):
            after.copy_(self._convolve_rows(before.movedim(axis, -1), gain).movedim(-1, axis))
        return convolved

    def _convolve_rows(self, signal: Tensor, gain: Tensor) -> Tensor:
        n = signal.shape[-1]
        if self.padding == "reflect" and n > 2:
            signal = torch.cat([signal, signal[..., 1:-1].flip(-1)], -1)
        spectrum = torch.fft.rfft(signal).mul_(gain)
        return torch.fft.irfft(spectrum, n=signal.shape[-1])[..., :n]
