"""Compare the inverse of a blur with one floor for both axes against a floor per axis, on MNIST.

Usage: python benchmarks/inverse_floor.py DATA_DIR
Prints the RMSE of each by severity, clamped to the pixel range: the table of docs/decisions/003.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor

from colddiff_core import datasets, degradations

FLOOR = 1e-5
SEVERITIES = (1, 2, 4, 6, 8, 10, 14, 20)


def main() -> None:
    x0 = datasets.load("mnist", datasets.DatasetRequest("test", 32, directory=Path(sys.argv[1]))).images(slice(1000))
    op = degradations.build("blur", steps=20, schedule="constant", std=7.0, kernel_size=11)

    def rmse(x: Tensor) -> float:
        return ((x.clamp(-1, 1) - x0) / 2).square().mean().sqrt().item()

    def along_rows(x: Tensor, t: int) -> Tensor:
        """Invert the horizontal blur only: rows are passed as pictures one pixel high."""
        return op.invert(x.reshape(-1, 1, 1, x.shape[-1]), t, None, FLOOR).view_as(x)

    print(f"{'t':>3}{'degraded':>10}{'per axis':>10}{'one floor':>11}")
    for t in SEVERITIES:
        x_t = op(x0, t)
        per_axis = along_rows(along_rows(x_t, t).mT.contiguous(), t).mT
        print(f"{t:>3}{rmse(x_t):>10.3f}{rmse(per_axis):>10.3f}{rmse(op.invert(x_t, t, None, FLOOR)):>11.3f}")


if __name__ == "__main__":
    main()
