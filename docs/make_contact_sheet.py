"""Every operator at five severities on one photograph: docs/images/operators.jpg.

Usage: python docs/make_contact_sheet.py PHOTO SECOND_PHOTO
Pictures are 128 pixels square and the parameters the paper's, for its CelebA experiments where there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from colddiff_core import degradations, images, seeds

SIDE = 128
SHARES = (0.0, 0.15, 0.4, 0.7, 1.0)
OPERATORS = (
    ("noise", {"steps": 200}),
    ("blur", {"steps": 200, "kernel_size": 15, "padding": "reflect"}),
    ("mask", {"steps": 100, "std": 0.2, "growth": 0.2, "location": "center"}),
    ("mask", {"steps": 200, "std": 0.5, "growth": 0.5, "location": "center", "fill": "color"}),
    ("holes", {"steps": 20, "count": 5, "size": 0.4}),
    ("pixelate", {"steps": 6}),
    ("desaturate", {"steps": 20}),
    ("snow", {"steps": 200, "level": 4}),
    ("animorph", {"steps": 200}),
    ("blur+snow", {"steps": 200, "kernel_size": 15}),
)


def main() -> None:
    x0, second = (images.read(Path(name), size=SIDE, channels=3).unsqueeze(0) for name in sys.argv[1:3])
    columns: list[list[torch.Tensor]] = [[] for _ in SHARES]
    for name, parameters in OPERATORS:
        op = degradations.build(name, **parameters)
        others = {op.second_field: second} if op.second_field else {}
        frozen = op.freeze(x0, generator=seeds.image_generators(1, [0]), **others)
        for column, share in zip(columns, SHARES, strict=True):
            column.append(op(x0, round(share * op.steps), frozen)[0])
    labels = ["t = 0", *(f"{share:.0%} of T" for share in SHARES[1:-1]), "t = T"]
    made: Image.Image = images.sheet({label: torch.stack(c) for label, c in zip(labels, columns, strict=True)})
    images.write(made, Path(__file__).parent / "images" / "operators.jpg")


if __name__ == "__main__":
    main()
