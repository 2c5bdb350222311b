"""How each pretrained run is made: preset, settings, data and what is measured."""

from __future__ import annotations

import dataclasses

DIGITS = "1,497 of the 1,797 handwritten digits that come with scikit-learn; the other 300 are for measuring"
DIGITS_LICENSE = "CC BY 4.0 (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998)"
MNIST = "the 60,000 training images of MNIST, 28 resized to 32 pixels; measured on test images"
MNIST_LICENSE = "CC BY-SA 3.0 (Y. LeCun, C. Cortes)"

PHOTOGRAPHS = "147 free photographs, listed with authors and licenses in pretrained/photographs.md"
PHOTOGRAPHS_LICENSE = "CC0, public domain, CC BY, MIT, Apache-2.0 or BSD-3-Clause, each as listed"
FOLDER = ("data.dataset=folder", "data.crop=64", "train.ema_decay=0.999", "train.sample_every=2000")

# Measured on what the weights were exported to; {run} is its folder, {data} and {photographs} are folders of data.
RESTORED = ("colddiff eval {run} --n 1000", "colddiff compare {run} --n 1000")
GENERATED = ("colddiff compare {run} --generate --n 1000",)


def on_photographs(severities: str) -> tuple[str, ...]:
    """Return the command that measures a run on photographs, by severity."""
    return (f"python benchmarks/photographs.py {{run}} {{photographs}} --t {severities} --samplers direct --alone",)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What makes one pretrained run.

    Attributes:
        preset: Where its configuration begins.
        description: What the run does, for lists.
        data: What it was trained on, in words, and `license` under which terms.
        measure: Command lines for the figures on its card.
        settings: What differs from the preset, as `section.key=value`.
        start: The pretrained run whose training run it starts from; empty for random weights.
        priors: What to fit for it, as (prior, components).
    """

    preset: str
    description: str
    data: str
    license: str
    measure: tuple[str, ...]
    settings: tuple[str, ...] = ()
    start: str = ""
    priors: tuple[tuple[str, int], ...] = ()


RECIPES = {
    "digits-blur": Recipe(
        "digits-blur",
        "handwritten digits of 16 pixels, deblurred",
        DIGITS,
        DIGITS_LICENSE,
        RESTORED,
    ),
    "digits-blur-generate": Recipe(
        "digits-blur-generate",
        "handwritten digits of 16 pixels from one shade of gray",
        DIGITS,
        DIGITS_LICENSE,
        GENERATED,
        ("model.width=24", "train.steps=4000", "train.ema_decay=0.995"),
        priors=(("gmm", 1), ("gmm", 4)),
    ),
    "mnist-blur": Recipe(
        "mnist-blur-small",
        "handwritten digits of MNIST, 32 pixels, deblurred",
        MNIST,
        MNIST_LICENSE,
        RESTORED,
        ("train.steps=8000", "train.ema_decay=0.999"),
    ),
    "mnist-blur-generate": Recipe(
        "mnist-blur-generate-small",
        "digits like MNIST's, 32 pixels, from one shade of gray",
        MNIST,
        MNIST_LICENSE,
        GENERATED,
        ("train.steps=6000", "train.ema_decay=0.999"),
        priors=(("gmm", 1), ("gmm", 4)),
    ),
    "mnist-noise": Recipe(
        "mnist-noise-small",
        "digits like MNIST's, 32 pixels, from Gaussian noise",
        MNIST,
        MNIST_LICENSE,
        GENERATED,
        ("model.width=24", "train.steps=6000", "train.ema_decay=0.999"),
    ),
    "photos-blur": Recipe(
        "photos-blur-small",
        "photographs, deblurred",
        PHOTOGRAPHS,
        PHOTOGRAPHS_LICENSE,
        on_photographs("2,4,8,16,32"),
        (*FOLDER, "train.steps=8000"),
    ),
    "photos-pixelate": Recipe(
        "photos-pixelate-small",
        "photographs, from blocks of 2 or 4 pixels",
        PHOTOGRAPHS,
        PHOTOGRAPHS_LICENSE,
        on_photographs("1,2"),
        (*FOLDER, "train.steps=2500"),
        start="photos-blur",
    ),
    "photos-mask": Recipe(
        "photos-mask-small",
        "photographs, holes filled in",
        PHOTOGRAPHS,
        PHOTOGRAPHS_LICENSE,
        on_photographs("5,12,20"),
        (*FOLDER, "model.width=24", "train.steps=5000"),
    ),
    "photos-desaturate": Recipe(
        "photos-desaturate-small",
        "photographs, colored",
        PHOTOGRAPHS,
        PHOTOGRAPHS_LICENSE,
        on_photographs("5,10,15,20"),
        (*FOLDER, "model.width=24", "train.steps=2000"),
    ),
    "photos-snow": Recipe(
        "photos-snow-small",
        "photographs, without the snow",
        PHOTOGRAPHS,
        PHOTOGRAPHS_LICENSE,
        on_photographs("10,25,50"),
        (*FOLDER, "train.steps=5000"),
    ),
}
