"""Start a training from another run's weights: `train.initial`, as `--from` names it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from colddiff_core import runs
from colddiff_core.config.schema import Config
from colddiff_core.distributed import group
from colddiff_core.errors import UsageError
from colddiff_core.experiment import Experiment
from colddiff_core.inference import open_run
from colddiff_core.runs import Run, checkpoint

NETWORK = ("inputs", "block", "width", "multipliers", "attention", "classes")  # settings of [model] that shape weights


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Which weights a training starts from: the run, the step of its checkpoint and the SHA-256 of the file."""

    run: str
    from_step: int
    sha256: str | None

    def table(self) -> dict[str, Any]:
        """Return them as the details of an event."""
        return dataclasses.asdict(self)


def check(config: Config) -> None:
    """Check that the network of `train.initial` is that of this configuration; reads no weights.

    Raises:
        UsageError: There is no such run, or its network is another one.
    """
    if not config.train.initial:
        return
    source = find(config)
    theirs, ours = source.config().model, config.model
    different = [key for key in NETWORK if getattr(theirs, key) != getattr(ours, key)]
    if different:
        key = different[0]
        more = f", and {len(different) - 1} more" if different[1:] else ""
        here = f"model.{key} is {_written(getattr(theirs, key))} there and {_written(getattr(ours, key))} here{more}"
        changes = " ".join(f"--set 'model.{key}={_written(getattr(theirs, key))}'" for key in different)
        remedy = f"Train with its network: {changes}. Or use --from alone, which takes its configuration."
        raise UsageError(f"{source.label} has another network: {here}.", remedy)


def find(config: Config) -> Run:
    """Return the run that `train.initial` names; raises UsageError if there is none."""
    try:
        return runs.find(config.train.initial)
    except UsageError as error:
        what = f"train.initial, the run to start from: {error.what}"
        raise UsageError(what, error.remedy) from None


def load(built: Experiment) -> InitialWeights | None:
    """Load the averaged weights of the run that `train.initial` names into the network; None without it.

    All processes of a job must call this; only the first reads the run's folder.

    Raises:
        UsageError: There is no such run, all its checkpoints are damaged, or its network is another one.
    """
    if not built.config.train.initial:
        return None
    source = Run(Path(group.current().on_first(lambda: str(find(built.config).path))))
    weights = open_run.averaged_weights(source)
    channels = weights.state["channels"]
    if channels != built.channels:
        what = f"{source.label} was trained on images with {channels} channels, these have {built.channels}."
        remedy = f"Use data.channels={channels}." if channels in (1, 3) else "Train without --from."
        raise UsageError(what.replace(" 1 channels", " 1 channel"), remedy)
    try:
        weights.fill(checkpoint.AVERAGE, built.restorer.unet)
    except UsageError:
        what = f"{source.label} has another network: its weights do not fit this configuration."
        remedy = "Give the same --set model.KEY=VALUE as it has, or --from alone, which takes its configuration."
        raise UsageError(what, remedy) from None
    digest = weights.state.get("sha256", {}).get(checkpoint.AVERAGE)
    return InitialWeights(source.label, int(weights.state["step"]), digest)


def changed_since(run: Run, weights: InitialWeights) -> bool:
    """Return whether a run that starts over began from other weights before."""
    events = [event for event in run.events() if event.get("event") == "initialized"]
    return bool(events) and events[-1].get("sha256") not in (None, weights.sha256)


def _written(value: Any) -> str:
    """Return a setting as people write it after `--set`."""
    return value if isinstance(value, str) else json.dumps(value)
