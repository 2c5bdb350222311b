"""The paper's two arguments for Algorithm 2, run: the figures of docs/theory.md and docs/images/theory.svg.

Usage: python docs/make_theory.py   (needs `pip install '.[docs]'`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from colddiff_core import datasets, sampling, seeds
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.sampling import DegradedImages, Sampling

SIDE, IMAGES, MISTAKE = 16, 64, 0.05
COLORS = {"naive": "#c0392b", "tacos": "#2471a3"}
SAMPLERS = ("naive", "tacos")
NAMES = {"naive": "Algorithm 1 (naive)", "tacos": "Algorithm 2 (TACoS)"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MissingFrequency(Degradation):
    """Appendix A.9: every step removes the highest frequency that is left; at T the mean alone remains."""

    name = "one-frequency-less"

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        assert isinstance(t, int)
        rank = frequencies(x0.shape[-1])
        kept = rank < int(rank.max()) + 1 - t
        return torch.fft.ifft2(torch.fft.fft2(x0.double()) * kept).real.to(x0.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearDrift(Degradation):
    """Section 3.3: D(x, s) = x + s e, the first terms of a Taylor expansion of any smooth degradation."""

    name = "drift"

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        return x0 + t * direction(x0)


def frequencies(side: int) -> Tensor:
    """Return the rank of each Fourier mode's |f| among the different ones: (side, side) int64, 0 for the mean."""
    f = torch.fft.fftfreq(side, 1 / side)
    squared = (f[:, None] ** 2 + f[None, :] ** 2).round().long()
    return torch.searchsorted(squared.unique(), squared)


def direction(x0: Tensor) -> Tensor:
    return torch.linspace(-0.1, 0.1, x0[0].numel()).view_as(x0[0])


def careless(op: Degradation, x0: Tensor) -> sampling.Restore:
    """Return an R(x_t, t) whose mistakes do not depend on x_t: x0 with white noise on it, other noise at every step."""

    def restore(x_t: Tensor, t: int, frozen: Frozen) -> Tensor:
        return x0 + MISTAKE * torch.randn(x0.shape, generator=seeds.generator("mistake", t))

    return restore


def fading(op: Degradation, x0: Tensor) -> sampling.Restore:
    """Return an R(x_t, t) that reads x_t and adds what is missing, all of it a little paler than it was."""

    def restore(x_t: Tensor, t: int, frozen: Frozen) -> Tensor:
        return (1 - MISTAKE) * (x_t + x0 - op(x0, t, frozen))

    return restore


def norm(x: Tensor) -> float:
    return float(x.square().flatten(1).sum(1).mean().sqrt())


def appendix_a9(
    x0: Tensor, make: Callable[[Degradation, Tensor], sampling.Restore]
) -> dict[str, dict[str, list[float]]]:
    """Return errors by sampler: of one step from the true x_t (the paper's E_t), by its formula, and of the iterates.

    Entry i is that of x_(T - 1 - i).
    """
    op = MissingFrequency(steps=int(frequencies(SIDE).max()))
    restore = make(op, x0)
    errors: dict[str, dict[str, list[float]]] = {}
    for sampler in SAMPLERS:
        step, formula = [], []
        for t in range(op.steps, 0, -1):
            one_step = sampling.sample(restore, op, DegradedImages(op(x0, t), t, Frozen()), Sampling(sampler))
            step.append(norm(next(one_step).x - op(x0, t - 1)))
            mistake = restore(op(x0, t), t, Frozen()) - x0
            formula.append(norm(op(mistake, t - 1) - (op(mistake, t) if sampler == "tacos" else 0)))
        most_degraded = DegradedImages(op(x0, op.steps), op.steps, Frozen())
        taken = sampling.sample(restore, op, most_degraded, Sampling(sampler))
        iterates = [norm(each.x - op(x0, each.severity)) for each in taken]
        errors[sampler] = {"step": step, "formula": formula, "iterates": iterates}
    return errors


def section_33(x0: Tensor) -> dict[str, float]:
    """Return, by sampler, the largest error of x_0 where D = x + s e and R is wrong about everything."""
    op = LinearDrift(steps=20)
    found = {}
    for sampler in SAMPLERS:
        drifted = DegradedImages(op(x0, 20), 20, Frozen())
        steps = sampling.sample(lambda x, s, f: 0.3 * x.flip(-1) + 0.1 * s, op, drifted, Sampling(sampler))
        found[sampler] = float((sampling.final(steps) - x0).abs().max())
    return found


def plot(panels: list[tuple[str, dict[str, list[float]]]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.4))
    for axis, (title, errors) in zip(axes, panels, strict=True):
        for sampler, values in errors.items():
            axis.plot(range(len(values) - 1, -1, -1), values, color=COLORS[sampler], label=NAMES[sampler])
        axis.set(xlabel="t after the step", title=title)
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="norm of the error of $x_t$")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "colddiff"  # the same file every time
    x0 = datasets.load("digits", datasets.DatasetRequest("test", SIDE)).images(slice(0, IMAGES))
    blind, reading = appendix_a9(x0, careless), appendix_a9(x0, fading)
    panels = [
        ("one step from the true $x_t$ ($E_t$)", {s: blind[s]["step"] for s in SAMPLERS}),
        ("iterates, R wrong whatever $x_t$ is", {s: blind[s]["iterates"] for s in SAMPLERS}),
        ("iterates, R reads $x_t$ and fades it", {s: reading[s]["iterates"] for s in SAMPLERS}),
    ]
    count = len(blind["naive"]["step"])
    print(f"A.9: {count} steps, {IMAGES} digits of {SIDE} pixels, R off by {MISTAKE:g}; norms of errors over a digit")
    print(f"{'':>4} {'E_t':^19} {'iterates, blind R':^19} {'iterates, fading R':^19}")
    print(f"{'t':>4} " + " ".join(["   Alg. 1    Alg. 2"] * len(panels)))
    for index in [*range(0, count, 5)]:
        row = [errors[sampler][index] for _, errors in panels for sampler in SAMPLERS]
        print(f"{count - 1 - index:>4} " + " ".join(f"{value:9.4f}" for value in row))
    pairs = [
        pair for r in (blind, reading) for s in SAMPLERS for pair in zip(r[s]["step"], r[s]["formula"], strict=True)
    ]
    print(f"largest difference between E_t and the appendix's formula: {max(abs(a - b) for a, b in pairs):.0e}")
    worse = sum(a < b for a, b in zip(blind["naive"]["step"], blind["tacos"]["step"], strict=True))
    print(f"steps of {count} at which Algorithm 2 has the larger E_t: {worse}")
    for sampler, error in section_33(x0).items():
        print(f"3.3: D = x + s e, R wrong: largest error of x_0 by {NAMES[sampler]}: {error:.0e}")
    plot(panels, Path(__file__).parent / "images" / "theory.svg")


if __name__ == "__main__":
    main()
