"""Opening a run for use, with a word where it is not what its owner would expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colddiff_cli.screen import Screen
from colddiff_core import presets, runs
from colddiff_core.errors import UsageError

if TYPE_CHECKING:
    from colddiff_core.experiment import Experiment


def open_run(screen: Screen, run: runs.Run, device: str, overrides: tuple[str, ...]) -> tuple[Experiment, int]:
    """Return a run's experiment and the step of its weights; a newer checkpoint that is damaged is told by a warning.

    Raises UsageError where the overrides name a folder, by --data-dir, that nothing would be read from.
    """
    from colddiff_core import devices, experiment

    if any(change.startswith("data.directory=") for change in overrides):
        check_data_dir(run.config(overrides))
    return experiment.open_run(run, devices.choose(device), overrides)


def check_data_dir(config: presets.Config) -> None:
    """Raise UsageError where no data set of a configuration lies in a folder."""
    from colddiff_core import datasets

    sets = [name for name in (config.data.dataset, config.data.second) if name]
    if all(datasets.package_of(name) for name in sets):
        what = f"--data-dir has no use: {sets[0]} comes with {datasets.package_of(sets[0])}."
        raise UsageError(what, "Leave it out.")
