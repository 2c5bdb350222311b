"""`colddiff degrade`: any operator on any picture, no network."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli import options, outputs
from colddiff_cli.screen import Screen
from colddiff_core import presets
from colddiff_core.errors import UsageError, counted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from colddiff_core.degradations import Degradation, Frozen

MOST_FRAMES = 60
MOST_SEVERITIES = 41  # of a description
SAMPLE_PHOTO = "flower.jpg"  # scikit-learn's, where a description names no picture


def degrade(
    inputs: Annotated[list[str] | None, typer.Argument(help="Images, folders, globs.", metavar="IMAGE...")] = None,
    op: Annotated[str | None, typer.Option("--op", help="The operator, or several as a+b.", metavar="NAME")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Take operator and parameters from a preset.")] = None,
    t: Annotated[int | None, typer.Option("--t", help="Severity, 0 to the operator's steps (all if left out).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Number of severities (the paper's).")] = None,
    size: Annotated[int, typer.Option("--size", help="Scale and crop to a square of this side.", min=0)] = 0,
    strip: Annotated[int, typer.Option("--strip", help="A filmstrip of this many severities, 0 to t.", min=0)] = 0,
    animate: Annotated[bool, typer.Option("--animate", help="Write the severities 0 to t as a film (GIF).")] = False,
    describe: Annotated[bool, typer.Option("--describe", help="Tell what is left by severity; write nothing.")] = False,
    second: Annotated[
        Path | None, typer.Option("--second", help="Image or folder to mix in, for animorph.", metavar="PATH")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The picture to write, for one image.", parser=outputs.picture, metavar="PATH"),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir", help="Where pictures go that --out does not name (.).", parser=outputs.folder, metavar="DIR"
        ),
    ] = None,
    force: options.Force = False,
    seed: options.Seed = None,
    device: options.Device = "auto",
    json: options.Json = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Degrade pictures: x_t = D(x0, t). With --op NAME --help, the operator's own parameters are listed too."""
    screen = Screen(json)
    operator = _operator(op, preset, steps, given or {})
    severity = operator.steps if t is None else t
    if not 0 <= severity <= operator.steps:
        raise UsageError(
            f"t = {severity} is out of range for {operator.name}.", f"Use 0 to {operator.steps} (its steps)."
        )
    draw = _drawing(operator, second, seed or 0)
    if describe:
        _describe(screen, operator, draw, inputs or [], size or _size_of(preset), device)
        return
    if strip == 1 or (animate and severity == 0):
        raise UsageError("An animation or a filmstrip of one frame is a picture.", "Ask for two severities or more.")
    if strip and animate:
        raise UsageError("--strip and --animate are two different outputs.", "Ask for one of them.")
    kind = "film" if animate else "strip" if strip else f"t{severity:03d}"
    name = operator.name.replace("+", "-")
    files = _files(inputs or [])
    targets = _targets(
        [file for file, _ in files], out, out_dir or Path(), f"{name}-{kind}{'.gif' if animate else '.png'}", force
    )

    from colddiff_core import devices, images

    chosen = devices.choose(device)
    for target in targets:
        images.check_suffix(target, images.ANIMATED if animate else images.SUFFIXES)
    written = []
    for index, ((file, is_asked_for), target) in enumerate(zip(files, targets, strict=True)):
        severities = _spread(severity, MOST_FRAMES if animate else strip) if animate or strip else [severity]
        try:
            x0 = images.read(file, size=size).unsqueeze(0).to(chosen)
            frozen = draw(x0, index)
            pictures = [images.to_pillow(operator(x0, s, frozen)[0]) for s in severities]
        except UsageError as error:
            what = error.what if str(file) in error.what else f"{file}: {error.what}"
            if is_asked_for:
                raise UsageError(what, error.remedy) from None
            screen.warn(f"{what} Left out.")
            continue
        if animate:
            images.write_animation(pictures, target)
        else:
            picture = images.beside(pictures)
            images.write(picture, target)
            screen.picture(picture)
        written.append(str(target))
        if not json:
            screen.say(str(target))
    if not written:
        raise UsageError(f"None of {counted(len(files), 'image')} could be degraded.", "Check the files.")
    screen.result({"operator": operator.name, "t": severity, "steps": operator.steps, "files": written})


def _operator(op: str | None, preset: str | None, steps: int | None, given: dict[str, Any]) -> Degradation:
    from colddiff_core import degradations

    if (op is None) == (preset is None):
        known = ", ".join(degradations.names())
        raise UsageError("Name either an operator with --op or a --preset.", f"Operators: {known}.")
    name, values = op, {}
    if preset is not None:
        degradation = presets.load(preset).degradation
        name, values = degradation.name, dict(degradation.parameters)
    assert name is not None
    return degradations.build(name, **values | given | ({} if steps is None else {"steps": steps}))


def _size_of(preset: str | None) -> int:
    return presets.load(preset).data.size if preset else 0


def _drawing(operator: Degradation, second: Path | None, seed: int) -> Callable[[Tensor, int], Frozen]:
    """Return what draws the randomness of the image numbered so, pictures to mix in among it."""
    from colddiff_core import images, seeds
    from colddiff_core.datasets.files import list_images

    pool: list[Path] = []
    if operator.second_field:
        if second is None:
            raise UsageError(f"{operator.name} mixes in a second picture.", "Name an image or a folder with --second.")
        pool = list_images(second) if second.is_dir() else [second]
        if not pool:
            raise UsageError(f"No images in {second}.", "Name an image or a folder of images with --second.")

    def draw(x0: Tensor, index: int) -> Frozen:
        fields = {}
        if pool:
            other = images.read_as(pool[(seed + index) % len(pool)], x0[0])
            fields[operator.second_field] = other.unsqueeze(0).to(x0.device)
        return operator.freeze(x0, generator=seeds.image_generators(seed, [index]), **fields)

    return draw


def _files(inputs: list[str]) -> list[tuple[Path, bool]]:
    """Return the files meant, and whether each was named itself: one found in a folder may be left out."""
    from colddiff_core.datasets.files import list_images

    found: list[tuple[Path, bool]] = []
    for name in inputs:
        if not name:
            raise UsageError("An image's name is empty.", "Was a variable of the shell not set?")
        path = Path(name)
        if path.is_dir():
            inside = list_images(path)
        elif not path.exists() and glob.has_magic(name):
            inside = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
        else:
            found.append((path, True))
            continue
        if not inside:
            raise UsageError(f"No images in {name}.", "Name images, folders of images or globs.")
        found += [(path, False) for path in inside]
    if not found:
        raise UsageError("No image was named.", "Name images, folders of images or globs.")
    return found


def _targets(files: list[Path], out: Path | None, out_dir: Path, ending: str, force: bool) -> list[Path]:
    """Return where each picture goes; refuses what exists, before anything is written."""
    if out is not None and len(files) > 1:
        raise UsageError(f"--out names one picture and {len(files)} were given.", "Use --out-dir.")
    targets = [out] if out else [out_dir / f"{file.stem}-{ending}" for file in files]
    names: dict[Path, int] = {}
    for index, target in enumerate(targets):
        names[target] = count = names.get(target, 0) + 1
        if count > 1:  # the same name out of two folders
            targets[index] = target.with_name(f"{target.stem}-{count}{target.suffix}")
    for target in targets:
        outputs.check(target, "another --out or --out-dir", force=force)
    return targets


def _spread(last: int, count: int) -> list[int]:
    """Return at most `count` severities from 0 to `last`, evenly."""
    return sorted({round(i * last / (count - 1)) for i in range(count)})


def _describe(
    screen: Screen,
    operator: Degradation,
    draw: Callable[[Tensor, int], Frozen],
    inputs: list[str],
    size: int,
    device: str,
) -> None:
    """Show what is left of pictures, by severity, as a plot and a table."""
    from colddiff_cli import plots
    from colddiff_core import describe as core
    from colddiff_core import devices

    chosen = devices.choose(device)
    x0 = _example(inputs, size, chosen)
    remains = core.describe(operator, x0, lambda x: draw(x, 0), _spread(operator.steps, MOST_SEVERITIES))
    rows = [dataclasses.asdict(entry) for entry in remains]
    side = f"{x0.shape[-1]}x{x0.shape[-2]}"
    if not screen.is_json:
        screen.say(f"{operator.name} on {side} pixels: {_settings(operator)}")
        plots.show_remains(screen, rows)
    screen.result({"operator": operator.name, "steps": operator.steps, "size": list(x0.shape[-2:]), "severities": rows})


def _settings(operator: Degradation) -> str:
    from colddiff_core.settings import settings_of

    parts = getattr(operator, "parts", (operator,))
    return ", ".join(f"{f.name}={getattr(part, f.name)}" for part in parts for f in settings_of(type(part)))


def _example(inputs: list[str], size: int, device: torch.device) -> Tensor:
    """Return the picture to describe on, (1, C, H, W): the one named, or a photograph that is always there."""
    import torch

    from colddiff_core import images

    if inputs:
        return images.read(_files(inputs)[0][0], size=size).unsqueeze(0).to(device)
    from sklearn.datasets import load_sample_image

    photo = torch.from_numpy(load_sample_image(SAMPLE_PHOTO).copy()).permute(2, 0, 1)
    side = size or min(photo.shape[-2:])
    return images.covering(images.to_floats(photo), side, side).unsqueeze(0).to(device)
