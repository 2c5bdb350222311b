"""What a run's weights come from: settings, images, operator. Kept in every checkpoint, so that a run that would go on
under others says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from colddiff_core import seeds
from colddiff_core.config import schema
from colddiff_core.datasets import TrainingSet
from colddiff_core.experiment import Experiment
from colddiff_core.text import shown

SECTIONS = ("data", "degradation", "model", "train")
MOST_BYTES = 2**28  # of pixels that are looked at
TOLERANCE = 2e-3  # of D on pictures in [-1, 1]: far above rounding on any machine, far below what can be seen
TOLD = 4  # changes that are named


def of(experiment: Experiment, images: TrainingSet) -> dict[str, Any]:
    """Return what weights that are trained so come from, as JSON can hold it.

    settings: the tables of the configuration; images and second: how many, and a digest of some 256 MB of them;
    operator: pixels of D on a fixed picture, which tells one of another version, or of another package, from this.
    """
    table = experiment.config.to_table()
    return {
        "settings": {section: table[section] for section in SECTIONS},
        "images": _metadata(images),
        "second": _metadata(experiment.second) if experiment.second else None,
        "operator": _traces(experiment),
    }


def changes(saved: Any, now: Mapping[str, Any]) -> list[str]:
    """Return what is other now than when a checkpoint was saved, in words; what it does not tell of is left out."""
    if not isinstance(saved, Mapping):
        return []
    traces = _agreement(saved.get("operator"), now["operator"])
    told = [
        f"{key} was {_word(before)} and is {_word(after)}"
        for key, (before, after) in schema.changes(_table(saved, "settings"), now["settings"]).items()
        if key not in schema.CHANGEABLE and _counts(key, before, after, traces)
    ]
    if traces is False and not any(change.startswith(("degradation.", "data.")) for change in told):
        told.append("the operator computes otherwise under the same settings")
    for key, name in (("images", "training images"), ("second", "images of the second data set")):
        before, after = saved.get(key), now[key]
        if isinstance(before, Mapping) and after is not None and before != after:
            one, other = before.get("count"), after["count"]
            told.append(
                f"there were {_word(one)} {name} and are {other}" if one != other else f"the {other} {name} are others"
            )
    return told


def listed(told: list[str]) -> str:
    """Return changes as one sentence's part."""
    more = f" and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return "; ".join(told[:TOLD]) + more


def _metadata(images: TrainingSet) -> dict[str, Any]:
    return {"count": len(images), "digest": images.digest(max(1, MOST_BYTES // max(1, math.prod(images.shape))))}


def _traces(experiment: Experiment) -> list[float]:
    """Return D of a fixed picture at three severities: its mean, its spread and a row of pixels at each."""
    operator, side = experiment.operator, experiment.config.data.size
    x0 = torch.rand(1, experiment.channels, side, side, generator=seeds.generator("probe")) * 2 - 1
    x0 = x0.to(experiment.device)
    frozen = experiment.freeze(x0, seeds.image_generators(0, [0]))
    found: list[float] = []
    for t in sorted({1, (operator.steps + 1) // 2, operator.steps}):
        x_t = operator(x0, t, frozen).float().cpu()
        found += [float(x_t.mean()), float(x_t.std()), *x_t[0, 0, side // 2, :: max(1, side // 4)].tolist()]
    return [round(value, 5) for value in found]


def _agreement(before: Any, after: list[float]) -> bool | None:
    """Tell whether an operator left the same traces; None where those of before are not known."""
    # Not by isinstance alone: a number of a thousand digits is none of ours.
    if not isinstance(before, list) or not all(type(value) in (int, float) and abs(value) < 1e6 for value in before):
        return None
    return len(before) == len(after) and all(
        abs(one - other) <= TOLERANCE for one, other in zip(before, after, strict=True)
    )


def _counts(key: str, before: Any, after: Any, traces: bool | None) -> bool:
    """Tell whether a setting that differs makes other weights."""
    if key.startswith("degradation.") and key.split(".")[1] not in schema.OWN:
        # A default that was written out, or left out, changes nothing.
        return not traces or (before is not None and after is not None)
    return before is not None and after is not None  # else one of the two programs did not know the key


def _table(saved: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = saved.get(key)
    return found if isinstance(found, Mapping) else {}


def _word(value: Any) -> str:
    return "unset" if value is None else value if isinstance(value, str) and value.isalnum() else shown(value)
