"""Training runs from the command line: what can fail first, a bar or lines while it goes on, Ctrl-C."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import launch
from colddiff_core import runs
from colddiff_core.config import presets, schema
from colddiff_core.distributed import environment
from colddiff_core.errors import UsageError

if TYPE_CHECKING:
    from colddiff_core.datasets import ImageSet, TrainingSet
    from colddiff_core.training.trainer import Trainer

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


def check_names(config: schema.Config) -> None:
    """Refuse what would be refused once the data are read."""
    from colddiff_core import datasets, degradations
    from colddiff_core.sampling import Sampling

    operator = degradations.build(config.degradation.name, **config.degradation.parameters)
    Sampling.of(config).check(operator)
    datasets.find(config.data.dataset, crop=config.data.crop)


def start(
    screen: Screen, config: schema.Config, out: Path | None, device: str, changes: list[str] | None = None
) -> Trainer:
    """Return the trainer of a new run; everything that can fail is built before the run's folder is made.

    changes: what the user, and not a preset's file, says of the settings; None where the file is our own.
    """
    from colddiff_core import devices, experiment
    from colddiff_core.distributed import group
    from colddiff_core.training import step as stepping
    from colddiff_core.training.trainer import Trainer

    here = environment.process_info()
    path = out or runs.free_name(config.name)
    if here.is_first and path.exists():
        raise runs.taken(path)
    check_names(config)
    chosen = devices.choose(device)
    together = group.join(chosen)
    stepping.check_processes(config.train, together.count)
    trusted = config if changes is None else presets.restrict_downloads(config, changes)
    sets = _load_sets(trusted)
    built = together.one_process_first(lambda: experiment.build(trusted, sets[0].channels, chosen))
    built = dataclasses.replace(built, config=config)
    built.try_out(sets[0])
    path = Path(together.broadcast_json(str(path)))  # heard when all have come so far: where one fails, nothing is left
    run = runs.create(path, config, experiment.versions()) if together.is_first else runs.FollowerRun(path)
    try:
        trainer = Trainer(built, *sets, run)
        _check_alike(trainer)
    except BaseException:
        run.close()
        if together.is_first:
            shutil.rmtree(path)
        raise
    _introduce(screen, trainer, sets)
    return trainer


def resume(screen: Screen, name: str, changes: list[str], device: str, *, may_change: bool = False) -> Trainer:
    """Return the trainer of a run that goes on from its newest checkpoint.

    Raises UsageError where it would go on under other settings, images or an operator that is another, unless
    `may_change`.
    """
    from colddiff_core import devices, experiment
    from colddiff_core.distributed import group
    from colddiff_core.training.trainer import Trainer

    for change in changes:
        key = change.partition("=")[0].strip()
        if key not in schema.CHANGEABLE and not may_change:
            told = ", ".join(sorted(key for key in schema.CHANGEABLE if key.startswith("train.")))
            raise UsageError(
                f"{change}: a resumed run keeps its configuration.",
                f"Only {told} and --data-dir may change. Use --allow-change, or start a new run.",
            )
    asked = _resumed(name, changes) if environment.process_info().is_first else None
    chosen = devices.choose(device)
    together = group.join(chosen)
    # The others need not see the run's folder.
    path, table = together.broadcast_json([str(asked[0]), asked[1].to_table()] if asked else None)
    config = presets.from_table(table, path)
    sets = _load_sets(config)
    built = together.one_process_first(lambda: experiment.build(config, sets[0].channels, chosen))
    together.barrier()  # the run is not held before all are ready to train
    run = runs.RunWriter(Path(path)) if together.is_first else runs.FollowerRun(Path(path))
    try:
        trainer = Trainer(built, *sets, run)
        _check_alike(trainer)
        trainer.resume(may_change=may_change)
        if changes and together.is_first:
            runs.rewrite_config(run, config)
    except BaseException:
        run.close()
        raise
    _introduce(screen, trainer, sets)
    return trainer


def _check_alike(trainer: Trainer) -> None:
    """Raise UsageError where a process would train on other images, or compute otherwise, than the first."""
    from colddiff_core import experiment
    from colddiff_core.distributed import group

    of_both = {"training images": "images", "second data set": "second"}
    images = {
        name: trainer.provenance[key] and " ".join(map(str, trainer.provenance[key].values()))
        for name, key in of_both.items()
    }
    versions = {key: version for key, version in experiment.versions().items() if key != "python"}
    launch.check_alike(images | versions | {"precision": trainer.experiment.precision})
    group.current().barrier()  # or one that is alike would make what another is refused


def _resumed(name: str, changes: list[str]) -> tuple[Path, schema.Config]:
    """Return the folder and the settings of a run that goes on; raises UsageError where nothing is left to train."""
    found = runs.find(name)
    config = found.config(tuple(changes))
    if (step := finished(found, config)) is not None:
        remedy = f"Train on with: --set train.steps={config.train.steps * 2}"
        raise UsageError(f"{found.path} is finished: {step} of {config.train.steps} steps.", remedy)
    runs.check_free(found.path)
    return found.path, config


def finished(found: runs.Run, config: schema.Config) -> int | None:
    """Return the step of a run's last checkpoint where nothing is left to train, else None."""
    from colddiff_core.runs import checkpoint

    newest = checkpoint.newest(found, checkpoint.read)
    step = runs.path_step(newest.path) if newest else 0
    is_finished = step > config.train.steps or (step == config.train.steps and found.is_finished(step))
    return step if is_finished else None


def _load_sets(config: schema.Config) -> tuple[TrainingSet, ImageSet]:
    from colddiff_core.datasets import from_config
    from colddiff_core.distributed import group

    def load() -> tuple[TrainingSet, ImageSet]:
        train_set = from_config.load_training(config)
        return train_set, from_config.load_images(config, "test", train_set.channels)

    return group.current().one_process_first(load)


def _introduce(screen: Screen, trainer: Trainer, sets: tuple[TrainingSet, ImageSet]) -> None:
    from colddiff_core import devices
    from colddiff_core.datasets import from_config

    built, config = trainer.experiment, trainer.experiment.config
    for split, images in zip(("training", "test"), sets, strict=True):
        if message := from_config.left_out(config.data, images, split):
            trainer.run.event("warning", message=message)
            screen.warn(message)
    count = sum(p.numel() for p in built.restorer.parameters())
    dtype = str(built.restorer.unet.body_dtype).removeprefix("torch.")
    where = f"step {trainer.step} of {config.train.steps}" if trainer.step else f"{config.train.steps} steps"
    screen.say(f"{trainer.run.path}: {config.description or config.name}")
    screen.say(
        f"{len(sets[0]):,} images of {config.data.size}x{config.data.size}x{built.channels}, "
        f"{built.operator.name} T={built.operator.steps}, {count / 1e6:.1f} M parameters, "
        f"{dtype} body on {_machines(devices.describe(built.device))}, {where}"
    )


def _machines(device: str) -> str:
    """Return a device in words, and how many processes have one like it."""
    here = environment.process_info()
    return device if here.is_alone else f"{device}, each of {here.count} processes"


def work(screen: Screen, trainer: Trainer) -> bool:
    """Train to the end, and return True, or to Ctrl-C or a signal like it, which saves."""
    try:
        with _interrupts(screen, trainer):
            _watch(screen, trainer)
    finally:
        trainer.train_set.close()
    trainer.run.close()
    if trainer.is_finished:
        return True
    screen.say(f"Stopped at step {trainer.step}; saved.")
    return False


@contextmanager
def _interrupts(screen: Screen, trainer: Trainer) -> Iterator[None]:
    """Have the first Ctrl-C end the loop after the step in hand, a second one at once.

    So do a scheduler's SIGTERM and the SIGHUP of a terminal that went away, without the second.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        trainer.stop(signal.Signals(number).name)
        screen.say("Finishing this step and saving ...")

    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in ENDINGS}
    for number, handler in before.items():
        if number != signal.SIGHUP or handler != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, on_signal)
    try:
        yield
    except BaseException:
        if (
            not environment.process_info().is_alone
        ):  # this process has yet to say why it ends, and the agent would end it first
            before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
            first = min(first, tick.step - 1)  # a run may go back to before where it was resumed
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
