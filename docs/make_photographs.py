"""Draw docs/images/photographs.jpg: photographs of scikit-image that were not trained on, degraded, restored, original.

python docs/make_photographs.py   # with the pretrained runs
"""

from __future__ import annotations

from pathlib import Path

import torch

from colddiff_core import images, seeds
from colddiff_core.datasets import photos
from colddiff_core.inference import open_run, photograph
from colddiff_core.sampling import Sampling

SIDE = 256
# The run, the severity, which of the test photographs, and the window's upper left corner.
ROWS = [
    ("blur", 12, "coffee.png", (60, 230)),
    ("pixelate", 2, "coffee.png", (60, 230)),
    ("mask", 12, "rocket.jpg", (60, 200)),
    ("desaturate", 14, "coffee.png", (60, 230)),
    ("snow", 25, "rocket.jpg", (60, 200)),
]


def main() -> None:
    columns: dict[str, list[torch.Tensor]] = {"given": [], "restored": [], "original": []}
    for name, t, file, (top, left) in ROWS:
        built = open_run.open_run(f"pretrained:photos-{name}", device="cpu").experiment
        x0 = images.read(_photograph(file), channels=3)[:, top : top + SIDE, left : left + SIDE]
        frozen = built.operator.freeze(x0[None], generator=seeds.image_generators(1, [0]))
        x_t = images.quantize(built.operator(x0[None], t, frozen), photograph.BITS)[0]
        worker = photograph.PhotographRestorer(built, Sampling(built.config.sample.sampler), built.operator.is_linear)
        restored = worker.restore(worker.look(x_t, None))
        for column, picture in (("given", x_t), ("restored", restored), ("original", x0)):
            columns[column].append(picture)
    sheet = images.sheet({name: torch.stack(pictures) for name, pictures in columns.items()})
    images.write(sheet, Path(__file__).parent / "images" / "photographs.jpg")


def _photograph(name: str) -> Path:
    """Return a test photograph's file; raises where it is one of those trained on."""
    (package,) = (package for package, names in photos.COLORED["test"].items() if name in names)
    return photos.folder(package) / name


if __name__ == "__main__":
    main()
