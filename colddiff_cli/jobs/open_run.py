"""Opening a run for use, with a word where it is not what its owner would expect."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colddiff_core import runs
from colddiff_core.config import schema
from colddiff_core.errors import UsageError

if TYPE_CHECKING:
    from colddiff_core.experiment import Experiment
    from colddiff_core.inference.open_run import TrainedRun


def find(name: str | None) -> runs.Run:
    """Return the run of this name, the newest for None, as `runs.find` does; in all processes of a job the same."""
    from colddiff_core.distributed import group

    return runs.Run(Path(group.current().on_first(lambda: str(runs.find(name).path))))


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
    """Return what images made with a run depend on, but for what is asked of it, as JSON holds it.

    Raises UsageError in a process of a job for which that is something else than for the first one.
    """
    import torch

    from colddiff_core import experiment
    from colddiff_core.distributed import group

    table = built.config.to_table()
    digest = hashlib.blake2b(digest_size=8)
    for weights in built.restorer.unet.state_dict().values():  # not of the file: a trainer may have removed it by now
        digest.update(weights.cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = {
        "run": str(run.path),
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
    """Raise UsageError where no data set of a configuration lies in a folder."""
    from colddiff_core import datasets

    sets = [name for name in (config.data.dataset, config.data.second) if name]
    if all(datasets.required_package(name) for name in sets):
        what = f"--data-dir has no use: {sets[0]} comes with {datasets.required_package(sets[0])}."
        raise UsageError(what, "Leave it out.")
