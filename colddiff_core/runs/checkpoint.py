"""Checkpoints: safetensors and JSON, written beside and renamed, never unpickled."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from colddiff_core import tensor_files
from colddiff_core.config.fields import LARGEST
from colddiff_core.distributed.group import Group
from colddiff_core.errors import UsageError
from colddiff_core.files import flush, parse_json, read_ordinary, refusals
from colddiff_core.runs import TENSOR_FILES, Run, list_checkpoints, path_step

MODEL, AVERAGE, OPTIMIZER = TENSOR_FILES
Weights = dict[str, Tensor]
State = dict[str, Any]
T = TypeVar("T")
REMEDY = "Remove that checkpoint; an older one is used then."
MOST_CHANNELS = 64
KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, each of its weight's shape


class DamagedError(UsageError):
    """A checkpoint whose files are not as they were written: an older one is to be used."""


@dataclasses.dataclass
class TrainingState:
    """What a training run is made of, as far as it must be saved; only the process that saves it has an average."""

    network: nn.Module
    average: torch.optim.swa_utils.AveragedModel | None
    optimizer: torch.optim.Optimizer

    def is_finite(self) -> bool:
        """Tell whether every number that a checkpoint would hold is finite; waits for a GPU."""
        held = [*self.network.state_dict().values(), *_optimizer_tensors(self).values()]
        held += self.average.module.state_dict().values() if self.average else []
        return _are_finite(held)


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint(Generic[T]):
    """The newest checkpoint that could be read, what was read of it, and the newer ones that are damaged."""

    path: Path
    content: T
    damaged: Mapping[Path, DamagedError]


def newest(run: Run, read: Callable[[Path], T], *, before: int | None = None) -> LoadedCheckpoint[T] | None:
    """Return what `read` makes of a run's newest checkpoint that is not damaged; None where there is none.

    before: only checkpoints of earlier steps than this. Raises DamagedError where all are, and what else `read` raises.
    """
    damaged: dict[Path, DamagedError] = {}
    while True:
        left = [path for path in list_checkpoints(run.path / "checkpoints") if path not in damaged]
        left = [path for path in left if before is None or path_step(path) < before]
        if not left:
            break
        try:
            return LoadedCheckpoint(left[-1], read(left[-1]), damaged)
        except DamagedError as error:
            if os.path.lexists(left[-1]):  # else its trainer took it away meanwhile, for there are newer ones
                damaged[left[-1]] = error
    if not damaged:
        return None
    first = next(iter(damaged.values()))
    raise DamagedError(f"{first.what.rstrip('.')}, and no other checkpoint is whole.", "Train the run anew.")


def save(folder: Path, step: int, training: TrainingState, state: State, keep: int | None) -> Path:
    """Write checkpoints/step-NNNNNN, then drop all but the `keep` newest, if given; returns the new one.

    The folder gets its name once every file is on the disk, so a reader never meets half of one.
    Raises MachineError where the disk refuses; older checkpoints stay then.
    """
    assert training.average is not None
    target = folder / f"step-{step:06d}"
    draft = folder / f".draft-{uuid.uuid4().hex[:8]}"
    try:
        with refusals(target):
            draft.mkdir(parents=True)
            digests = {
                MODEL: tensor_files.write(training.network.state_dict(), draft / MODEL),
                AVERAGE: tensor_files.write(training.average.module.state_dict(), draft / AVERAGE),
                OPTIMIZER: tensor_files.write(_optimizer_tensors(training), draft / OPTIMIZER),
            }
            saved = state | {"step": step, "averaged": int(training.average.n_averaged), "sha256": digests}
            saved["digest"] = digest(saved)
            (draft / "state.json").write_text(json.dumps(saved, indent=1), encoding="utf-8")
            flush(draft / "state.json")
            flush(draft)
            if target.exists():  # the same step, reached again
                target.rename(folder / f".old-{uuid.uuid4().hex[:8]}")
            draft.rename(target)
            flush(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep] if keep else ():
        # Out of sight first: a kill amid the deletion must not leave half a checkpoint under its name.
        with contextlib.suppress(OSError):
            old.rename(folder / f".old-{old.name}-{uuid.uuid4().hex[:8]}")
    for abandoned in [*folder.glob(".draft-*"), *folder.glob(".old-*")]:
        shutil.rmtree(abandoned, ignore_errors=True)
    return target


def set_aside(path: Path, why: str = "damaged") -> Path:
    """Take a checkpoint out of the way of the ones that follow, without deleting it; returns its new place."""
    aside = path.with_name(f".{why}-{path.name}-{uuid.uuid4().hex[:8]}")
    with refusals(path):
        path.rename(aside)
    return aside


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's files, read and found to be as they were written."""

    path: Path
    state: State
    tensors: Mapping[str, Weights]

    def restore(self, training: TrainingState) -> None:
        """Fill network, average, if any, and optimizer; raises UsageError where they are of another network."""
        self.fill(MODEL, training.network)
        if training.average is not None:
            self.fill(AVERAGE, training.average.module)
            training.average.n_averaged.fill_(self.state["averaged"])
        _restore_optimizer(self.path / OPTIMIZER, self.tensors[OPTIMIZER], training)

    def fill(self, name: str, network: nn.Module) -> None:
        """Fill a network with the weights of one file; raises UsageError where they do not fit."""
        try:
            network.load_state_dict(self.tensors[name])
        except RuntimeError:
            what = f"{self.path / name} holds another network's weights."
            raise UsageError(what, "Was [model] in run.toml changed?") from None


def shared(ranks: Group, read: CheckpointFiles | None, names: tuple[str, ...] = (MODEL, OPTIMIZER)) -> CheckpointFiles:
    """Return a checkpoint that the first process has read to all of them; the others get those files of it alone."""
    if ranks.is_alone:
        assert read is not None
        return read
    told = ranks.broadcast_json([str(read.path), read.state] if read else None)
    tensors = {name: ranks.broadcast_tensors(read.tensors[name] if read else {}) for name in names}
    return read or CheckpointFiles(Path(told[0]), told[1], {name: dict(found) for name, found in tensors.items()})


def read(path: Path, names: tuple[str, ...] = TENSOR_FILES) -> CheckpointFiles:
    """Return the state of a checkpoint and the tensors of some of its files.

    Raises DamagedError for files that are cut short, not what was written, or hold numbers that are not finite, and
    UsageError where they may not be read.
    """
    state = read_state(path)
    return CheckpointFiles(path, state, {name: _read(path / name, state.get("sha256", {}).get(name)) for name in names})


def read_state(path: Path) -> State:
    """Return a checkpoint's state.json; raises as `read` does."""
    try:
        state: State = parse_json(_content(path / "state.json"))
        whole_numbers = (state["step"], state["averaged"], state["channels"])
        if not all(type(number) is int and 0 <= number <= LARGEST for number in whole_numbers):
            raise ValueError("a number is not what it can be")
        if not 1 <= state["channels"] <= MOST_CHANNELS:
            raise ValueError(f"{state['channels']} channels")
        if ("sha256" in state or "digest" in state) and state.get("digest") != digest(state):  # older ones have neither
            raise ValueError("not what was written")
        if path_step(path) != state["step"]:
            raise ValueError(f"it is of step {state['step']}")
        if not isinstance(state.get("sha256", {}), dict):
            raise ValueError("sha256 is no table")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / 'state.json'} is damaged ({error}).", REMEDY) from None
    return state


def digest(state: State) -> str:
    """Return the SHA-256 of all that a state says beside its own digest."""
    rest = {key: value for key, value in state.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read(path: Path, sha256: object) -> Weights:
    """Return a file's tensors; a digest of None is that of a checkpoint from before there were any."""
    content = _content(path)
    # A disk that fails may give back what is long enough and reads well, and is not what was written.
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedError(f"{path} is damaged (not the bytes that were written).", REMEDY)
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError) as error:  # the latter for a kind of number that torch has not
        raise DamagedError(f"{path} is damaged ({error}).", REMEDY) from None
    if not all(tensor.dtype in KINDS for tensor in tensors.values()):
        raise DamagedError(f"{path} is damaged (numbers of another kind).", REMEDY)
    if not _are_finite(tensors.values()):
        raise DamagedError(f"{path} is damaged (numbers that are not finite).", REMEDY)
    return tensors


def _content(path: Path) -> bytes:
    try:
        return read_ordinary(path)  # not mapped: a mapped file that is cut short later ends the process
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{path} is damaged ({error.strerror}).", REMEDY) from None
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", "Check its permissions and the disk.") from None


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    flags: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        flags.setdefault(tensor.device, []).append(tensor.isfinite().all())
    return all(bool(torch.stack(found).all()) for found in flags.values())  # one wait for a device


def _parameter_names(training: TrainingState) -> list[str]:
    return [name for name, _ in training.network.named_parameters()]


def _optimizer_tensors(training: TrainingState) -> Weights:
    names = _parameter_names(training)
    tensors = {}
    for index, entries in training.optimizer.state_dict()["state"].items():
        for kind, value in entries.items():
            tensors[f"{kind}/{names[index]}"] = value
    return tensors


def _restore_optimizer(path: Path, tensors: Weights, training: TrainingState) -> None:
    parameters = dict(training.network.named_parameters())
    indices = {name: index for index, name in enumerate(parameters)}
    wanted = {f"{kind}/{name}": like.shape for name, like in parameters.items() for kind in MOMENTS}
    wanted |= {f"step/{name}": torch.Size() for name in parameters}
    if {key: value.shape for key, value in tensors.items()} != wanted:
        raise UsageError(f"{path} holds another optimizer's state.", "Was [model] in run.toml changed?")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        # The fused optimizer walks weights and moments side by side, so they must lie alike in memory.
        laid = torch.empty_like(parameters[name]).copy_(value) if kind in MOMENTS else value
        state.setdefault(indices[name], {})[kind] = laid
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": state, "param_groups": groups})
