"""Write docs/gallery.md and its pictures, docs/images/operators/: every operator at several severities.

Usage: python docs/make_gallery.py

Each picture is written by the command that stands under it, on photographs that come with scikit-learn.
"""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from pathlib import Path

import typer

from colddiff_cli.__main__ import run
from colddiff_cli.app import LOADERS, with_commands
from colddiff_core import degradations
from colddiff_core.datasets import photos

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PICTURES = "images/operators"
PHOTOS = ("flower.jpg", "china.jpg")
SHARED = "--size 128 --strip 6"
INTRODUCTION = """\
# The operators

Every operator at six severities, from t = 0 on the left to t = T on the right, each with the command that made the
picture. This page is written by `python docs/make_gallery.py`. The photographs come with scikit-learn. To try the
commands, copy them from the folder that this prints, or put the name of your own picture in the place of `flower.jpg`:

```sh
python -c "from colddiff_core.datasets import photos; print(photos.folder('sklearn'))"
```

`--size 128 --strip 6` crops the photograph to 128 pixels and puts six severities side by side. Without them you get one
picture at T, or at `--t`, in full size. [Degrading pictures](degrading.md) has the other options,
[Measurements](degradations.md) the speed of each operator, and [Extending](extending.md) how to add one.
"""
COMPOSED = """\
`a+b` applies a, then b, and their severities rise together. The options of a part have its name in front.
"""


@dataclasses.dataclass(frozen=True)
class Strip:
    """One picture of the gallery: its file name, the options that make it, and what they show."""

    name: str
    options: str
    caption: str
    photo: str = "flower.jpg"

    @property
    def operator(self) -> str:
        return shlex.split(self.options)[1]

    @property
    def file(self) -> str:
        return f"{PICTURES}/{self.name}.jpg"

    @property
    def command(self) -> list[str]:
        """Return the words after `colddiff`."""
        return shlex.split(f"degrade {self.photo} {self.options} {SHARED} --out {self.name}.jpg")


STRIPS = (
    Strip("blur", "--op blur --steps 200 --kernel-size 15 --padding reflect", "The paper's settings for CelebA."),
    Strip("mask", "--op mask --steps 100 --std 0.2 --growth 0.2 --location center", "A hole that grows in the center."),
    Strip("mask-random", "--op mask --std 4 --growth 0.6 --seed 3", "A hole at a random place."),
    Strip(
        "mask-color",
        "--op mask --steps 200 --std 0.5 --growth 0.25 --location center --fill color",
        "Filled with a random color until nothing is left: for generation.",
    ),
    Strip("holes", "--op holes --steps 20 --count 5 --holes-size 0.4", "Five shapes per picture."),
    Strip("pixelate", "--op pixelate --steps 6", "Each step halves the resolution."),
    Strip("desaturate", "--op desaturate", "The default: equal steps, gray at T."),
    Strip("snow", "--op snow --level 4", "The paper's settings for CelebA: more flakes, blown further, at each step."),
    Strip("snow-brighten", "--op snow --level 2 --brighten", "Less snow on a lightened picture, as in ImageNet-C."),
    Strip("noise", "--op noise", "The default schedule: the picture is visible almost to the end."),
    Strip("animorph", "--op animorph --second china.jpg", "One photograph turns into another."),
    Strip("blur-snow", "--op blur+snow --steps 200 --blur-kernel-size 15", "Blurred, then snowed on."),
    Strip("pixelate-desaturate", "--op pixelate+desaturate --steps 6", "Coarser and grayer at each step."),
)


def sections() -> dict[str, list[Strip]]:
    """Return the strips by operator; compositions come last, under one heading."""
    grouped: dict[str, list[Strip]] = {}
    for strip in STRIPS:
        grouped.setdefault("Compositions" if "+" in strip.operator else strip.operator, []).append(strip)
    return grouped


def page() -> str:
    """Return the text of docs/gallery.md."""
    parts = [INTRODUCTION]
    for heading, strips in sections().items():
        parts.append(f"## {heading}\n")
        parts.append(COMPOSED if heading == "Compositions" else describe(heading))
        for strip in strips:
            parts.append(f"{strip.caption}\n\n![{strip.operator} from t = 0 to T]({strip.file})\n")
            parts.append(f"```sh\ncolddiff {shlex.join(strip.command)}\n```\n")
    return "\n".join(parts)


def describe(name: str) -> str:
    """Return the first line of an operator's docstring, a link to its code, and its options with their defaults."""
    operator = degradations.find(name)
    source = Path(inspect.getfile(operator)).relative_to(ROOT)
    (first, *_) = (inspect.getdoc(operator) or "").splitlines()
    command = typer.main.get_command(with_commands(LOADERS, ["degrade", "--op", name])).commands["degrade"]
    own = [option for option in command.params if getattr(option, "rich_help_panel", None) == f"Parameters of {name}"]
    listed = [f"- `{option.opts[0]}`: {option.help}" for option in own]
    return "\n".join([f"{first} [Code](../{source.as_posix()}).\n", *listed, ""])


def with_photos(command: list[str]) -> list[str]:
    """Return a command with the photographs' full paths."""
    return [str(photos.folder("sklearn") / word) if word in PHOTOS else word for word in command]


def main() -> None:
    (DOCS / PICTURES).mkdir(exist_ok=True)
    for strip in STRIPS:
        words = with_photos(strip.command)
        if run([*words, "--out", str(DOCS / strip.file), "--force"]):
            raise SystemExit(1)
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
