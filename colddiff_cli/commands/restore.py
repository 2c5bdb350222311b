"""`colddiff restore`: restore your own pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from colddiff_cli.arguments import completions, inputs, options, outputs
from colddiff_cli.commands import restore_photographs, restorers
from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import launch
from colddiff_core.errors import UsageError


def restore(
    context: typer.Context,
    pictures: Annotated[
        list[str], typer.Argument(help="Pictures, folders of pictures or globs.", metavar="PICTURE...")
    ],
    operator: Annotated[
        str | None,
        typer.Option(
            "--op",
            help="What happened to the pictures: blur, pixelate, holes, desaturate or snow (default: found out).",
            metavar="NAME",
            autocompletion=completions.one_of(restorers.operators_of_photographs),
        ),
    ] = None,
    t: Annotated[
        str | None,
        typer.Option(
            "--t",
            help="How severely, 1 to T; needs --op or --run (default: estimated).",
            metavar="N",
        ),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Restore nothing; show each picture restored from several severities.")
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="A picture that is white where pixels are to be filled in.", metavar="FILE"),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="Restore with this run (default: the pretrained one that fits the picture).",
            metavar="RUN",
            autocompletion=completions.runs,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The restored picture (default: NAME-restored.png).",
            parser=outputs.picture,
            metavar="PATH",
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out-dir", help="Write the restored pictures there.", parser=outputs.folder, metavar="DIR"),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also write before and after side by side.")] = False,
    consistent: Annotated[
        bool | None,
        typer.Option(
            "--consistent/--no-consistent",
            help="Make the restoration reproduce the picture when degraded (default: where it helps).",
        ),
    ] = None,
    color: Annotated[
        str,
        typer.Option(
            "--color",
            "--colour",
            help="How a gray run restores color: channels (one by one) or luma.",
            autocompletion=completions.one_of(lambda: restorers.COLORS),
        ),
    ] = restorers.COLORS[0],
    sampler: options.Sampler = None,
    stride: options.Stride = None,
    resume: options.Resume = False,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    force: options.Force = False,
    device: options.Device = "auto",
    nproc: options.Processes = None,
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Restore pictures: find out what happened to each and how badly, undo it, and write NAME-restored.png."""
    screen = Screen(json)
    if sweep and t is not None:
        raise UsageError("--sweep tries several severities, and --t names one.", "Leave one of them out.")
    launch.share(context, nproc, device)
    asked = restorers.RestoreOptions(
        t=restorers.SWEEP if sweep else t,
        mask=mask,
        color=color,
        is_consistent=consistent,
        is_compared=compare,
        sampler=sampler,
        stride=stride,
        out=out,
        out_dir=out_dir,
        seed=seed or 0,
        is_resumed=resume,
        is_forced=force,
    )
    # A misspelled name is reported before anything is loaded.
    inputs.agreed(lambda: inputs.listed(pictures, is_silent=True))
    if run is not None:
        found = restorers.of_run(screen, run, operator)
    else:
        found = restorers.for_photographs(operator, hides=mask is not None)
    overrides = options.run_overrides(None, precision, compiled)
    restore_photographs.restore(screen, found, pictures, asked, device, overrides)
