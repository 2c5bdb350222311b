"""Compare restoring a photograph in tiles with restoring it whole, and measure one of 24 megapixels.

python benchmarks/tiles.py RUN PHOTO [--t T]

Prints the largest difference of the two restorations in levels of 255, for several tile sizes, before rounding to 8
bits; then the peak memory and the seconds of `sample RUN --degraded` on 6000 x 4000 pixels, made of copies of the
photograph, in its own process.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from PIL import Image
from torch import Tensor

from colddiff_core import images, runs
from colddiff_core.inference import open_run, photograph
from colddiff_core.models import memory
from colddiff_core.sampling import Sampling

LARGE_PIXELS = (6000, 4000)
COMMAND = "import sys; from colddiff_cli.__main__ import run; sys.exit(run(sys.argv[1:]))"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("photo", type=Path)
    options.add_argument("--t", type=int, default=0, help="severity; half of the operator's by default")
    chosen = options.parse_args()
    built = open_run.open_run(runs.Run(chosen.run), device="cpu").experiment
    t = chosen.t or -(-built.operator.steps // 2)
    x0 = images.read(chosen.photo, channels=built.channels)
    x_t = images.quantize(built.operator(x0[None], t, built.operator.freeze(x0[None])), photograph.BITS)[0]
    worker = photograph.PhotographRestorer(built, Sampling("direct"), built.operator.is_linear)
    whole = _restored(worker, x_t, t, 1 << 15)
    print(f"{chosen.photo.name}, {x0.shape[-1]} x {x0.shape[-2]} pixels, t = {t}, {built.precision}")
    for side in (256, 320, 512):
        difference = (_restored(worker, x_t, t, side) - whole).abs() * 127.5
        print(f"tiles of {side}: at most {difference.max():.3f} of 255, {difference.mean():.4f} on average")
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.png"
        _copies(images.to_pillow(x_t)).save(large)
        command = [sys.executable, "-c", COMMAND, "sample", chosen.run.resolve(), large, "--degraded", "--t", str(t)]
        started = time.monotonic()
        subprocess.run(
            [*map(str, command), "--out", f"{folder}/restored.png"], check=True, cwd=folder, stdout=subprocess.DEVNULL
        )
        seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{LARGE_PIXELS[0]} x {LARGE_PIXELS[1]} pixels: {peak:.2f} GiB peak, {seconds:.0f} s")


def _restored(worker: photograph.PhotographRestorer, x_t: Tensor, t: int, side: int) -> Tensor:
    with mock.patch.object(memory, "tile_side", return_value=side):
        return worker.restore(worker.look(x_t, t))


def _copies(picture: Image.Image) -> Image.Image:
    canvas = Image.new(picture.mode, LARGE_PIXELS)
    for top in range(0, LARGE_PIXELS[1], picture.height):
        for left in range(0, LARGE_PIXELS[0], picture.width):
            canvas.paste(picture, (left, top))
    return canvas


if __name__ == "__main__":
    main()
