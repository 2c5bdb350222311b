"""Opening a run for use, with a word where it is not what its owner would expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colddiff_cli.screen import Screen
from colddiff_core import runs

if TYPE_CHECKING:
    from colddiff_core.experiment import Experiment


def open_run(screen: Screen, run: runs.Run, device: str, overrides: tuple[str, ...]) -> tuple[Experiment, int]:
    """Return a run's experiment and the step of its weights; warns where a newer checkpoint is damaged."""
    from colddiff_core import devices, experiment

    built, step = experiment.open_run(run, devices.choose(device), overrides)
    for damaged in run.damaged_checkpoints():
        if runs.path_step(damaged) > step:
            screen.warn(f"{damaged} is damaged; the weights of step {step} are used")
    return built, step
