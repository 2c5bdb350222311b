"""Checkpoints: safetensors and JSON, written to a draft and renamed, never unpickled."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
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
from torch.nn.utils import get_total_norm

from colddiff_core import tensor_files
from colddiff_core.config.fields import LARGEST
from colddiff_core.distributed.group import Group
from colddiff_core.errors import UsageError
from colddiff_core.files import flush, parse_json, read_ordinary, refusals
from colddiff_core.runs import MOST_HEADER_BYTES, TENSOR_FILES, Run, list_checkpoints, path_step, remove_abandoned

MODEL, AVERAGE, OPTIMIZER = TENSOR_FILES
Weights = dict[str, Tensor]
State = dict[str, Any]
T = TypeVar("T")
REMEDY = "Delete that checkpoint, and the one before it is used."
MOST_CHANNELS = 64
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's, each of the same shape as its weight


class DamagedError(UsageError):
    """A checkpoint whose files are not what was written; use an older one."""


@dataclasses.dataclass
class TrainingState:
    """The parts of a training that are saved; only the process that saves them has an average."""

    network: nn.Module
    average: torch.optim.swa_utils.AveragedModel | None
    optimizer: torch.optim.Optimizer

    def tensors(self) -> dict[str, Weights]:
        """Return the tensors of a checkpoint, by file and name, on their device; not copies."""
        average = {AVERAGE: self.average.module.state_dict()} if self.average else {}
        return {MODEL: self.network.state_dict(), **average, OPTIMIZER: _optimizer_tensors(self)}

    def is_finite(self) -> bool:
        """Return whether every number of a checkpoint would be finite; waits for a GPU."""
        return _are_finite(tensor for weights in self.tensors().values() for tensor in weights.values())


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint(Generic[T]):
    """The newest readable checkpoint, its content, and the newer ones, which are damaged."""

    path: Path
    content: T
    damaged: Mapping[Path, DamagedError]


def newest(run: Run, read: Callable[[Path], T], *, before: int | None = None) -> LoadedCheckpoint[T] | None:
    """Read a run's newest checkpoint that is not damaged; return None if there are no checkpoints.

    Args:
        run: the run.
        read: loads a checkpoint, or raises DamagedError.
        before: use only checkpoints of earlier steps.

    Raises:
        DamagedError: every checkpoint is damaged.
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
            if os.path.lexists(left[-1]):  # otherwise its trainer replaced it with newer ones meanwhile
                damaged[left[-1]] = error
    if not damaged:
        return None
    first = next(iter(damaged.values()))
    raise DamagedError(f"{first.what.rstrip('.')}, and no other checkpoint is intact.", "Train the run again.")


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Weights],
    state: State,
    keep: int | None,
    *,
    best: int | None = None,
) -> Path:
    """Write checkpoints/step-NNNNNN, delete all but the `keep` newest, if given, and return the new one.

    The checkpoint of step `best` is not deleted. The folder gets its name once every file is on the disk, so readers
    never see half a checkpoint.

    Args:
        folder: the run's checkpoints/.
        step: the step of the checkpoint.
        tensors: by file and name, as from `TrainingState.tensors`.
        state: the rest of state.json, with the keys that `read_state` requires.
        keep: how many of the newest checkpoints to keep; None for all.
        best: a step whose checkpoint to keep.

    Raises:
        MachineError: the disk refused; older checkpoints stay.
    """
    target = folder / f"step-{step:06d}"
    draft = folder / f".draft-{uuid.uuid4().hex[:8]}"
    try:
        with refusals(target):
            draft.mkdir(parents=True)
            digests = {name: tensor_files.write(tensors[name], draft / name) for name in TENSOR_FILES}
            saved = state | {"step": step, "sha256": digests}
            saved["digest"] = digest(saved)
            (draft / "state.json").write_text(json.dumps(saved, indent=1), encoding="utf-8")
            flush(draft / "state.json")
            flush(draft)
            if target.exists():  # the same step again
                target.rename(folder / f".old-{uuid.uuid4().hex[:8]}")
            draft.rename(target)
            flush(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep] if keep else ():
        if path_step(old) == best:
            continue
        # Renamed first: a kill during the deletion must not leave half a checkpoint under its name.
        with contextlib.suppress(OSError):
            old.rename(folder / f".old-{old.name}-{uuid.uuid4().hex[:8]}")
    remove_abandoned(folder)
    return target


def set_aside(path: Path, why: str = "damaged") -> Path:
    """Rename a checkpoint so that it is not used again, and return its new path."""
    aside = path.with_name(f".{why}-{path.name}-{uuid.uuid4().hex[:8]}")
    with refusals(path):
        path.rename(aside)
    return aside


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's files, read and verified."""

    path: Path
    state: State
    tensors: Mapping[str, Weights]

    def restore(self, training: TrainingState) -> None:
        """Load network, average (if any) and optimizer; raises UsageError if they belong to another network."""
        self.fill(MODEL, training.network)
        if training.average is not None:
            self.fill(AVERAGE, training.average.module)
            training.average.n_averaged.fill_(self.state["averaged"])
        _restore_optimizer(self.path / OPTIMIZER, self.tensors[OPTIMIZER], training)

    def fill(self, name: str, network: nn.Module) -> None:
        """Load one file's weights into a network; raises UsageError if they do not fit."""
        try:
            network.load_state_dict(self.tensors[name])
        except RuntimeError:
            what = f"{self.path / name} has weights of another network."
            raise UsageError(what, "Check whether [model] in run.toml was changed.") from None


def shared(ranks: Group, read: CheckpointFiles | None, names: tuple[str, ...] = (MODEL, OPTIMIZER)) -> CheckpointFiles:
    """Share a checkpoint that rank 0 has read; the other processes get only the files in `names`."""
    if ranks.is_alone:
        assert read is not None
        return read
    path, state = ranks.broadcast_json([str(read.path), read.state] if read else None)
    tensors = {name: dict(ranks.broadcast_tensors(read.tensors[name] if read else {})) for name in names}
    return read or CheckpointFiles(Path(path), state, tensors)


def read(path: Path, names: tuple[str, ...] = TENSOR_FILES) -> CheckpointFiles:
    """Return the state of a checkpoint and the tensors of the files in `names`.

    Raises:
        DamagedError: a file is missing, cut short, changed, or has numbers that are not finite.
        UsageError: a file cannot be read.
    """
    state = read_state(path)
    return CheckpointFiles(path, state, {name: _read(path / name, state.get("sha256", {}).get(name)) for name in names})


def read_state(path: Path) -> State:
    """Return a checkpoint's state.json; raises the same errors as `read`."""
    try:
        state: State = parse_json(_content(path / "state.json"))
        whole_numbers = (state["step"], state["averaged"], state["channels"])
        if not all(type(number) is int and 0 <= number <= LARGEST for number in whole_numbers):
            raise ValueError("a number is out of range")
        if not 1 <= state["channels"] <= MOST_CHANNELS:
            raise ValueError(f"{state['channels']} channels")
        if ("sha256" in state or "digest" in state) and state.get("digest") != digest(
            state
        ):  # old checkpoints have neither
            raise ValueError("not what was written")
        if path_step(path) != state["step"]:
            raise ValueError(f"it belongs to step {state['step']}")
        if not isinstance(state.get("sha256", {}), dict):
            raise ValueError("sha256 is not a table")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / 'state.json'} is damaged ({error}).", REMEDY) from None
    return state


def digest(state: State) -> str:
    """Return the SHA-256 of a state without its own digest."""
    rest = {key: value for key, value in state.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read(path: Path, sha256: object) -> Weights:
    """Return a file's tensors; old checkpoints have no digest (None)."""
    content = _content(path)
    # A failing disk may return content that is valid but not what was written.
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedError(f"{path} is damaged (not the bytes that were written).", REMEDY)
    if int.from_bytes(content[:8], "little") > MOST_HEADER_BYTES:  # a million empty tensors take minutes
        raise DamagedError(f"{path} is damaged (its header is too large).", REMEDY)
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise DamagedError(f"{path} is damaged ({error}).", REMEDY) from None
    if not all(tensor.dtype in tensor_files.KINDS for tensor in tensors.values()):
        raise DamagedError(f"{path} is damaged (unexpected dtype).", REMEDY)
    if not _are_finite(tensors.values()):
        raise DamagedError(f"{path} is damaged (numbers that are not finite).", REMEDY)
    return tensors


def _content(path: Path) -> bytes:
    try:
        return read_ordinary(path)  # not memory-mapped: the process would crash if the file were cut short later
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{path} is damaged ({error.strerror}).", REMEDY) from None
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", "Check its permissions and the disk.") from None


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    of_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            of_device.setdefault(tensor.device, []).append(tensor)
    # On the CPU, one check per tensor takes a tenth of the time of the norm below.
    for tensor in of_device.pop(torch.device("cpu"), []):
        if not all(math.isfinite(end) for end in torch.aminmax(tensor)):  # nan if any number is
            return False
    # The largest magnitude is nan or inf if any number is. One call for all tensors, one wait per device.
    return all(bool(get_total_norm(some, torch.inf).isfinite()) for some in of_device.values())


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
    expected = {f"{kind}/{name}": like.shape for name, like in parameters.items() for kind in MOMENTS}
    expected |= {f"step/{name}": torch.Size() for name in parameters}
    if {key: value.shape for key, value in tensors.items()} != expected:
        raise UsageError(
            f"{path} has the state of another optimizer.", "Check whether [model] in run.toml was changed."
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        # The fused optimizer needs weights and moments in the same memory layout.
        entry = torch.empty_like(parameters[name]).copy_(value) if kind in MOMENTS else value
        state.setdefault(indices[name], {})[kind] = entry
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": state, "param_groups": groups})
