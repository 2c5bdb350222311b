"""What a run's weights come from: settings, images and operator.

Every checkpoint records it, so that a run that resumes under other conditions says so.
"""

from __future__ import annotations

import hashlib
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
MOST_BYTES = 2**28  # of pixels that the digest covers
TOLERANCE = 2e-3  # of D on pictures in [-1, 1]: far above rounding errors, far below a visible change
MOST_LISTED = 4  # changes that a message names


def of(experiment: Experiment, images: TrainingSet) -> dict[str, Any]:
    """Return what the weights of this training come from, ready for JSON.

    settings: the tables of the configuration; images and second: their count, and a digest of up to 256 MB of pixels;
    operator: pixels of D on a fixed picture, which differ if another version or package computes it differently;
    classes: their count, and a digest of their names in order, if the network is conditioned on them.
    """
    table = experiment.config.to_table()
    return {
        "settings": {section: table[section] for section in SECTIONS},
        "images": _metadata(images),
        "second": _metadata(experiment.second) if experiment.second else None,
        "operator": _traces(experiment),
    } | ({"classes": _class_metadata(images)} if experiment.config.model.classes and images.classes else {})


def changes(saved: Any, now: Mapping[str, Any]) -> list[str]:
    """Return what changed since a checkpoint was saved, in words; what the checkpoint does not record is ignored."""
    if not isinstance(saved, Mapping):
        return []
    traces = _agreement(saved.get("operator"), now["operator"])
    changed = [
        f"{key} was {_word(before)} and is {_word(after)}"
        for key, (before, after) in schema.changes(_table(saved, "settings"), now["settings"]).items()
        if key not in schema.CHANGEABLE and _counts(key, before, after, traces)
    ]
    if traces is False and not any(change.startswith(("degradation.", "data.")) for change in changed):
        changed.append("the operator computes different values with the same settings")
    for key, name in (
        ("images", "training images"),
        ("second", "images of the second data set"),
        ("classes", "classes"),
    ):
        before, after = saved.get(key), now.get(key)
        if isinstance(before, Mapping) and after is not None and before != after:
            one, other = before.get("count"), after["count"]
            changed.append(
                f"there were {_word(one)} {name}, now there are {other}"
                if one != other
                else f"the {other} {name} are different ones"
            )
    return changed


def setting(saved: Any, section: str, key: str) -> Any:
    """Return a setting that a checkpoint records; None if it is missing."""
    return _table(_table(saved if isinstance(saved, Mapping) else {}, "settings"), section).get(key)


def listed(changed: list[str]) -> str:
    """Join changes for a sentence; only the first few are named."""
    more = f" and {len(changed) - MOST_LISTED} more" if len(changed) > MOST_LISTED else ""
    return "; ".join(changed[:MOST_LISTED]) + more


def _metadata(images: TrainingSet) -> dict[str, Any]:
    return {"count": len(images), "digest": images.digest(max(1, MOST_BYTES // max(1, math.prod(images.shape))))}


def _class_metadata(images: TrainingSet) -> dict[str, Any]:
    text = "\n".join(images.classes).encode(errors="surrogatepass")
    return {"count": len(images.classes), "digest": hashlib.blake2b(text, digest_size=8).hexdigest()}


def _traces(experiment: Experiment) -> list[float]:
    """Return D of a fixed picture at three severities: the mean, the spread and a row of pixels of each."""
    operator, (_, height, width) = experiment.operator, experiment.shape
    x0 = torch.rand(1, *experiment.shape, generator=seeds.generator("probe")) * 2 - 1
    x0 = x0.to(experiment.device)
    frozen = experiment.freeze(x0, seeds.image_generators(0, [0]))
    traces: list[float] = []
    for t in sorted({1, (operator.steps + 1) // 2, operator.steps}):
        x_t = operator(x0, t, frozen).float().cpu()
        spread = float(x_t.std()) if x_t.numel() > 1 else 0.0
        traces += [float(x_t.mean()), spread, *x_t[0, 0, height // 2, :: max(1, width // 4)].tolist()]
    return [round(value, 5) for value in traces]


def _agreement(before: Any, after: list[float]) -> bool | None:
    """Return whether two traces of an operator agree; None if the saved one is missing or invalid."""
    # The bound guards against damage: converting a number of a thousand digits to float fails.
    if not isinstance(before, list) or not all(type(value) in (int, float) and abs(value) < 1e6 for value in before):
        return None
    return len(before) == len(after) and all(
        abs(one - other) <= TOLERANCE for one, other in zip(before, after, strict=True)
    )


def _counts(key: str, before: Any, after: Any, traces: bool | None) -> bool:
    """Return whether a changed setting leads to other weights."""
    if key.startswith("degradation.") and key.split(".")[1] not in schema.OWN:
        # Writing out a default, or leaving it out, changes nothing.
        return not traces or (before is not None and after is not None)
    if before is None:  # saved by a version without this key, which did what is now the default
        return after is not None and after != schema.default(key)
    return after is not None


def _table(saved: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = saved.get(key)
    return table if isinstance(table, Mapping) else {}


def _word(value: Any) -> str:
    return "unset" if value is None else value if isinstance(value, str) and value.isalnum() else shown(value)
