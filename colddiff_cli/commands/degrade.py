"""`colddiff degrade`: apply any operator to any picture, without a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import completions, options, outputs
from colddiff_cli.arguments import inputs as inputs_
from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import launch
from colddiff_cli.picture_series import manifest, naming, per_file, series
from colddiff_cli.picture_series.notes import PictureNotes
from colddiff_core.config import presets
from colddiff_core.config.sizes import Size, plain, sides
from colddiff_core.errors import UsageError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from colddiff_core.degradations import Degradation, Frozen

JSON_KEYS = {"color": "colour"}  # as scripts that read version 0.1 know them
MOST_FRAMES = 60
MOST_SEVERITIES = 41  # in --describe
# Bytes that degrading takes for each pixel of a color picture, and those that each of several severities adds; an upper
# bound, measured (docs/decisions/012-memory.md).
PIXEL_BYTES, FRAME_BYTES = 72, 8
SECOND = -1  # the number of a picture to mix in, among notes
SAMPLE_PHOTO = "flower.jpg"  # scikit-learn's, for --describe without a picture


def degrade(
    context: typer.Context,
    inputs: Annotated[list[str] | None, typer.Argument(help="Images, folders, globs.", metavar="IMAGE...")] = None,
    op: Annotated[
        str | None,
        typer.Option(
            "--op", help="The operator, or several as a+b.", metavar="NAME", autocompletion=completions.operators
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Use a preset's operator and parameters.", autocompletion=completions.presets),
    ] = None,
    t: Annotated[int | None, typer.Option("--t", help="Severity, 0 to T (default: T).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Number of severities T (default: the paper's).")] = None,
    size: Annotated[
        Any,
        typer.Option(
            "--size", help="Scale and crop to this side, or height,width.", parser=options.size, metavar="PIXELS"
        ),
    ] = 0,
    strip: Annotated[
        int, typer.Option("--strip", help="Write a filmstrip of this many severities, 0 to t.", min=0)
    ] = 0,
    animate: Annotated[bool, typer.Option("--animate", help="Write the severities 0 to t as a film, a GIF.")] = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Show what is left at each severity; write nothing.")
    ] = False,
    second: Annotated[
        Path | None, typer.Option("--second", help="Image or folder to mix in, for animorph.", metavar="PATH")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The picture to write, for a single image.", parser=outputs.picture, metavar="PATH"),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            help="Folder for the pictures (default: the current one).",
            parser=outputs.folder,
            metavar="DIR",
        ),
    ] = None,
    resume: options.Resume = False,
    force: options.Force = False,
    seed: options.Seed = None,
    device: options.Device = "auto",
    nproc: options.Processes = None,
    json: options.Json = False,
    given: dict[str, Any] | None = None,
) -> None:
    """Degrade pictures: x_t = D(x0, t). --op NAME --help also lists the operator's parameters."""
    screen = Screen(json)
    if describe:
        launch.check_alone("degrade --describe", nproc)
    ranks = launch.share(context, nproc, device)
    operator = _operator(op, preset, steps, given or {})
    severity = _severity(operator, t)
    pool = list(map(Path, ranks.on_first(lambda: list(map(str, _pool(operator, second))))))
    files = inputs_.agreed(lambda: inputs_.listed(inputs or [])) if inputs or not describe else []
    notes = PictureNotes(screen, len(files))
    draw = _drawing(operator, pool, seed or 0, notes)
    if describe:
        _describe(screen, operator, draw, [file for file, _ in files], size or _size_of(preset), device)
        return
    _check_frames(strip, severity, animate=animate)
    _check_single(out, len(files), is_resumed=resume)
    kind = "film" if animate else "strip" if strip else f"t{severity:03d}"
    folder = out_dir or Path()

    from colddiff_core import devices, images
    from colddiff_core.experiment import versions

    chosen = devices.choose(device)
    settings = {
        "op": operator.name,
        "parameters": _parameters(operator),
        "t": severity,
        "output": f"strip of {strip}" if strip else kind if animate else "picture",
        "size": plain(size),
        "seed": seed or 0,
        "second": manifest.fingerprint(pool) if pool else None,
        "device": chosen.type,
        "versions": versions(),
    }
    ranks.check_same_everywhere(settings)
    if resume:
        files = series.without_own(files, folder, "degrade", settings)
    paths = [file for file, _ in files]
    ending = f"{operator.name.replace('+', '-')}-{kind}{'.gif' if animate else '.png'}"
    targets = [out] if out else naming.targets(paths, folder, ending)
    if ranks.is_first:
        settings["inputs"] = manifest.fingerprint(paths)
        outputs.check_not_inputs(targets, paths, is_alone=len(paths) == 1)
    is_series = out is None and (out_dir is not None or len(files) > 1)
    for target in targets:
        images.check_suffix(target, images.ANIMATED if animate else images.SUFFIXES)
    severities = _spread(severity, MOST_FRAMES if animate else strip) if animate or strip else [severity]

    def make(number: int) -> list[Image]:
        x0 = images.read(
            paths[number],
            size=size,
            note=lambda text: notes.add(number, paths[number], text),
            work=images.Work(PIXEL_BYTES + FRAME_BYTES * len(severities)),
        )
        x0 = x0.unsqueeze(0).to(chosen)
        frozen = draw(x0)
        return [images.to_pillow(operator(x0, s, frozen)[0]) for s in severities]

    with series.Series(
        targets,
        "degrade",
        settings if is_series else None,
        folder=None if out else folder,
        inputs=paths,
        resume=resume,
        force=force,
    ) as own:

        def work(number: int, at_share: per_file.AtShare) -> Callable[[], None]:
            pictures = make(number)

            def write() -> None:
                if animate:
                    images.write_animation(pictures, own.place(number))
                else:
                    _write_strip(screen, pictures, own.place(number), is_shown=len(files) <= series.MANY)
                if not screen.is_json and len(files) <= series.MANY:
                    screen.say(naming.line(paths[number], paths, targets[number]))

            return write

        done, kept = per_file.make(screen, own, files, "degraded", work)
        notes.report(own.ranks)
    screen.result(
        {
            "operator": operator.name,
            "t": severity,
            "steps": operator.steps,
            "files": [str(targets[number]) for number in done],
            "inputs": [str(paths[number]) for number in done],
            "kept": kept,
        }
    )


def _write_strip(screen: Screen, pictures: list[Image], path: Path, *, is_shown: bool) -> None:
    from colddiff_core import images

    picture = images.side_by_side(pictures)
    images.write(picture, path)
    if is_shown:
        screen.picture(picture)


def _severity(operator: Degradation, t: int | None) -> int:
    severity = operator.steps if t is None else t
    if not 0 <= severity <= operator.steps:
        raise UsageError(
            f"t = {severity} is out of range for {operator.name}.", f"Use 0 to {operator.steps} (its steps)."
        )
    return severity


def _check_single(out: Path | None, count: int, *, is_resumed: bool) -> None:
    if out is None:
        return
    if count > 1:
        raise UsageError(f"--out names one picture, but there are {count}.", "Use --out-dir.")
    if is_resumed:
        raise UsageError("--resume completes a folder of pictures, but --out names one.", "Leave one of them out.")


def _check_frames(strip: int, severity: int, *, animate: bool) -> None:
    if strip == 1:
        raise UsageError("A filmstrip needs at least two frames.", "Use --strip 2 or more.")
    if (strip or animate) and severity == 0:
        raise UsageError("From t = 0 to 0 there is only one frame.", "Use --t 1 or more.")
    if strip and animate:
        raise UsageError("--strip and --animate are two different outputs.", "Use one of them.")


def _operator(op: str | None, preset: str | None, steps: int | None, given: dict[str, Any]) -> Degradation:
    from colddiff_core import degradations

    if (op is None) == (preset is None):
        known = ", ".join(degradations.names())
        raise UsageError("Name an operator with --op, or a --preset.", f"Operators: {known}.")
    name, values = op, {}
    if preset is not None:
        degradation = presets.load(preset).degradation
        name, values = degradation.name, dict(degradation.parameters)
    assert name is not None
    return degradations.build(name, **values | given | ({} if steps is None else {"steps": steps}))


def _size_of(preset: str | None) -> Size:
    return presets.load(preset).data.size if preset else 0


def _pool(operator: Degradation, second: Path | None) -> list[Path]:
    """Return the pictures to mix in; empty for an operator that mixes in none."""
    from colddiff_core.datasets.picture_files import find_pictures

    if not operator.second_field:
        return []
    if second is None:
        raise UsageError(f"{operator.name} mixes in a second picture.", "Name an image or a folder with --second.")
    pool = find_pictures(second).paths if second.is_dir() else [second]
    if not pool:
        raise UsageError(f"No images in {second}.", "Name an image or a folder of images with --second.")
    return pool


def _drawing(operator: Degradation, pool: list[Path], seed: int, notes: PictureNotes) -> Callable[[Tensor], Frozen]:
    """Return a function that draws what is random about a picture (1, C, H, W) and picks another one of the pool.

    Both depend on the seed and on the picture alone.
    """
    from colddiff_core import images, seeds

    def draw(x0: Tensor) -> Frozen:
        key = seeds.picture_key(x0[0])
        fields = {}
        if pool:
            path = pool[(seed + int(key, 16)) % len(pool)]
            other = images.read_like(path, x0[0], note=lambda text: notes.add(SECOND, path, text))
            fields[operator.second_field] = other.unsqueeze(0).to(x0.device)
        return operator.freeze(x0, generator=seeds.image_generators(seed, [key]), **fields)

    return draw


def _spread(last: int, count: int) -> list[int]:
    """Return at most `count` evenly spaced severities from 0 to `last`."""
    return sorted({round(i * last / (count - 1)) for i in range(count)})


def _describe(
    screen: Screen,
    operator: Degradation,
    draw: Callable[[Tensor], Frozen],
    files: list[Path],
    size: Size,
    device: str,
) -> None:
    """Plot what is left of a picture at each severity."""
    from colddiff_cli.console import plots
    from colddiff_core import devices
    from colddiff_core.evaluation import remains as core

    chosen = devices.choose(device)
    x0 = _example(files, size, chosen)
    remains = core.describe(operator, x0, draw, _spread(operator.steps, MOST_SEVERITIES))
    rows = [{JSON_KEYS.get(key, key): value for key, value in dataclasses.asdict(entry).items()} for entry in remains]
    side = f"{x0.shape[-1]}x{x0.shape[-2]}"
    if not screen.is_json:
        screen.say(f"{operator.name} on {side} pixels: {_settings(operator)}")
        plots.show_remains(screen, rows)
    screen.result({"operator": operator.name, "steps": operator.steps, "size": list(x0.shape[-2:]), "severities": rows})


def _settings(operator: Degradation) -> str:
    return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in _parameters(operator).items())


def _parameters(operator: Degradation) -> dict[str, Any]:
    """Return an operator's parameters by name; in a composition, with the part's name as a prefix."""
    from colddiff_core.config.fields import settings_of

    parts = getattr(operator, "parts", (operator,))
    prefixes = [f"{number}.{part.name}." for number, part in enumerate(parts)] if len(parts) > 1 else [""]
    return {
        prefix + field.name: getattr(part, field.name)
        for prefix, part in zip(prefixes, parts, strict=True)
        for field in settings_of(type(part))
    }


def _example(files: list[Path], size: Size, device: torch.device) -> Tensor:
    """Return the picture for --describe, (1, C, H, W) float32 in [-1, 1]: the first one named, or a sample photo."""
    import torch

    from colddiff_core import images

    if files:
        return images.read(files[0], size=size).unsqueeze(0).to(device)
    from sklearn.datasets import load_sample_image

    photo = torch.from_numpy(load_sample_image(SAMPLE_PHOTO).copy()).permute(2, 0, 1)
    height, width = sides(size or min(photo.shape[-2:]))
    return images.resize_and_crop(images.to_floats(photo), height, width).unsqueeze(0).to(device)
