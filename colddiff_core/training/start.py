"""Start a training: a new run, or a run resumed from its newest checkpoint."""

from __future__ import annotations

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
from colddiff_core.inference import open_run
from colddiff_core.runs import FollowerRun, Run, RunWriter, checkpoint
from colddiff_core.training import step as stepping
from colddiff_core.training.trainer import Tick, Trainer


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
    """Check operator, sampler and data set before any image is read, and return the operator.

    Raises:
        UsageError: One of them is unknown, or they do not fit together.
    """
    operator = experiment.build_operator(config, stride=config.sample.stride)
    datasets.find(config.data.dataset, crop=config.data.crop)
    return operator


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
    path = Path(ranks.broadcast_json(str(path)))  # all ranks got this far, so a failure on one leaves no folder
    run: RunWriter | FollowerRun = runs.FollowerRun(path)
    if ranks.is_first:
        run = runs.create(path, config, experiment.versions(), sets[0].classes)
    try:
        _load_initial_weights(built, run)
        trainer = Trainer(built, *sets, run)
        check_same_everywhere(trainer)
    except BaseException:
        run.close()
        if ranks.is_first:
            shutil.rmtree(path)
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
            _load_initial_weights(built, run)
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
    step = runs.path_step(newest.path) if newest else 0
    is_finished = step > config.train.steps or (step == config.train.steps and run.is_finished(step))
    return step if is_finished else None


def _resumable(name: str, changes: list[str]) -> tuple[Path, schema.Config]:
    """Return the folder and settings of a run to resume; raise UsageError if it is finished."""
    run = runs.find_trainable(name)
    config = run.config(tuple(changes))
    if (step := finished(run, config)) is not None:
        remedy = f"Train longer with: --set train.steps={config.train.steps * 2}"
        raise UsageError(f"{run.path} is finished: {step} of {config.train.steps} steps.", remedy)
    runs.check_free(run.path)
    return run.path, config


def _load_initial_weights(built: experiment.Experiment, run: RunWriter | FollowerRun) -> None:
    """Load the averaged weights of the run that `train.initial` names into the network, and log which they are.

    Raises:
        UsageError: There is no such run, or its network is another one.
    """
    name = built.config.train.initial
    if not name:
        return
    ranks = group.current()
    source = runs.Run(Path(ranks.on_first(lambda: str(runs.find(name).path))))
    weights = open_run.averaged_weights(source)
    try:
        weights.fill(checkpoint.AVERAGE, built.restorer.unet)
    except UsageError:
        what = f"{source.label} has another network: its weights do not fit this configuration."
        remedy = "Give the same --set model.KEY=VALUE as it has, or --from alone, which takes its configuration."
        raise UsageError(what, remedy) from None
    digest = weights.state.get("sha256", {}).get(checkpoint.AVERAGE)
    run.event("initialized", run=source.label, from_step=weights.state["step"], sha256=digest)


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
    """Log and warn about image files that were left out."""
    for split, images in (("training", trainer.train_set), ("test", trainer.test_set)):
        if message := from_config.left_out(trainer.experiment.config.data, images, split):
            trainer.run.event("warning", message=message)
            warnings.warn(ColddiffWarning(message), stacklevel=3)
