"""`colddiff eval`: how close a run's restorations come."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import Progress

from colddiff_cli import opening, options
from colddiff_cli.screen import Screen, fidelity_table
from colddiff_core import runs
from colddiff_core.errors import counted

DEFAULT_IMAGES = 1000


def evaluate(
    run: options.RunName = None,
    n: Annotated[
        int, typer.Option("--n", help="Test images, from the first; all there are if fewer.", min=1)
    ] = DEFAULT_IMAGES,
    t: options.Severity = None,
    stride: options.Stride = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Images at a time; no result depends on it.", min=1)
    ] = 100,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Measure degraded, direct, sampled and naive restorations by RMSE, PSNR and SSIM."""
    screen = Screen(json)
    found = runs.find(run)
    overrides = tuple(options.data_override(data_dir))
    config = found.config(overrides)

    from colddiff_core import evaluation, experiment, sampling

    built, step = opening.open_run(screen, found, device, overrides)
    severity = built.operator.steps if t is None else t
    pace = config.sample.stride if stride is None else stride
    sampling.check(config.sample.sampler, built.operator, pace, severity)
    images = experiment.load_images(config, "test", built.channels)
    count = min(n, len(images))
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("restoring", total=count * len(evaluation.COLUMNS))
        metrics = evaluation.evaluate(
            built,
            images,
            t=severity,
            count=count,
            seed=config.train.seed if seed is None else seed,
            stride=pace,
            batch_size=batch_size,
            progress=lambda done: progress.advance(task, done),
        )
    title = f"{found.path}, step {step}: {counted(count, 'test image')} of {config.data.dataset} at t = {severity}"
    paper = config.paper if severity == built.operator.steps else {}
    screen.show(fidelity_table(title, metrics, paper))
    if paper:
        screen.say(f"paper: {config.paper['source']}")
    screen.result({"run": str(found.path), "step": step, "t": severity, "n": count, "metrics": metrics})
