"""Compare a run with training-free baselines on photographs it has never seen: a table of PSNR in dB.

python benchmarks/photographs.py RUN FOLDER [--t 2,8,18,32]

Every photograph is degraded at its own size and rounded to 8 bits. The baselines are scikit-image's with the true
severity and the free parameter that is best against the originals: an upper bound for them. The run gets the severity
or estimates it (auto).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from skimage.filters import unsharp_mask
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import wiener
from skimage.transform import resize
from torch import Tensor

from colddiff_core import experiment, runs, seeds
from colddiff_core.datasets.picture_files import find_pictures
from colddiff_core.degradations import Degradation
from colddiff_core.images import quantize, read, to_bytes
from colddiff_core.inference import open_run, photograph
from colddiff_core.sampling import Sampling

BALANCES = [10**power for power in (-5, -4.5, -4, -3.5, -3, -2.5, -2, -1.5, -1)]
AMOUNTS = [(radius, amount) for radius in (1, 2, 3, 5) for amount in (0.5, 1, 1.5, 2, 3, 5)]
BORDER_PIXELS = 48  # mirrored padding, for a filter that assumes a periodic image
Filter = Callable[[np.ndarray], np.ndarray]  # on a channel in [0, 1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run")
    options.add_argument("folder", type=Path)
    options.add_argument("--t", default="", help="severities, such as 2,8,18; by default a few across the range")
    options.add_argument("--samplers", default="direct,tacos", help="samplers of the run to compare")
    options.add_argument("--alone", action="store_true", help="leave out the baselines, which take minutes")
    chosen = options.parse_args()
    run = runs.find(chosen.run)
    trained = open_run.open_run(run, device="auto")
    built, step = trained.experiment, trained.step
    op = built.operator
    severities = [int(t) for t in chosen.t.split(",") if t] or sorted({1, op.steps // 4 or 1, op.steps // 2, op.steps})
    files = find_pictures(chosen.folder).paths
    originals = [read(file, channels=built.channels) for file in files]
    rows: dict[str, list[float]] = {}
    for t in severities:
        degraded = [_degraded(built, x0, t, number) for number, x0 in enumerate(originals)]
        baselines = {} if chosen.alone else _baselines(op, t)
        columns = {"degraded": _score(degraded, originals)}
        columns |= {name: _best(filters, degraded, originals) for name, filters in baselines.items()}
        for sampler in chosen.samplers.split(","):
            for is_consistent in (False, True) if op.is_linear else (False,):
                sampling = Sampling(sampler, max(1, t // 8) if sampler == "tacos" else 1)
                worker = photograph.PhotographRestorer(built, sampling, is_consistent)
                name = sampler + (", consistent" if is_consistent else "")
                columns[name] = _score((worker.restore(worker.look(x_t, t)) for x_t in degraded), originals)
                if sampler == built.config.sample.sampler and op.has_estimate:
                    columns[f"{name}, t = auto"] = _score(
                        (worker.restore(worker.look(x_t, None)) for x_t in degraded), originals
                    )
        for name, value in columns.items():
            rows.setdefault(name, []).append(value)
        print(f"t = {t}:", ", ".join(f"{name} {value:.2f}" for name, value in columns.items()), flush=True)
    print(f"\n{run.config().name}, step {step}: mean PSNR in dB, {len(files)} photographs\n")
    print("| | " + " | ".join(f"t = {t}" for t in severities) + " |")
    print("|---" * (len(severities) + 1) + "|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


def _degraded(built: experiment.Experiment, x0: Tensor, t: int, number: int) -> Tensor:
    frozen = built.operator.freeze(x0[None], generator=seeds.image_generators(0, [number]))
    return quantize(built.operator(x0[None], t, frozen), photograph.BITS)[0]


def _baselines(op: Degradation, t: int) -> dict[str, list[Filter]]:
    """Return training-free filters that undo a severity, one for each value of their free parameter."""
    if op.name == "blur":
        point = torch.zeros(1, 1, 2 * BORDER_PIXELS + 1, 2 * BORDER_PIXELS + 1)
        point[..., BORDER_PIXELS, BORDER_PIXELS] = 1
        psf = op(point, t)[0, 0].double().numpy()
        return {
            "unsharp mask": [lambda x, by=by: unsharp_mask(x, radius=by[0], amount=by[1]) for by in AMOUNTS],
            "Wiener": [lambda x, by=by: _crop(wiener(_pad(x), psf, by, clip=False)) for by in BALANCES],
        }
    if op.name == "pixelate":
        return {
            kind: [lambda x, order=order: _enlarged(x, 2**t, order)]
            for kind, order in (("bilinear", 1), ("bicubic", 3))
        }
    return {}


def _enlarged(x: np.ndarray, block: int, order: int) -> np.ndarray:
    low = x[block // 2 :: block, block // 2 :: block]
    return resize(low, x.shape, order=order, mode="reflect")


def _pad(x: np.ndarray) -> np.ndarray:
    return np.pad(x, BORDER_PIXELS, mode="reflect")


def _crop(x: np.ndarray) -> np.ndarray:
    return x[BORDER_PIXELS:-BORDER_PIXELS, BORDER_PIXELS:-BORDER_PIXELS]


def _best(filters: list[Filter], degraded: list[Tensor], originals: list[Tensor]) -> float:
    return max(_score((_apply(one, x_t) for x_t in degraded), originals) for one in filters)


def _apply(one: Filter, x_t: Tensor) -> Tensor:
    channels = [one((channel.double().numpy() + 1) / 2) for channel in x_t]
    return torch.from_numpy(np.stack(channels)).float() * 2 - 1


def _score(restored: Iterable[Tensor], originals: list[Tensor]) -> float:
    """Return the mean PSNR of images rounded to 8 bits."""
    pairs = zip(restored, originals, strict=True)
    return statistics.mean(
        peak_signal_noise_ratio(to_bytes(x0).numpy(), to_bytes(x).numpy(), data_range=255) for x, x0 in pairs
    )


if __name__ == "__main__":
    main()
