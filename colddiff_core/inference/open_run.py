"""Open a trained run for use."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from colddiff_core import devices
from colddiff_core.config import schema
from colddiff_core.config.schema import Config
from colddiff_core.distributed import group
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.experiment import Experiment, build
from colddiff_core.models import UNet, compiling
from colddiff_core.runs import Run, checkpoint, find, pretrained
from colddiff_core.text import shown

WEIGHT_SETTINGS = ("degradation.", "model.", "data.dataset", "data.size", "data.channels")  # the weights depend on them


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run with its experiment, and the step of its weights."""

    run: Run
    experiment: Experiment
    step: int


def open_run(
    run: Run | str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    overrides: Sequence[str] = (),
) -> TrainedRun:
    """Load a run with the averaged weights of its newest checkpoint, or of the best one if training validated.

    Damaged checkpoints are skipped with a ColddiffWarning. All processes of a job must call this; only rank 0 reads the
    run's folder.

    Args:
        run: The run, its path or name, or "pretrained:NAME"; None for the newest one.
        overrides: Settings to change, as `section.key=value`.

    Raises:
        UsageError: The run does not exist, is damaged or has no checkpoint.
    """
    chosen = devices.choose(str(device))
    group.join(chosen)
    if not isinstance(run, Run):
        name = None if run is None else str(run)
        run = Run(Path(group.current().on_first(lambda: str(find(name).path))))
    return _load(run, chosen, tuple(overrides))


def _load(run: Run, device: torch.device, overrides: tuple[str, ...]) -> TrainedRun:
    ranks = group.current()
    content = averaged_weights(run)
    state, step = content.state, int(content.state["step"])
    config = run.config(overrides)
    for change in _changed_settings(state, run.config()):
        warnings.warn(
            ColddiffWarning(f"{run.config_file} was changed: the weights were trained with {change}"), stacklevel=3
        )
    try:
        experiment = ranks.one_process_first(lambda: build(config, int(state["channels"]), device, "test"))
    except UsageError as error:  # operators check their parameters when built, not when run.toml is read
        raise UsageError(f"{run.config_file}: {error.what}", error.remedy) from None
    unet = experiment.restorer.unet
    content.fill(checkpoint.AVERAGE, unet)
    assert isinstance(unet, UNet)
    unet.prepare_for_inference()
    if config.sample.compile != compiling.AUTO:  # "auto" is decided in `Experiment.compile_for`
        compiling.compile_network(unet, config.sample.compile)
    return TrainedRun(run, experiment, step)


def averaged_weights(run: Run) -> checkpoint.CheckpointFiles:
    """Return the averaged weights that a run is used with, read by rank 0 and shared with the others.

    They are those of the newest checkpoint, or, with `train.validate_every` and `train.keep_best`, of the best one.

    Raises:
        UsageError: There is none, or all are damaged; a pretrained run is not what was published.
    """
    ranks = group.current()
    read = _newest(run) if ranks.is_first else None
    return checkpoint.shared(ranks, read, (checkpoint.AVERAGE,))


def _newest(run: Run) -> checkpoint.CheckpointFiles:
    if run.is_pretrained:
        pretrained.verify(run.path)
    newest = checkpoint.newest(run, functools.partial(checkpoint.read, names=(checkpoint.AVERAGE,)))
    if newest is None:
        raise run.untrained()
    step = newest.content.state["step"]
    for path in newest.damaged:
        warnings.warn(ColddiffWarning(f"{path} is damaged; using the weights of step {step}"), stacklevel=4)
    return _best(run, newest.content) or newest.content


def _best(run: Run, newest: checkpoint.CheckpointFiles) -> checkpoint.CheckpointFiles | None:
    """Return the checkpoint that validation found best if it is another one and intact, and say that it is used."""
    saved = newest.state.get("validation")
    step = saved.get("best_step") if isinstance(saved, Mapping) else None
    if type(step) is not int or not 0 < step < newest.state["step"] or not run.config().train.keep_best:
        return None
    try:
        best = checkpoint.read(run.checkpoint(step), (checkpoint.AVERAGE,))
    except checkpoint.DamagedError as error:
        message = f"{error.what.rstrip('.')}: using step {newest.state['step']}, not the best one by validation"
        warnings.warn(ColddiffWarning(message), stacklevel=5)
        return None
    message = f"using step {step}, the best of {run.label} by validation, not step {newest.state['step']}, the newest"
    warnings.warn(ColddiffWarning(message), stacklevel=5)
    return best


def _changed_settings(state: Mapping[str, Any], config: Config) -> list[str]:
    """Return the settings that differ between a configuration and the weights' training, in words."""
    trained = state.get("provenance")
    settings = trained.get("settings") if isinstance(trained, Mapping) else None
    if not isinstance(settings, Mapping):
        return []
    return [
        f"{key} = {shown(before)}, not {shown(after)}"
        for key, (before, after) in schema.changes(settings, config.to_table()).items()
        if key.startswith(WEIGHT_SETTINGS) and before is not None and after is not None
    ]
