"""Measure on the CPU how much a bfloat16 body changes a run's restored images, for three ways to compute norms.

python benchmarks/norms.py DATA_DIR RUN [--n 200]

Each row has, at three severities, the relative distance of R(x_t, t) from that of a float32 body, and the RMSE against
the originals. "Norms in float32" is what autocast does on a GPU, "norms in bf16" what the program does there.
Statistics are float32 in every case.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from colddiff_core import datasets, seeds
from colddiff_core.inference import open_run
from colddiff_core.models import low_weights


def in_float32(norm: Any) -> Any:
    """Return a norm that casts its input to float32 first, as autocast does on a GPU."""
    return lambda x, shape, weight, bias, *rest: norm(x.float(), shape, weight.float(), bias.float(), *rest)


def restored(run: str, precision: str, t: int, data: Path, count: int) -> tuple[Tensor, Tensor]:
    """Return R(x_t, t) and x_0, each (count, C, H, W) float32."""
    built = open_run.open_run(run, device="cpu", overrides=(f"train.precision={precision}",)).experiment
    settings = built.config.data
    request = datasets.DatasetRequest("test", settings.size, directory=data)
    x0 = datasets.load(settings.dataset, request).images(slice(count))
    x_t, frozen = built.degrade(x0, t, seeds.image_generators(0, range(count)))
    with torch.no_grad():
        return built.restorer(x_t, t, frozen), x0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("run")
    options.add_argument("--n", type=int, default=200)
    chosen = options.parse_args()
    steps = open_run.open_run(chosen.run, device="cpu").experiment.operator.steps
    ways: dict[str, tuple[str, list[Any]]] = {
        "float32 body": ("float32", []),
        "bf16 body, norms in float32": (
            "bf16",
            [mock.patch.object(F, name, in_float32(getattr(F, name))) for name in ("layer_norm", "group_norm")],
        ),
        "bf16 body, norms of the CPU (bf16 in, float32 weights)": ("bf16", []),
        "bf16 body, norms in bf16": ("bf16", [mock.patch.object(low_weights, "suits", return_value=True)]),
    }
    print("| | " + " | ".join(f"t = {t}" for t in (1, steps // 2, steps)) + " |\n|---|---|---|---|")
    exact: dict[int, Tensor] = {}
    for name, (precision, patches) in ways.items():
        cells = []
        for patch in patches:
            patch.start()
        for t in (1, steps // 2, steps):
            found, x0 = restored(chosen.run, precision, t, chosen.data, chosen.n)
            true = exact.setdefault(t, found)
            rmse = ((found.clamp(-1, 1) - x0) / 2).square().mean().sqrt()
            cells.append(f"{float((found - true).norm() / true.norm()):.5f}, {float(rmse):.5f}")
        for patch in patches:
            patch.stop()
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
