"""`colddiff sample`: degrade images and bring them back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from colddiff_cli import films, opening, options, outputs
from colddiff_cli.screen import Screen
from colddiff_core import presets, runs

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.experiment import Experiment


def sample(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="A run (the newest if left out), then image files (test images if none).", metavar="[RUN] [IMAGE]..."
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="How many test images.", min=1)] = 8,
    t: options.Severity = None,
    sampler: options.Sampler = None,
    stride: options.Stride = None,
    animate: Annotated[
        bool, typer.Option("--animate", help="Write the trajectory too: a GIF, or as --out ends.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The picture to write (RUN/restored/...png).", parser=outputs.picture, metavar="PATH"
        ),
    ] = None,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    force: options.Force = False,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Degrade images with the run's operator, restore them, and write a sheet of both."""
    screen = Screen(json)
    found, files = _run_and_files(arguments or [])
    overrides = options.run_overrides(data_dir, precision, compiled)
    config = found.config(overrides)

    from colddiff_core import images, sampling, seeds

    built, step = opening.open_run(screen, found, device, overrides)
    severity = built.operator.steps if t is None else t
    name, pace = sampler or config.sample.sampler, config.sample.stride if stride is None else stride
    sampling.check(name, built.operator, pace, severity)
    chosen_seed = config.train.seed if seed is None else seed
    default = found.path / "restored" / f"{name}-t{severity:03d}.png"
    picture_path, animation_path = films.outputs(out, default, animate=animate, force=force)
    x0 = _images(built, config, files, n)
    numbers = range(len(x0))
    x_t, frozen = built.degrade(x0, severity, seeds.image_generators(chosen_seed, numbers))
    common: dict[str, Any] = {"seed": chosen_seed, "numbers": numbers, "bits": built.bits}
    direct = sampling.final(built.restore(x_t, severity, frozen, sampler="direct", stride=1, **common))
    steps = built.restore(x_t, severity, frozen, sampler=name, stride=pace, **common)
    trajectory = [x_t]
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        x = x_t
        for taken in steps:
            x = taken.x
            progress.update(task, completed=taken.index, total=taken.count)
            if animate:
                trajectory.append(x)
    columns = {"degraded": x_t, "direct": direct, "sampled": x, "original": x0}
    images.write(images.sheet(columns, blocks=2 if len(x0) > 4 else 1), picture_path)
    if animation_path:
        images.write_animation(films.frames(trajectory), animation_path)
        screen.say(f"trajectory: {animation_path}")
    screen.rows(columns)
    outcome = {"run": str(found.path), "step": step, "sampler": name, "t": severity, "stride": pace, "n": len(x0)}
    outcome |= {"precision": built.precision}
    outcome |= {"picture": str(picture_path), "animation": str(animation_path) if animation_path else None}
    screen.result(outcome, picture_path)


def _run_and_files(arguments: list[str]) -> tuple[runs.Run, list[Path]]:
    """Return the run and the image files: a first argument that is a file, or named like an image, is no run."""
    from colddiff_core.images import SUFFIXES

    is_image = bool(arguments) and Path(arguments[0]).suffix.lower() in SUFFIXES
    if arguments and not is_image and not Path(arguments[0]).is_file():
        return runs.find(arguments[0]), [Path(name) for name in arguments[1:]]
    return runs.find(None), [Path(name) for name in arguments]


def _images(built: Experiment, config: presets.Config, files: list[Path], n: int) -> Tensor:
    import torch

    from colddiff_core import experiment, images

    if files:
        stack = [images.read(path, size=config.data.size, channels=built.channels) for path in files]
        return torch.stack(stack).to(built.device)
    return experiment.load_images(config, "test", built.channels).images(slice(0, n)).to(built.device)
