"""Checkpoints: safetensors and JSON, written beside and renamed, never unpickled."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from colddiff_core.errors import UsageError
from colddiff_core.files import flush, refusals
from colddiff_core.runs import list_checkpoints

Weights = dict[str, Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, each of its weight's shape


@dataclasses.dataclass
class Training:
    """What a training run is made of, as far as it must be saved."""

    network: nn.Module
    average: torch.optim.swa_utils.AveragedModel
    optimizer: torch.optim.Optimizer


def save(folder: Path, step: int, training: Training, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoints/step-NNNNNN, then drop all but the `keep` newest; returns the new one.

    The folder gets its name once every file is on the disk, so a reader never meets half of one.
    Raises MachineError where the disk refuses; older checkpoints stay then.
    """
    target = folder / f"step-{step:06d}"
    draft = folder / f".draft-{uuid.uuid4().hex[:8]}"
    try:
        with refusals(target):
            draft.mkdir(parents=True)
            _write(draft / "model.safetensors", training.network.state_dict())
            _write(draft / "ema.safetensors", training.average.module.state_dict())
            _write(draft / "optimizer.safetensors", _optimizer_tensors(training))
            saved = state | {"step": step, "averaged": int(training.average.n_averaged)}
            (draft / "state.json").write_text(json.dumps(saved, indent=1), encoding="utf-8")
            flush(draft / "state.json")
            flush(draft)
            if target.exists():  # the same step, reached again
                target.rename(folder / f".old-{uuid.uuid4().hex[:8]}")
            draft.rename(target)
            flush(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep]:
        # Out of sight first: a kill amid the deletion must not leave half a checkpoint under its name.
        with contextlib.suppress(OSError):
            old.rename(folder / f".old-{old.name}-{uuid.uuid4().hex[:8]}")
    for abandoned in [*folder.glob(".draft-*"), *folder.glob(".old-*")]:
        shutil.rmtree(abandoned, ignore_errors=True)
    return target


def set_aside(damaged: Path) -> Path:
    """Take a damaged checkpoint out of the way of the ones that follow, without deleting it; returns its new place."""
    aside = damaged.with_name(f".damaged-{damaged.name}-{uuid.uuid4().hex[:8]}")
    with refusals(damaged):
        damaged.rename(aside)
    return aside


def load(path: Path, training: Training) -> dict[str, Any]:
    """Restore network, average and optimizer from a checkpoint; returns its state.

    Raises UsageError for files that are damaged or belong to another network.
    """
    state = read_state(path)
    moments = _read(path / "optimizer.safetensors")
    load_weights(path / "model.safetensors", training.network)
    load_weights(path / "ema.safetensors", training.average.module)
    training.average.n_averaged.fill_(state["averaged"])
    _restore_optimizer(path / "optimizer.safetensors", moments, training)
    return state


def read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state.json; raises UsageError where it is damaged."""
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        whole_numbers = (state["step"], state["averaged"], state["channels"])
        if not all(isinstance(number, int) and number >= 0 for number in whole_numbers) or state["channels"] < 1:
            raise ValueError("a number is not what it can be")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path / 'state.json'} is damaged ({error}).", "Remove that checkpoint; an older one is used then."
        ) from None
    return state


def load_weights(path: Path, network: nn.Module) -> None:
    """Fill a network with the weights of a file; raises UsageError where they do not fit."""
    try:
        network.load_state_dict(_read(path))
    except RuntimeError:
        raise UsageError(f"{path} holds another network's weights.", "Was [model] in run.toml changed?") from None


def _write(path: Path, tensors: Weights) -> None:
    # Channels-last weights are brought to the plain layout, which is all that the format knows.
    safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, str(path))
    flush(path)


def _read(path: Path) -> Weights:
    try:
        # Read, not mapped: a mapped file that is cut short later ends the process.
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(
            f"Cannot read {path} ({error}).", "Remove that checkpoint; an older one is used then."
        ) from None


def _parameter_names(training: Training) -> list[str]:
    return [name for name, _ in training.network.named_parameters()]


def _optimizer_tensors(training: Training) -> Weights:
    names = _parameter_names(training)
    tensors = {}
    for index, entries in training.optimizer.state_dict()["state"].items():
        for kind, value in entries.items():
            tensors[f"{kind}/{names[index]}"] = value
    return tensors


def _restore_optimizer(path: Path, tensors: Weights, training: Training) -> None:
    weights = dict(training.network.named_parameters())
    indices = {name: index for index, name in enumerate(weights)}
    wanted = {f"{kind}/{name}": like.shape for name, like in weights.items() for kind in MOMENTS}
    wanted |= {f"step/{name}": torch.Size() for name in weights}
    if {key: value.shape for key, value in tensors.items()} != wanted:
        raise UsageError(f"{path} holds another optimizer's state.", "Was [model] in run.toml changed?")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        # The fused optimizer walks weights and moments side by side, so they must lie alike in memory.
        laid = torch.empty_like(weights[name]).copy_(value) if kind in MOMENTS else value
        state.setdefault(indices[name], {})[kind] = laid
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": state, "param_groups": groups})
