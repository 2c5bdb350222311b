"""`colddiff train`: a run from a preset, or on from a checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from colddiff_cli import opening, options, outputs
from colddiff_cli.screen import Screen
from colddiff_cli.tables import fidelity_table
from colddiff_core import presets, runs
from colddiff_core.errors import UsageError, counted

if TYPE_CHECKING:
    from colddiff_core.datasets import ImageSet
    from colddiff_core.training import Trainer

# What a resumed run may change: how long and how often, and the rate. The rest would make another run of it.
CHANGEABLE = ("steps", "lr", "log_every", "sample_every", "checkpoint_every", "keep")
LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


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
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Train in the background and watch; closing that leaves it training.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a restorer. Ctrl-C saves a checkpoint and ends; --resume goes on from it."""
    screen = Screen(json)
    if (preset is None) == (resume is None):
        raise UsageError("Name either a --preset or a run to --resume.", "List the presets with: colddiff presets")
    changes = list(overrides or [])
    if seed is not None:
        changes.append(f"train.seed={seed}")
    if monitor:
        if dry_run or json:
            raise UsageError(f"--monitor does not go with {'--dry-run' if dry_run else '--json'}.", "Leave one out.")
        _train_watched(screen, preset, resume, changes, out, data_dir, device)
        return
    changes += options.data_override(data_dir)
    if resume is not None:
        if dry_run:
            raise UsageError("--dry-run does not go with --resume.", f"The configuration is in {resume}/run.toml.")
        trainer = _resumed(screen, resume, changes, out, device)
    else:
        assert preset is not None
        config = presets.load(preset, changes)
        if data_dir is not None:
            opening.check_data_dir(config)
        if dry_run:
            _check_names(config)
            screen.result(config.to_table())
            if not json:
                screen.say(presets.dump(config.to_table()).rstrip())
            return
        trainer = _started(screen, config, out, device)
    _run(screen, trainer)


def _train_watched(
    screen: Screen,
    preset: str | None,
    resume: str | None,
    changes: list[str],
    out: Path | None,
    data_dir: Path | None,
    device: str,
) -> None:
    """Train in a process of its own and open the dashboard on it."""
    from colddiff_cli import background
    from colddiff_cli.commands.monitor import check_terminal, watch

    check_terminal()
    if resume is not None:
        path = runs.find(resume).path
        arguments = ["--resume", str(path)] + (["--out", str(out)] if out else [])
    else:
        assert preset is not None
        path = out or runs.free_name(presets.load(preset, changes).name)
        if path.exists():
            raise _taken(path)
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


def _taken(path: Path) -> UsageError:
    return UsageError(f"{path} exists already.", f"Go on with: colddiff train --resume {path}, or give another --out.")


def _check_names(config: presets.Config) -> None:
    """Refuse what would be refused once the data are read."""
    from colddiff_core import datasets, degradations, sampling

    operator = degradations.build(config.degradation.name, **config.degradation.parameters)
    sampling.check(config.sample.sampler, operator, config.sample.stride)
    datasets.find(config.data.dataset)


def _started(screen: Screen, config: presets.Config, out: Path | None, device: str) -> Trainer:
    """Build everything that can fail before the run's folder is made."""
    from colddiff_core import devices, experiment
    from colddiff_core.training import Trainer

    path = out or runs.free_name(config.name)
    if path.exists():
        raise _taken(path)
    _check_names(config)
    chosen = devices.choose(device)
    sets = _load_sets(config)
    built = experiment.build(config, sets[0].channels, chosen)
    built.try_out(sets[0])
    run = runs.create(path, config, experiment.versions())
    trainer = Trainer(built, *sets, run)
    _introduce(screen, trainer, sets)
    return trainer


def _resumed(screen: Screen, name: str, changes: list[str], out: Path | None, device: str) -> Trainer:
    from colddiff_core import devices, experiment
    from colddiff_core.training import Trainer

    if out is not None:
        raise UsageError("--out does not go with --resume.", "A resumed run stays where it is.")
    for change in changes:
        section, _, key = change.partition("=")[0].strip().partition(".")
        if change.startswith("data.directory=") or (section == "train" and key in CHANGEABLE):
            continue
        raise UsageError(
            f"{change}: a resumed run keeps its configuration.",
            f"Only train.{', train.'.join(CHANGEABLE)} and --data-dir may change; or start a new run.",
        )
    found = runs.find(name)
    config = found.config(tuple(changes))
    saved = found.checkpoints()
    step = runs.path_step(saved[-1]) if saved else 0
    if step >= config.train.steps:
        remedy = f"Train on with: --set train.steps={config.train.steps * 2}"
        raise UsageError(f"{found.path} is finished: {step} of {config.train.steps} steps.", remedy)
    chosen = devices.choose(device)
    sets = _load_sets(config)
    built = experiment.build(config, sets[0].channels, chosen)
    run = runs.RunWriter(found.path)
    trainer = Trainer(built, *sets, run)
    trainer.resume()
    if changes:
        runs.rewrite_config(run, config)
    _introduce(screen, trainer, sets)
    return trainer


def _load_sets(config: presets.Config) -> tuple[ImageSet, ImageSet]:
    from colddiff_core import experiment

    train_set = experiment.load_images(config, "train")
    return train_set, experiment.load_images(config, "test", train_set.channels)


def _introduce(screen: Screen, trainer: Trainer, sets: tuple[ImageSet, ImageSet]) -> None:
    from colddiff_core import devices

    built, config = trainer.experiment, trainer.experiment.config
    for split, images in zip(("training", "test"), sets, strict=True):
        if images.skipped:
            message = f"left out {counted(images.skipped, f'{split} file')} that could not be read"
            trainer.run.event("warning", message=message)
            screen.warn(message)
    count = sum(p.numel() for p in built.restorer.parameters())
    dtype = str(built.restorer.unet.body_dtype).removeprefix("torch.")
    where = f"step {trainer.step} of {config.train.steps}" if trainer.step else f"{config.train.steps} steps"
    screen.say(f"{trainer.run.path}: {config.description or config.name}")
    screen.say(
        f"{len(sets[0]):,} images of {config.data.size}x{config.data.size}x{built.channels}, "
        f"{built.operator.name} T={built.operator.steps}, {count / 1e6:.1f} M parameters, "
        f"{dtype} body on {devices.describe(built.device)}, {where}"
    )


def _run(screen: Screen, trainer: Trainer) -> None:
    """Train to the end or to Ctrl-C, and show what came of it."""
    with _interrupts(screen, trainer):
        _watch(screen, trainer)
    trainer.run.close()
    path = trainer.run.path
    if trainer.step < trainer.settings.steps:
        screen.say(f"Stopped at step {trainer.step}; saved. Go on with: colddiff train --resume {path}")
        screen.result({"run": str(path), "step": trainer.step, "finished": False})
        raise typer.Exit(130)
    _conclude(screen, trainer)


@contextmanager
def _interrupts(screen: Screen, trainer: Trainer) -> Iterator[None]:
    """Have the first Ctrl-C end the loop after the step in hand, a second one at once."""

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        screen.say("Finishing this step and saving ...")
        trainer.stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(screen: Screen, trainer: Trainer) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=screen.console,
        disable=not screen.is_terminal,
    )
    started = spoken = time.monotonic()
    first = trainer.step
    with progress:
        task = progress.add_task("", total=trainer.settings.steps, completed=first, note="")
        for tick in trainer.steps():
            progress.update(task, completed=tick.step)
            if tick.is_paused:
                screen.say(f"Paused at step {tick.step} as asked; `colddiff monitor {trainer.run.path}` has it go on")
            if tick.metrics is None:
                continue
            note = f"loss {tick.metrics['loss']:.4f}  {tick.metrics['images_per_second']:,.0f} images/s"
            progress.update(task, note=note)
            now = time.monotonic()
            if not screen.is_terminal and (now - spoken > LINE_EVERY or tick.step == trainer.settings.steps):
                spoken = now
                left = (now - started) / (tick.step - first) * (trainer.settings.steps - tick.step)
                screen.say(f"step {tick.step}/{trainer.settings.steps}  {note}  {left:,.0f} s left")


def _conclude(screen: Screen, trainer: Trainer) -> None:
    """Show the last sheet and say what can be done with the run."""
    path = trainer.run.path
    columns, figures = trainer.last_sheet or trainer.restore_tests()
    sheet = trainer.run.samples / f"step-{trainer.step:06d}.png"
    screen.rows(columns)
    screen.show(fidelity_table(f"{counted(len(columns['original']), 'test image')} at t = T", figures))
    screen.say("Next:")
    screen.say(f"  colddiff eval {path}")
    screen.say(f"  colddiff sample {path} --animate")
    if trainer.experiment.operator.priors[0] != "degraded":
        screen.say(f"  colddiff generate {path}")
    outcome = {"run": str(path), "step": trainer.step, "finished": True, "sheet": str(sheet), "metrics": figures}
    screen.result(outcome, sheet)
