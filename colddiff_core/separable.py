"""Exact composed convolutions along both axes of an image: A_t X B_t^T at one price for every t.

A convolution by a symmetric kernel with circular padding is diagonal in the Fourier basis; with
reflect padding (the border pixel not repeated) it is circular on the mirrored signal, hence diagonal
in the DCT-I basis. A chain of t such convolutions is then a product of t gains per frequency, taken
once in float64 for every t and either folded into one n x n matrix per t or applied by FFT.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DENSE_TABLE_BYTES = 2**28  # beyond this a table of matrices is given up for the FFT


def gaussian(std: float, size: int) -> Tensor:
    """Return a Gaussian sampled at integer offsets and normalised over its window: (size,) float64."""
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
    """Return (analysis, synthesis, frequency): synthesis @ diag(gain[frequency]) @ analysis convolves."""
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
    # Scaled so that a coefficient's noise is about a pixel's, which is what a floor is compared with.
    scale = math.sqrt(2 / (n - 1))
    analysis = scale * cosines * ends[None, :]
    synthesis = scale * cosines * ends[None, :]
    return analysis, synthesis, torch.arange(n)


class ConvolutionStack:
    """x -> A_t x B_t^T, where A_t and B_t convolve columns and rows by the first t kernels in turn.

    kernels: (T, k) float64, symmetric, k odd; padding: "circular" or "reflect". Tables are built when
    a size is first seen and kept for that size and device. Equal to the literal chain of convolutions
    to float32 precision, and defined where a kernel is wider than the image, which the chain is not.

    Source: Bansal et al. 2022, section 4.1 (x_t = M_t * ... * M_1 * x_0).
    """

    def __init__(self, kernels: Tensor, padding: str) -> None:
        self.kernels = kernels
        self.padding = padding
        self.steps = kernels.shape[0]
        self._tables: dict[tuple[str, int, torch.device], Tensor] = {}

    def apply(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return A_t x B_t^T for x (B, C, H, W) float32, t an int or (B,) int64 in 0..T."""
        height, width = x.shape[-2:]
        if self._is_dense(height) and self._is_dense(width):
            columns = self._pick("matrix", height, x.device, t)
            rows = self._pick("matrix", width, x.device, t)
            return columns @ x @ rows.mT
        return self._convolve(self._convolve(x, t, -1), t, -2)

    def invert(self, x_t: Tensor, t: int | Tensor, floor: float) -> Tensor:
        """Undo A_t X B_t^T where it left something to undo: each gain g becomes g / (g^2 + floor^2).

        g is the product of both axes' gains, so the noise of a pair of weak frequencies is held back
        as well; `floor` is the noise of x_t over the spread of the picture.

        Shapes: x_t (B, C, H, W) float32, t an int or (B,) int64; returns (B, C, H, W) float32.
        """
        height, width = x_t.shape[-2:]
        vertical = self._pick("gain", height, x_t.device, t)[..., :, None]
        horizontal = self._pick("gain", width, x_t.device, t)[..., None, :]
        gain = vertical * horizontal
        weight = gain / (gain.square() + floor**2)
        analysis_h, synthesis_h = self._bases(height, x_t.device)
        analysis_w, synthesis_w = self._bases(width, x_t.device)
        coefficients = analysis_h @ x_t @ analysis_w.mT
        return synthesis_h @ (coefficients * weight) @ synthesis_w.mT

    def _is_dense(self, n: int) -> bool:
        return (self.steps + 1) * n * n * 4 <= DENSE_TABLE_BYTES

    def _pick(self, kind: str, n: int, device: torch.device, t: int | Tensor) -> Tensor:
        """Return a table's entry for t, with room for the channel axis where t is per image."""
        table = self._table(kind, n, device)
        return table[t] if isinstance(t, int) else table[t].unsqueeze(1)

    def _table(self, kind: str, n: int, device: torch.device) -> Tensor:
        key = (kind, n, device)
        if key not in self._tables:
            self._tables[key] = self._build(kind, n).to(device)
        return self._tables[key]

    def _bases(self, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return self._table("analysis", n, device), self._table("synthesis", n, device)

    def _build(self, kind: str, n: int) -> Tensor:
        if kind == "spectrum":
            return self._composed(n).float()
        analysis, synthesis, frequency = _basis(n, self.padding)
        if kind == "analysis":
            return analysis.float()
        if kind == "synthesis":
            return synthesis.float()
        gain = self._composed(n)[:, frequency]
        if kind == "gain":
            return gain.float()
        return torch.stack([(synthesis * g) @ analysis for g in gain]).float()

    def _composed(self, n: int) -> Tensor:
        """Return the gain per frequency of the first t kernels, t = 0..T: (T + 1, F) float64."""
        gains = _gains(self.kernels, n, self.padding)
        return torch.cat([torch.ones_like(gains[:1]), torch.cumprod(gains, 0)])

    def _convolve(self, x: Tensor, t: int | Tensor, axis: int) -> Tensor:
        """Convolve along one axis by FFT: for sizes whose table of matrices would be too large."""
        n = x.shape[axis]
        signal = x.movedim(axis, -1)
        if self.padding == "reflect" and n > 2:
            signal = torch.cat([signal, signal[..., 1:-1].flip(-1)], -1)
        gain = self._pick("spectrum", n, x.device, t)
        if not isinstance(t, int):
            gain = gain.unsqueeze(1)
        spectrum = torch.fft.rfft(signal).mul_(gain)
        return torch.fft.irfft(spectrum, n=signal.shape[-1])[..., :n].movedim(-1, axis)
