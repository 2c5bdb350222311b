"""Save checkpoints while training goes on: copy the weights, and write the copy in a thread."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from colddiff_core import files
from colddiff_core.errors import ColddiffWarning, MachineError, is_out_of_memory
from colddiff_core.runs import HEARTBEAT_SECONDS, FollowerRun, RunWriter
from colddiff_core.runs.checkpoint import Weights
from colddiff_core.training.background import BackgroundWork
from colddiff_core.training.recovery import TrainingCheckpoints
from colddiff_core.training.validation import ValidationRecord

# The copy is cut from pieces of this size, a power of two because torch rounds pinned memory up to one; few pieces are
# fast to allocate.
PIECE_BYTES = 1 << 26
ALIGNMENT = 64
NO_ROOM = "not enough memory for a copy of the weights, so training waits while a checkpoint is written"


class CheckpointSaver:
    """Saves checkpoints and logs each as an event once it is on the disk.

    Scheduled ones are written one at a time in a thread while training goes on. Everything but the writing, such as
    logging events, happens in the training's own thread, when it calls `hear`.
    """

    def __init__(
        self, checkpoints: TrainingCheckpoints, run: RunWriter | FollowerRun, warn: Callable[[str], None]
    ) -> None:
        """No thread starts before the first checkpoint; `warn` receives a message for each refused by the disk."""
        self.checkpoints, self.run, self._warn = checkpoints, run, warn
        self._memory = SnapshotMemory(checkpoints.experiment.device)
        self._pending: _Pending | None = None
        self._has_noted_memory = False
        run.at_close(functools.partial(self.hear, wait=True))

    @property
    def is_on_disk(self) -> bool:
        """Whether the pending checkpoint is on the disk, so that `hear` would log it and raise nothing."""
        return self._pending is not None and self._pending.work.has_ended and self._pending.work.error is None

    def save(self, step: int, details: Mapping[str, Any]) -> None:
        """Save this step now and log it, with `details` in the event.

        Raises:
            MachineError: A weight is not finite, or the disk refuses.
        """
        self.hear(wait=True)
        self.checkpoints.save(step)
        self.run.event("checkpoint", step=step, **details)

    def due(self, step: int, *, is_last: bool) -> None:
        """Save a scheduled checkpoint, whose weights are finite, in the background; wait for it at the last step.

        Nothing is saved right after a skipped step: these weights may be the cause, and saving them would delete an
        older checkpoint that is still good.

        Raises:
            MachineError: The disk refuses the last step.
        """
        if is_last:
            self.save(step, {})
        elif self.checkpoints.stepper.watch.in_a_row:
            self.run.event("warning", step=step, message=f"no checkpoint at step {step}: it was skipped")
        else:
            self.begin(step)

    def begin(self, step: int, before: ValidationRecord | None = None) -> None:
        """Copy this step's weights, which are finite, and write the copy while training goes on.

        Does nothing if this step is saved or pending. First waits for the pending checkpoint, because there is only one
        copy. Without memory for a copy, writes the weights now.

        Args:
            step: The step just taken.
            before: The validation record to return to if the disk refuses this checkpoint.
        """
        if self._pending and self._pending.step == step:
            return
        self.hear(wait=True)
        if self.checkpoints.saved_step == step:
            return
        self.run.retry()
        write, tensors = self.checkpoints.writing(step), self.checkpoints.parts.tensors()
        snapshot = self._copied(tensors, step)
        if snapshot is None:
            self._pending = _Pending(step, BackgroundWork(functools.partial(write, tensors)), before)
            self._pending.work.do()
        else:
            self._pending = _Pending(step, BackgroundWork(functools.partial(snapshot.write, write)), before)
            self._pending.work.start()
        self.hear()  # if it was written here

    def hear(self, *, wait: bool = False) -> None:
        """Log the pending checkpoint if it is on the disk, or warn that the disk refused it; with `wait`, wait for it.

        Raises any other error of the thread.
        """
        pending = self._pending
        if pending is None:
            return
        while wait and not pending.work.wait(HEARTBEAT_SECONDS):
            self.run.beat()
        if not pending.work.has_ended:
            return
        self._pending = None
        pending.work.forget()
        if pending.work.is_lost:
            return
        error = pending.work.error
        if isinstance(error, MachineError):
            if pending.before is not None:
                self.checkpoints.validation = pending.before  # there is no such checkpoint to use
            self._warn(f"no checkpoint at step {pending.step}: {error.what}")
        elif error is not None:
            raise error
        else:
            self.checkpoints.saved_step = pending.step
            self.run.event("checkpoint", step=pending.step)

    def end(self, error: BaseException) -> None:
        """Wait for the pending checkpoint although an error ends the training; a further Ctrl-C ends the wait too.

        Other errors of the thread are not raised: the first error is the one to report.
        """
        if self._pending is None:
            return
        if isinstance(error, KeyboardInterrupt) and not self._pending.work.has_ended:
            message = f"waiting until the checkpoint of step {self._pending.step} is on the disk; Ctrl-C gives it up"
            warnings.warn(ColddiffWarning(message), stacklevel=3)
        try:
            self.hear(wait=True)
        except KeyboardInterrupt:
            self._abandon()
            raise
        except Exception:
            return

    def _abandon(self) -> None:
        """Give up the pending checkpoint; its thread may still read the copy, so the next one gets other memory."""
        if self._pending is not None:
            self._pending.work.abandon()
        self._pending, self._memory = None, SnapshotMemory(self.checkpoints.experiment.device)

    def _copied(self, tensors: Mapping[str, Weights], step: int) -> Snapshot | None:
        """Return a copy of the tensors; None, with an event the first time, if there is not enough memory."""
        try:
            return self._memory.copy(tensors)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if not self._has_noted_memory:
            self._has_noted_memory = True
            self.run.event("warning", step=step, message=NO_ROOM)
        return None


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A checkpoint on its way to the disk; `before` is the validation record to return to if it is refused."""

    step: int
    work: BackgroundWork
    before: ValidationRecord | None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A copy of a checkpoint's tensors on the CPU, by file and name, and the CUDA event after which it is complete."""

    tensors: Mapping[str, Weights]
    arrival: torch.cuda.Event | None = None

    def write(self, write: Callable[[Mapping[str, Weights]], None]) -> None:
        """Wait for the copy and write it; runs in the thread."""
        if self.arrival is not None:
            self.arrival.synchronize()
        write(self.tensors)


class SnapshotMemory:
    """CPU memory for a copy of a checkpoint's tensors, reused for the next one.

    It has the size of a checkpoint, four times the weights: network, average and two moments. For tensors on a GPU it
    is pinned, which is slow to allocate but lets the copy run asynchronously.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kinds: list[tuple[str, str, torch.Size, torch.dtype]] = []
        self._copies: dict[str, Weights] = {}

    def copy(self, tensors: Mapping[str, Weights]) -> Snapshot:
        """Return a copy of tensors, by file and name; on a GPU, as they are once the work queued so far is done.

        It overwrites the last copy. The CPU does not wait for a GPU.

        Raises:
            MemoryError: There is not enough memory.
            RuntimeError: torch could not allocate memory.
        """
        kinds = [(file, name, t.shape, t.dtype) for file, some in tensors.items() for name, t in some.items()]
        if kinds != self._kinds:
            self._kinds, self._copies = [], {}
            self._copies = _allocated(tensors, is_pinned=self._device.type == "cuda")
            self._kinds = kinds
        for file, some in tensors.items():
            for name, tensor in some.items():
                self._copies[file][name].copy_(tensor, non_blocking=True)
        if self._device.type != "cuda":
            return Snapshot(self._copies)
        arrival = torch.cuda.Event(blocking=True)  # waiting for it sleeps instead of spinning
        arrival.record(torch.cuda.current_stream(self._device))
        return Snapshot(self._copies, arrival)


def _allocated(tensors: Mapping[str, Weights], *, is_pinned: bool) -> dict[str, Weights]:
    """Return contiguous, uninitialized CPU tensors like the given ones, cut from a few pieces of memory."""
    left = sum(_room(tensor) for some in tensors.values() for tensor in some.values())
    if left > files.LARGE_BYTES and files.COPIES * left > files.free_bytes():
        raise MemoryError  # Linux would kill a process later instead of refusing now
    piece, start = torch.empty(0, dtype=torch.uint8), 0
    copies: dict[str, Weights] = {}
    for file, some in tensors.items():
        copies[file] = {}
        for name, tensor in some.items():
            room = _room(tensor)
            if start + room > len(piece):
                size = max(room, min(left, PIECE_BYTES))
                piece, start = torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned), 0
            copies[file][name] = piece[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            start, left = start + room, left - room
    return copies


def _room(tensor: Tensor) -> int:
    """Return the bytes that a tensor takes in a piece."""
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
