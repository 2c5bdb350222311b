"""A trained run, opened for use."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from colddiff_core.config import schema
from colddiff_core.config.schema import Config
from colddiff_core.distributed import group
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.experiment import Experiment, build
from colddiff_core.models import UNet, compiling
from colddiff_core.runs import Run, checkpoint
from colddiff_core.text import shown

MAKING = ("degradation.", "model.", "data.dataset", "data.size", "data.channels")  # settings that make other weights


def open_run(run: Run, device: torch.device, overrides: tuple[str, ...] = ()) -> tuple[Experiment, int]:
    """Return a run's experiment with the averaged weights of its newest checkpoint, and that step.

    A checkpoint that is damaged is passed over with a ColddiffWarning. Of the processes of a job, all of which open the
    run, the first alone reads it: its trainer may be at work. Raises UsageError where no other is left, or there never
    was one, and where the run's configuration is damaged.
    """
    together = group.current()
    read = _newest(run) if together.is_first else None
    content = checkpoint.shared(together, read, (checkpoint.AVERAGE,))
    state, step = content.state, int(content.state["step"])
    config = run.config(overrides)
    for change in _retold(state, run.config()):
        warnings.warn(ColddiffWarning(f"{run.config_file} was changed: the weights are of {change}"), stacklevel=2)
    try:
        experiment = together.one_process_first(lambda: build(config, int(state["channels"]), device, "test"))
    except UsageError as error:  # what an operator admits is known where it is built, not where run.toml is read
        raise UsageError(f"{run.config_file}: {error.what}", error.remedy) from None
    unet = experiment.restorer.unet
    content.fill(checkpoint.AVERAGE, unet)
    assert isinstance(unet, UNet)
    compiling.compile_network(unet.prepare_for_inference(), config.sample.compile)
    return experiment, step


def _newest(run: Run) -> checkpoint.CheckpointFiles:
    found = checkpoint.newest(run, functools.partial(checkpoint.read, names=(checkpoint.AVERAGE,)))
    if found is None:
        raise run.untrained()
    step = found.content.state["step"]
    for path in found.damaged:
        warnings.warn(ColddiffWarning(f"{path} is damaged; the weights of step {step} are used"), stacklevel=3)
    return found.content


def _retold(state: Mapping[str, Any], config: Config) -> list[str]:
    """Return the settings that weights were trained with and that a configuration tells otherwise."""
    trained = state.get("provenance")
    settings = trained.get("settings") if isinstance(trained, Mapping) else None
    if not isinstance(settings, Mapping):
        return []
    return [
        f"{key} = {shown(before)}, not {shown(after)}"
        for key, (before, after) in schema.changes(settings, config.to_table()).items()
        if key.startswith(MAKING) and before is not None and after is not None
    ]
