"""Start a training: a new run, or a run resumed from its newest checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from colddiff_core import datasets, devices, experiment, runs
from colddiff_core.config import presets, schema
from colddiff_core.datasets import ImageSet, TrainingSet, from_config
from colddiff_core.degradations import Degradation
from colddiff_core.distributed import environment, group
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.runs import FollowerRun, Run, RunWriter, checkpoint
from colddiff_core.text import shell_word
from colddiff_core.training import initial
from colddiff_core.training import step as stepping
from colddiff_core.training.tick import Tick
from colddiff_core.training.trainer import Trainer
from colddiff_core.training.validation import ValidationRecord


def train(
    config: schema.Config,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    on_tick: Callable[[Tick], None] | None = None,
) -> Run:
    """Train a new run to the end and return it.

    Args:
        config: The configuration, as from `load_preset`.
        out: The run's folder, which must not exist; None for runs/NAME, with a number if that is taken.
        device: "auto", "cpu" or "cuda".
        on_tick: Called after every optimizer step.

    Raises:
        UsageError: The folder exists, or a setting does not fit the data, the operator or the network.
        MachineError: The disk refuses the run, or training diverged.
    """
    trainer = start(config, None if out is None else Path(out), device)
    try:
        for tick in trainer.steps():
            if on_tick is not None:
                on_tick(tick)
    finally:
        trainer.train_set.close()
        trainer.run.close()
    return Run(trainer.run.path)


def check_names(config: schema.Config) -> Degradation:
    """Check operator, sampler, data set and the run to start from before any image is read; return the operator.

    Raises:
        UsageError: One of them is unknown, or they do not fit together.
    """
    operator = experiment.build_operator(config, stride=config.sample.stride)
    datasets.find(config.data.dataset, crop=config.data.crop)
    _check_patience(config.train)
    if environment.process_info().is_first:  # the others may not see its folder
        initial.check(config)
    return operator


def _check_patience(settings: schema.TrainConfig) -> None:
    if settings.patience and not settings.validate_every:
        what = f"train.patience = {settings.patience}: without validation nothing ends the training early."
        raise UsageError(what, "Set train.validate_every too, such as train.validate_every=100.")


def start(config: schema.Config, out: Path | None, device: str) -> Trainer:
    """Return the trainer of a new run. Its folder is created last, when everything else has been built.

    Raises:
        UsageError: The folder exists, or a setting does not fit the data, the operator or the network.
    """
    process = environment.process_info()
    path = out or runs.free_name(config.name)
    if process.is_first and path.exists():
        raise runs.taken(path)
    operator = check_names(config)
    chosen = devices.choose(device)
    ranks = group.join(chosen)
    stepping.check_processes(config.train, ranks.count)
    sets = _load_sets(config)
    config = _with_counted_classes(config, sets[0])
    built = ranks.one_process_first(lambda: experiment.build(config, sets[0].channels, chosen, operator=operator))
    built.try_out(sets[0])
    weights = initial.load(built)
    path = Path(ranks.broadcast_json(str(path)))  # all ranks got this far, so a failure on one leaves no folder
    created = [folder for folder in path.parents if not folder.exists()]
    run: RunWriter | FollowerRun = runs.FollowerRun(path)
    if ranks.is_first:
        run = runs.create(path, config, experiment.versions(), sets[0].classes)
    try:
        _log_initial_weights(run, weights)
        trainer = Trainer(built, *sets, run)
        check_same_everywhere(trainer)
    except BaseException:
        run.close()
        if ranks.is_first:
            _remove(path, created)
        raise
    _warn_left_out(trainer)
    return trainer


def resume(name: str, changes: list[str], device: str, *, may_change: bool = False) -> Trainer:
    """Return the trainer of a run, resumed from its newest checkpoint.

    Args:
        name: The run's path or name.
        changes: Overrides of its settings, as `section.key=value`.
        device: "auto", "cpu" or "cuda".
        may_change: Accept any override, and other images or another operator.

    Raises:
        UsageError: The run is finished, or its settings, images or operator changed without `may_change`.
    """
    for change in changes:
        key = change.partition("=")[0].strip()
        if key not in schema.CHANGEABLE and not may_change:
            changeable = ", ".join(sorted(key for key in schema.CHANGEABLE if key.startswith("train.")))
            raise UsageError(
                f"{change}: a resumed run keeps its configuration.",
                f"Only {changeable} and --data-dir may change. Use --allow-change, or start a new run.",
            )
    message = None
    if environment.process_info().is_first:
        folder, config = _resumable(name, changes)
        message = [str(folder), config.to_table(), config.may_download]
    chosen = devices.choose(device)
    ranks = group.join(chosen)
    path, table, may_download = ranks.broadcast_json(message)  # only rank 0 needs to see the run's folder
    config = presets.from_table(table, path)
    config = config if may_download else config.without_downloads()
    sets = _load_sets(config)
    built = ranks.one_process_first(lambda: experiment.build(config, sets[0].channels, chosen))
    ranks.barrier()  # lock the run only when all ranks are ready to train
    run = runs.RunWriter(Path(path)) if ranks.is_first else runs.FollowerRun(Path(path))
    try:
        if not ranks.on_first(lambda: len(runs.list_checkpoints(run.path / "checkpoints"))):
            _log_initial_weights(run, initial.load(built))
        trainer = Trainer(built, *sets, run)
        check_same_everywhere(trainer)
        trainer.resume(may_change=may_change)
        if changes and ranks.is_first:
            runs.rewrite_config(run, config)
        if config.model.classes and ranks.is_first:
            runs.keep_classes(run, sets[0].classes)
    except BaseException:
        run.close()
        raise
    _warn_left_out(trainer)
    return trainer


def check_same_everywhere(trainer: Trainer) -> None:
    """Check that all ranks train on the same images, with the same versions and precision.

    Raises:
        UsageError: This rank differs from rank 0.
    """
    keys = {"training images": "images", "second data set": "second"}
    images = {
        name: trainer.provenance[key] and " ".join(map(str, trainer.provenance[key].values()))
        for name, key in keys.items()
    }
    versions = {key: version for key, version in experiment.versions().items() if key != "python"}
    ranks = group.current()
    ranks.check_same_everywhere(images | versions | {"precision": trainer.experiment.precision})
    ranks.barrier()  # so that no rank creates files that another one is about to refuse


def finished(run: Run, config: schema.Config) -> int | None:
    """Return the step of a run's last checkpoint if nothing is left to train, else None."""
    newest = checkpoint.newest(run, checkpoint.read)
    if newest is None:
        return None
    step = runs.path_step(newest.path)
    is_last = step == config.train.steps or is_stopped_early(newest.content.state, config)
    is_finished = step > config.train.steps or (is_last and run.is_finished(step))
    return step if is_finished else None


def is_stopped_early(state: checkpoint.State, config: schema.Config) -> bool:
    """Return whether a training that saved this state stops there, because validation found nothing better."""
    return ValidationRecord.from_state(state.get("validation")).is_over(config.train)


def _resumable(name: str, changes: list[str]) -> tuple[Path, schema.Config]:
    """Return the folder and settings of a run to resume; raise UsageError if it is finished."""
    run = runs.find_trainable(name)
    config = run.config(tuple(changes))
    _check_patience(config.train)
    if (step := finished(run, config)) is not None:
        what = f"{run.path} is finished: {step} of {config.train.steps} steps."
        if step > config.train.steps:
            what = f"{run.path} has taken {step} steps already, more than train.steps = {config.train.steps}."
        more = f"train.steps={2 * step}"
        if step < config.train.steps:
            what = f"{run.path} stopped early, at step {step}: validation found nothing better."
            more = f"train.patience={2 * config.train.patience}"
        longer = f"colddiff train --resume {shell_word(run.path)} --set {more}"
        raise UsageError(what, f"Train longer with: {longer}")
    runs.check_free(run.path)
    return run.path, config


def _remove(path: Path, created: list[Path]) -> None:
    """Remove a run that failed to start, and the folders that were created for it."""
    shutil.rmtree(path)
    for folder in created:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _log_initial_weights(run: RunWriter | FollowerRun, weights: initial.InitialWeights | None) -> None:
    """Log which weights the run starts from; warn if a run that starts over had others before."""
    if weights is None:
        return
    if initial.changed_since(run, weights):
        message = f"{weights.run} has other weights than when this run began; starting over from those of now"
        run.event("warning", message=message)
        warnings.warn(ColddiffWarning(message), stacklevel=3)
    run.event("initialized", **weights.table())


def _load_sets(config: schema.Config) -> tuple[TrainingSet, ImageSet]:
    def load() -> tuple[TrainingSet, ImageSet]:
        train_set = from_config.load_training(config)
        return train_set, from_config.load_images(config, "test", train_set.channels)

    return group.current().one_process_first(load)


def _with_counted_classes(config: schema.Config, images: TrainingSet) -> schema.Config:
    """Return the configuration with a number for `model.classes = all`."""
    if config.model.classes != schema.ALL_CLASSES:
        return config
    if not images.has_labels:
        raise UsageError(f"model.classes = all: {config.data.dataset} has no classes.", "Leave it out.")
    count = max(images.class_count, len(images.classes))  # the training images may lack a class of the test images
    return dataclasses.replace(config, model=dataclasses.replace(config.model, classes=count))


def _warn_left_out(trainer: Trainer) -> None:
    """Log and warn about image files that were left out; what was said when they were loaded is only logged."""
    for remark in dict.fromkeys((*trainer.train_set.remarks, *trainer.test_set.remarks)):
        trainer.run.event("warning", message=remark)
    for split, images in (("training", trainer.train_set), ("test", trainer.test_set)):
        if message := from_config.left_out(trainer.experiment.config.data, images, split):
            trainer.run.event("warning", message=message)
            warnings.warn(ColddiffWarning(message), stacklevel=3)
