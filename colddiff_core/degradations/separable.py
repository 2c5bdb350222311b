"""Exact composed operators along both axes of an image: A_t X B_t^T at one price for every t.

A convolution by a symmetric kernel with circular padding is diagonal in the Fourier basis; with
reflect padding (the border pixel not repeated) it is circular on the mirrored signal, hence diagonal
in the DCT-I basis. A chain of t such convolutions is then a product of t gains per frequency, taken
once in float64 for every t and either folded into one n x n matrix per t or applied by FFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DENSE_TABLE_BYTES = 2**25  # beyond this a table of matrices is given up for the FFT
LARGEST_BASIS = 1024  # pixels of a side up to which components are taken by a matrix of the side, which is faster there
ROWS = 512  # of a picture that are transformed at a time


def gaussian(std: float, size: int) -> Tensor:
    """Return a Gaussian sampled at integer offsets and normalized over its window: (size,) float64."""
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


def _cosines(x: Tensor, axis: int) -> Tensor:
    """Return the DCT-I of x (B, 1, H, W) along an axis, which is its own inverse times 2 (n - 1)."""
    n = x.shape[axis]
    if n == 1:
        return x * 2**0.5  # so that the factor is that of n = 2
    made = torch.empty_like(x)
    other = -2 if axis == -1 else -1
    # Some rows at a time: the mirrored signal and its spectrum take six times the room of what is transformed.
    for before, after in zip(x.split(ROWS, other), made.split(ROWS, other), strict=True):
        signal = before.movedim(axis, -1)
        mirrored = torch.cat([signal, signal[..., 1:-1].flip(-1)], -1)
        after.copy_(torch.fft.rfft(mirrored).real.movedim(-1, axis))
    return made


class SeparableStack:
    """x -> A_t x B_t^T for t = 0..T, A_t and B_t of one family, by tables built when a size is first seen.

    A subclass says how A_t is built and how it splits into synthesis @ diag(gain) @ analysis.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._tables: dict[tuple[str, int, torch.device], Tensor] = {}

    def apply(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return A_t x B_t^T for x (B, C, H, W) float32, t an int or (B,) int64 in 0..T."""
        return self.along_columns(self.along_rows(x, t), t)

    def apply_both(self, x: Tensor, s: int, r: int) -> tuple[Tensor, Tensor]:
        """Return what `apply` does at s and at r, the rows of both in one product."""
        if not self.is_dense(x):
            return self.apply(x, s), self.apply(x, r)
        width = x.shape[-1]
        table = self._table("matrix", width, x.device)
        rows = x @ torch.cat([table[s], table[r]]).to(x.dtype).mT
        return self.along_columns(rows[..., :width], s), self.along_columns(rows[..., width:], r)

    def along_columns(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return A_t x; shapes as in `apply`."""
        return self._pick("matrix", x.shape[-2], x.device, t).to(x.dtype) @ x

    def along_rows(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return x B_t^T; shapes as in `apply`."""
        return x @ self._pick("matrix", x.shape[-1], x.device, t).to(x.dtype).mT

    def invert(self, x_t: Tensor, t: int | Tensor, floor: float) -> Tensor:
        """Undo A_t X B_t^T where it left something to undo: each gain g becomes g / (g^2 + floor^2).

        g is the product of both axes' gains, so the noise of a pair of weak components is held back
        as well; `floor` is the noise of x_t over the spread of the picture.

        Shapes: x_t (B, C, H, W) float32, t an int or (B,) int64; returns (B, C, H, W) float32.
        """
        analysis_h, vertical, synthesis_h = self._split(x_t.shape[-2], x_t.device, t)
        analysis_w, horizontal, synthesis_w = self._split(x_t.shape[-1], x_t.device, t)
        gain = vertical[..., :, None] * horizontal[..., None, :]
        noise = self._noise("component", x_t, floor)
        components = (analysis_h @ x_t @ analysis_w.mT) * (gain / (gain.square() + noise))
        return synthesis_h @ components @ synthesis_w.mT

    def _noise(self, kind: str, x: Tensor, floor: float) -> Tensor | float:
        """Return the square of the noise over the spread of the picture, for each pair of components or for all."""
        return floor**2

    def is_dense(self, x: Tensor) -> bool:
        """Tell whether tables of matrices for both sides of x stay within memory."""
        return all((self.steps + 1) * n * n * 4 <= DENSE_TABLE_BYTES for n in x.shape[-2:])

    def _split(self, n: int, device: torch.device, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (analysis, gain, synthesis) of A_t^-1: components of x_t, their gains, and the way back."""
        raise TypeError(f"{type(self).__name__} does not define _split")

    def _build(self, kind: str, n: int) -> Tensor:
        """Return a table of a kind for n samples, in the dtype it is used in."""
        raise TypeError(f"{type(self).__name__} does not define _build")

    def _pick(self, kind: str, n: int, device: torch.device, t: int | Tensor) -> Tensor:
        """Return a table's entry for t, with room for the channel axis where t is per image."""
        table = self._table(kind, n, device)
        return table[t] if isinstance(t, int) else table[t].unsqueeze(1)

    def _table(self, kind: str, n: int, device: torch.device) -> Tensor:
        key = (kind, n, device)
        if key not in self._tables:
            self._tables[key] = self._build(kind, n).to(device)
        return self._tables[key]


class MatrixStack(SeparableStack):
    """A SeparableStack of any matrices: `build(n)` gives A_t for t = 0..T, (T + 1, n, n) float64."""

    def __init__(self, build: Callable[[int], Tensor], steps: int) -> None:
        super().__init__(steps)
        self.build = build

    def _split(self, n: int, device: torch.device, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        analysis, gain, synthesis = (self._pick(kind, n, device, t) for kind in ("analysis", "gain", "synthesis"))
        return analysis, gain, synthesis

    def _build(self, kind: str, n: int) -> Tensor:
        if kind == "matrix":
            return self.build(n).float()
        left, gain, right = torch.linalg.svd(self.build(n))
        return {"analysis": left.mT, "gain": gain, "synthesis": right.mT}[kind].float().contiguous()


class ConvolutionStack(SeparableStack):
    """x -> A_t x B_t^T, where A_t and B_t convolve columns and rows by the first t kernels in turn.

    kernels: (T, k) float64, symmetric, k odd; padding: "circular" or "reflect". Equal to the literal
    chain of convolutions to float32 precision, and defined where a kernel is wider than the image,
    which the chain is not. Where tables of matrices would be too large the gains are applied by FFT.

    is_natural: the inverse takes the spread of pictures to fall with the frequency w, a floor to be that of
    w = 1 radian a pixel and floor * w elsewhere: Wiener's filter for photographs (Field 1987, power ~ 1 / w^2).

    Source: Bansal et al. 2022, section 4.1 (x_t = M_t * ... * M_1 * x_0).
    """

    def __init__(self, kernels: Tensor, padding: str, *, is_natural: bool = False) -> None:
        super().__init__(len(kernels))
        self.kernels = kernels
        self.padding = padding
        self.is_natural = is_natural

    def apply(self, x: Tensor, t: int | Tensor) -> Tensor:
        if self.is_dense(x):
            return super().apply(x, t)
        return self._convolve(self._convolve(x, t, -1), t, -2)

    def invert(self, x_t: Tensor, t: int | Tensor, floor: float) -> Tensor:
        if max(x_t.shape[-2:]) <= LARGEST_BASIS:
            return super().invert(x_t, t, floor)
        vertical, horizontal = (self._pick("spectrum", n, x_t.device, t) for n in x_t.shape[-2:])
        gain = vertical[..., :, None] * horizontal[..., None, :]
        gain = gain.div_(gain.square().add_(self._noise("frequency", x_t, floor)))
        made = torch.empty_like(x_t)
        for before, after in zip(x_t.split(1, 1), made.split(1, 1), strict=True):
            after.copy_(self._filter(before, gain))
        return made

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        """Multiply the components of one channel (B, 1, H, W) by a gain for each pair of frequencies."""
        height, width = x.shape[-2:]
        if self.padding == "circular":
            # The frequencies beyond half the period are those before it, mirrored.
            mirrored = torch.arange(height, device=x.device)
            rows = torch.minimum(mirrored, height - mirrored)
            return torch.fft.irfft2(torch.fft.rfft2(x).mul_(gain.index_select(-2, rows)), s=(height, width))
        components = _cosines(_cosines(x, -1), -2).mul_(gain)
        return _cosines(_cosines(components, -1), -2).div_(4 * max(height - 1, 1) * max(width - 1, 1))

    def gains(self, n: int, t: Tensor) -> Tensor:
        """Return the gain of the first t kernels at the frequencies 0..n // 2 of n samples: (S, F) float64, t (S,)."""
        gains = _gains(self.kernels, n, "circular")
        return torch.cat([torch.ones_like(gains[:1]), torch.cumprod(gains, 0)])[t]

    def _split(self, n: int, device: torch.device, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gain = self._pick("gain", n, device, t)
        return self._table("analysis", n, device), gain, self._table("synthesis", n, device)

    def _noise(self, kind: str, x: Tensor, floor: float) -> Tensor | float:
        if not self.is_natural:
            return floor**2
        vertical, horizontal = (self._table(kind, n, x.device) for n in x.shape[-2:])
        return (vertical.square()[:, None] + horizontal.square()).mul_(floor**2)

    def _build(self, kind: str, n: int) -> Tensor:
        if kind == "spectrum":
            return self._composed(n).float()
        period = _period(n, self.padding)
        if kind == "frequency":
            return torch.arange(period // 2 + 1) * (2 * math.pi / period)
        analysis, synthesis, frequency = _basis(n, self.padding)
        by_kind = {"analysis": analysis, "synthesis": synthesis, "component": frequency * (2 * math.pi / period)}
        if kind in by_kind:
            return by_kind[kind].float()
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
        gain = self._pick("spectrum", x.shape[axis], x.device, t)
        if not isinstance(t, int):
            gain = gain.unsqueeze(1)
        made = torch.empty_like(x)
        other = -2 if axis == -1 else -1
        for before, after in zip(x.split(ROWS, other), made.split(ROWS, other), strict=True):
            after.copy_(self._convolve_rows(before.movedim(axis, -1), gain).movedim(-1, axis))
        return made

    def _convolve_rows(self, signal: Tensor, gain: Tensor) -> Tensor:
        n = signal.shape[-1]
        if self.padding == "reflect" and n > 2:
            signal = torch.cat([signal, signal[..., 1:-1].flip(-1)], -1)
        spectrum = torch.fft.rfft(signal).mul_(gain)
        return torch.fft.irfft(spectrum, n=signal.shape[-1])[..., :n]
