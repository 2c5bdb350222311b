"""`colddiff train`: a run from a preset, or on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colddiff_cli import opening, options, outputs, trainings
from colddiff_cli.screen import Screen
from colddiff_cli.tables import fidelity_table
from colddiff_core import presets, runs
from colddiff_core.errors import UsageError, counted

if TYPE_CHECKING:
    from colddiff_core.training import Trainer


def train(
    preset: Annotated[str | None, typer.Option("--preset", help="What to train: see `colddiff presets`.")] = None,
    resume: Annotated[str | None, typer.Option("--resume", help="Go on with this run.", metavar="RUN")] = None,
    overrides: options.Set = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run's folder (runs/PRESET).", parser=outputs.run, metavar="RUN"),
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="Resume though settings, images or the operator are others now.")
    ] = False,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Train in the background and watch; closing that leaves it training.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a restorer. Ctrl-C, and SIGTERM, save a checkpoint and end; --resume goes on from it."""
    screen = Screen(json)
    if (preset is None) == (resume is None):
        raise UsageError("Name either a --preset or a run to --resume.", "List the presets with: colddiff presets")
    if allow_change and resume is None:
        raise UsageError("--allow-change is of --resume.", "A new run may have any settings: leave it out.")
    if resume is not None:
        _check_resumed(resume, out, is_dry=dry_run)
    changes = list(overrides or [])
    if seed is not None:
        changes.append(f"train.seed={seed}")
    if monitor:
        if dry_run or json:
            raise UsageError(f"--monitor does not go with {'--dry-run' if dry_run else '--json'}.", "Leave one out.")
        _train_watched(screen, preset, resume, changes, out, data_dir, device, allow_change)
        return
    changes += options.data_override(data_dir)
    if resume is not None:
        trainer = trainings.resume(screen, resume, changes, device, may_change=allow_change)
    else:
        assert preset is not None
        config = presets.load(preset, changes)
        if data_dir is not None:
            opening.check_data_dir(config)
        if dry_run:
            trainings.check_names(config)
            screen.result(config.to_table())
            if not json:
                screen.say(presets.dump(config.to_table()).rstrip())
            return
        trainer = trainings.start(screen, config, out, device)
    if trainings.work(screen, trainer):
        _conclude(screen, trainer)
        return
    path = trainer.run.path
    screen.say(f"Go on with: colddiff train --resume {path}")
    screen.result({"run": str(path), "step": trainer.step, "finished": False})
    raise typer.Exit(130)


def _check_resumed(run: str, out: Path | None, *, is_dry: bool) -> None:
    """Raise UsageError for options that a run which goes on has no use for."""
    if is_dry:
        raise UsageError("--dry-run does not go with --resume.", f"The configuration is in {run}/run.toml.")
    if out is not None:
        raise UsageError("--out does not go with --resume.", "A resumed run stays where it is.")


def _train_watched(
    screen: Screen,
    preset: str | None,
    resume: str | None,
    changes: list[str],
    out: Path | None,
    data_dir: Path | None,
    device: str,
    may_change: bool,
) -> None:
    """Train in a process of its own and open the dashboard on it."""
    from colddiff_cli import background
    from colddiff_cli.commands.monitor import check_terminal, watch

    check_terminal()
    if resume is not None:
        path = runs.find(resume).path
        arguments = ["--resume", str(path)] + (["--allow-change"] if may_change else [])
    else:
        assert preset is not None
        path = out or runs.free_name(presets.load(preset, changes).name)
        if path.exists():
            raise runs.taken(path)
        arguments = ["--preset", preset, "--out", str(path)]
    arguments += ["--device", device, *(word for change in changes for word in ("--set", change))]
    arguments += ["--data-dir", str(data_dir)] if data_dir else []
    trainer = background.start(screen, arguments, path)
    try:
        watch([path])
    finally:
        log = path / background.LOG
        if trainer.returncode is None:
            screen.say(f"Training goes on (process {trainer.pid}). Watch it again with: colddiff monitor {path}")
        elif trainer.returncode == 0:
            screen.say(f"{path} is trained. What it said is in {log}")
        else:
            screen.say(f"{path} has ended; its words are in {log}. Go on with: colddiff train --resume {path}")
    if trainer.returncode:
        raise typer.Exit(trainer.returncode if trainer.returncode > 0 else 1)


def _conclude(screen: Screen, trainer: Trainer) -> None:
    """Show the last sheet and say what can be done with the run."""
    path = trainer.run.path
    columns, figures = trainer.last_sheet or trainer.restore_tests()
    found = trainer.run.samples / f"step-{trainer.step:06d}.png"
    sheet = found if found.exists() else None  # the disk may have had no room for it
    screen.rows(columns)
    screen.show(fidelity_table(f"{counted(len(columns['original']), 'test image')} at t = T", figures))
    screen.say("Next:")
    screen.say(f"  colddiff eval {path}")
    screen.say(f"  colddiff sample {path} --animate")
    if trainer.experiment.operator.priors[0] != "degraded":
        screen.say(f"  colddiff generate {path}")
    outcome = {"run": str(path), "step": trainer.step, "finished": True, "metrics": figures}
    outcome["sheet"] = str(sheet) if sheet else None
    screen.result(outcome, sheet)
