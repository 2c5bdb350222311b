"""Find and open runs for commands."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colddiff_core import runs
from colddiff_core.config import schema
from colddiff_core.errors import UsageError

RESTORES, GENERATES = "digits-blur", "digits-blur-generate"  # pretrained runs whose data comes with a package

if TYPE_CHECKING:
    from colddiff_cli.console.screen import Screen
    from colddiff_core.experiment import Experiment
    from colddiff_core.inference.open_run import TrainedRun


def find(screen: Screen, name: str | None, fallback: str) -> runs.Run:
    """Return the run with this name, or the newest, the same on all ranks; see `runs.find`.

    Without any run it is the pretrained one called `fallback`, and the screen says so.

    Raises:
        UsageError: There is no such run.
    """
    from colddiff_core.distributed import group

    run = runs.Run(Path(group.current().on_first(lambda: str(runs.find(name, fallback=fallback).path))))
    if name is None and run.is_pretrained:
        screen.say(f"No runs in {runs.ROOT}/, so this uses {run.label}: {run.config().description}")
    return run


def open_run(run: runs.Run, device: str, overrides: tuple[str, ...]) -> TrainedRun:
    """Load a run, after checking --data-dir.

    Raises:
        UsageError: The run's data sets come with a package, so --data-dir has no effect.
    """
    from colddiff_core.inference import open_run

    if any(change.startswith("data.directory=") for change in overrides):
        check_data_dir(run.config(overrides))
    return open_run.open_run(run, device=device, overrides=overrides)


def described(run: runs.Run, built: Experiment, step: int) -> dict[str, Any]:
    """Return everything about a run that its images depend on, ready for JSON. Options are not included.

    Raises:
        UsageError: This rank differs from rank 0.
    """
    import torch

    from colddiff_core import experiment
    from colddiff_core.distributed import group

    table = built.config.to_table()
    digest = hashlib.blake2b(digest_size=8)
    for weights in built.restorer.unet.state_dict().values():  # the file may have been removed by a trainer
        digest.update(weights.cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = {
        "run": run.label,
        "step": step,
        "weights": digest.hexdigest(),
        "degradation": table["degradation"],
        "data": table["data"],
        "precision": built.precision,
        "compile": built.config.sample.compile,
        "device": built.device.type,
        "versions": experiment.versions(),
    }
    group.current().check_same_everywhere(settings)
    return settings


def check_data_dir(config: schema.Config) -> None:
    """Check that --data-dir is of use.

    Raises:
        UsageError: All data sets of the configuration come with packages.
    """
    from colddiff_core import datasets

    sets = [name for name in (config.data.dataset, config.data.second) if name]
    if all(datasets.required_package(name) for name in sets):
        what = f"--data-dir has no effect: {sets[0]} comes with {datasets.required_package(sets[0])}."
        raise UsageError(what, "Leave it out.")
