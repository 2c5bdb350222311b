"""`colddiff degrade`: any operator on any picture, no network."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli import options
from colddiff_cli.screen import Screen, free_path
from colddiff_core import presets
from colddiff_core.errors import UsageError

if TYPE_CHECKING:
    from colddiff_core.degradations import Degradation

MOST_FRAMES = 60


def degrade(
    files: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    op: Annotated[str | None, typer.Option("--op", help="The operator's name.", metavar="NAME")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Take operator and parameters from a preset.")] = None,
    t: Annotated[int | None, typer.Option("--t", help="Severity, 0 to the operator's steps (all if left out).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="The operator's number of severities.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of the operator, such as std=3.", metavar="KEY=VALUE")
    ] = None,
    size: Annotated[int, typer.Option("--size", help="Scale and crop to a square of this side.", min=0)] = 0,
    strip: Annotated[int, typer.Option("--strip", help="A filmstrip of this many severities, 0 to T.", min=0)] = 0,
    animate: Annotated[bool, typer.Option("--animate", help="Write the severities 0 to T as a GIF.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="The picture to write, for one image.")] = None,
    out_dir: Annotated[Path, typer.Option("--out-dir", help="Where pictures go that --out does not name.")] = Path(),
    force: options.Force = False,
    seed: options.Seed = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Degrade pictures: x_t = D(x0, t)."""
    screen = Screen(json)
    if out is not None and len(files) > 1:
        raise UsageError(f"--out names one picture and {len(files)} were given.", "Use --out-dir.")
    if strip == 1:
        raise UsageError("A filmstrip of one picture is a picture.", "Ask for --strip 2 or more, or leave it out.")
    operator = _operator(op, preset, steps, parameters or [])
    severity = operator.steps if t is None else t
    suffix = "strip" if strip else f"t{severity:03d}"
    targets = [
        free_path(
            out,
            out_dir / f"{file.stem}-{operator.name}-{'anim' if animate else suffix}{'.gif' if animate else '.png'}",
            force=force,
        )
        for file in files
    ]

    from colddiff_core import devices, images, seeds

    chosen = devices.choose(device)
    for target in targets:
        images.check_suffix(target, images.ANIMATED if animate else images.SUFFIXES)
    for index, (file, target) in enumerate(zip(files, targets, strict=True)):
        x0 = images.read(file, size=size).unsqueeze(0).to(chosen)
        frozen = operator.freeze(x0, generator=seeds.image_generators(seed or 0, [index]))
        if animate:
            frames = [operator(x0, s, frozen)[0] for s in _spread(operator.steps, MOST_FRAMES)]
            images.write_animation([images.to_pillow(frame) for frame in frames], target)
        elif strip:
            picture = images.strip([operator(x0, s, frozen)[0] for s in _spread(operator.steps, strip)])
            images.write(picture, target)
            screen.picture(picture)
        else:
            picture = images.to_pillow(operator(x0, severity, frozen)[0])
            images.write(picture, target)
            screen.picture(picture)
        if not json:
            screen.say(str(target))
    screen.result(
        {"operator": operator.name, "t": severity, "steps": operator.steps, "files": [str(p) for p in targets]}
    )


def _operator(op: str | None, preset: str | None, steps: int | None, parameters: list[str]) -> Degradation:
    from colddiff_core import degradations

    if (op is None) == (preset is None):
        raise UsageError(
            "Name either an operator with --op or a --preset.", f"Operators: {', '.join(degradations.names())}."
        )
    name, values = op, {}
    if preset is not None:
        degradation = presets.load(preset).degradation
        name, values = degradation.name, dict(degradation.parameters)
    if steps is not None:
        values["steps"] = steps
    assert name is not None
    return degradations.build(name, **values | dict(_parsed(text) for text in parameters))


def _parsed(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text}: not of the form key=value.", "For example: --set std=3")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _spread(last: int, count: int) -> list[int]:
    """Return at most `count` severities from 0 to `last`, evenly."""
    return sorted({round(i * last / (count - 1)) for i in range(count)})
