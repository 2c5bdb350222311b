"""The checkpoints of a training: save one, resume from one, go back to one after divergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colddiff_core.config.fields import LARGEST
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.experiment import Experiment
from colddiff_core.runs import FollowerRun, RunWriter, checkpoint, list_checkpoints, path_step
from colddiff_core.text import counted, shell_word
from colddiff_core.training import divergence, provenance, schedule
from colddiff_core.training.step import Stepper
from colddiff_core.training.validation import ValidationRecord


class TrainingCheckpoints:
    """Saves and restores the state of one training. Only rank 0 touches files; the other ranks receive what it read.

    Attributes:
        saved_step: Step of the newest checkpoint on the disk, 0 for none.
        provenance: What the weights come from: settings, images, operator.
        validation: What validation has found so far.
    """

    def __init__(self, experiment: Experiment, stepper: Stepper, run: RunWriter | FollowerRun) -> None:
        self.experiment, self.stepper, self.run = experiment, stepper, run
        self.ranks, self.parts = stepper.ranks, stepper.parts
        self.provenance = provenance.of(experiment, stepper.train_set)
        self.saved_step = 0
        self.validation = ValidationRecord()

    def restore_newest(self, *, may_change: bool) -> tuple[list[str], list[Path]]:
        """Restore the newest complete checkpoint, or the initial weights if none was saved yet.

        Returns:
            What changed since it was saved, in words, and newer checkpoints that are damaged.

        Raises:
            UsageError: Something changed without `may_change`, or all checkpoints are damaged.
        """
        newest = checkpoint.newest(self.run, checkpoint.read) if self.ranks.is_first else None
        changed: list[str] = []
        if newest is not None:
            changed = provenance.changes(newest.content.state.get("provenance"), self.provenance)
            if changed and not may_change:
                what = f"{self.run.path} would continue with changes: {provenance.listed(changed)}."
                raise UsageError(what, "Undo them, accept them with --allow-change, or start a new run.")
        if self.ranks.broadcast_json(newest is not None):
            self._restore(newest.content if newest else None)
        return changed, list(newest.damaged) if newest else []

    def go_back(self, step: int, why: str) -> float:
        """Restore the newest checkpoint from before the trouble, lower the learning rate and return its factor.

        Raises:
            MachineError: There is no such checkpoint, or the rate was lowered too often already.
        """
        falls = self.stepper.falls + 1
        # The first step after a checkpoint is the same at any rate: if that one was skipped, going back cannot help.
        last_sound = step - self.stepper.watch.in_a_row
        newest = None
        if falls <= divergence.FALLS and self.ranks.is_first:
            newest = checkpoint.newest(self.run, checkpoint.read, before=last_sound)
        if not self.ranks.broadcast_json(newest is not None):
            raise self.diverged(step, why)
        for path in list_checkpoints(newest.path.parent) if newest else ():
            if newest and path_step(path) > path_step(newest.path):
                checkpoint.set_aside(path, "passed")
        self._restore(newest.content if newest else None)
        # A run killed after this fails again at the same step, and so counts the same falls.
        self.stepper.falls = falls
        self.stepper.watch.restart(0)  # the lower rate gets a full number of tries
        self.parts.optimizer.zero_grad(set_to_none=True)
        return float(divergence.SLOWER**falls)

    def save(self, step: int) -> None:
        """Save a checkpoint on rank 0, unless this step has one already.

        Raises:
            MachineError: A weight is not finite, or the disk refuses.
        """
        if not self.parts.is_finite():
            raise self.diverged(step, "a weight is not finite")
        if step == self.saved_step:
            return
        self.run.retry()
        self.writing(step)(self.parts.tensors())
        self.saved_step = step

    def writing(self, step: int) -> Callable[[Mapping[str, checkpoint.Weights]], None]:
        """Return a function that writes this step's checkpoint, given its tensors; it may raise MachineError.

        It may run in any thread: everything but the tensors is recorded now.
        """
        average, in_a_row = self.parts.average, self.stepper.watch.in_a_row
        assert average is not None
        epoch, offset = divmod(step * self.stepper.size, len(self.stepper.train_set))
        state = {
            "channels": self.experiment.channels,
            "averaged": int(average.n_averaged),
            "seed": self.stepper.settings.seed,
            "epoch": epoch,
            "epoch_position": offset,
            "skipped_in_a_row": in_a_row,
            "falls": self.stepper.falls,
            "joint": schedule.to_state(self.stepper.joint),
            "provenance": self.provenance,
            "validation": self.validation.to_state(),
        }
        # While steps are being skipped, delete nothing: the run may have to go back to an older checkpoint.
        keep = None if in_a_row else self.stepper.settings.keep
        best = self.validation.best_step if self.stepper.settings.keep_best else None

        def write(tensors: Mapping[str, checkpoint.Weights]) -> None:
            self.run.flush()
            checkpoint.save(self.run.path / "checkpoints", step, tensors, state, keep, best=best)

        return write

    def diverged(self, step: int, why: str) -> MachineError:
        """Return the error that ends a diverged training, with the command that continues at a lower rate."""
        tried = f", after lowering the rate {counted(self.stepper.falls, 'time')}" if self.stepper.falls else ""
        last_sound = step - self.stepper.watch.in_a_row
        is_kept = any(path_step(path) < last_sound for path in self.run.checkpoints())
        kept = "the last checkpoint is kept" if is_kept else "there is no earlier checkpoint"
        rate = f"train.lr={self.stepper.settings.lr * divergence.SLOWER ** (self.stepper.falls + 2):g}"
        again = f"colddiff train --resume {shell_word(self.run.path)} --set {rate}"
        return MachineError(
            f"Step {step}: {why}{tried}; {kept}.",
            f"Use a lower rate: {again}" if is_kept else f"Begin a new run with a lower rate: --set {rate}",
        )

    def _restore(self, files: checkpoint.CheckpointFiles | None) -> None:
        """Restore a checkpoint that rank 0 has read; the other ranks receive it."""
        content = checkpoint.shared(self.ranks, files)
        content.restore(self.parts)
        state = content.state
        self.saved_step = int(state["step"])
        self.validation = ValidationRecord.from_state(state.get("validation"))
        self.stepper.falls = max(self.stepper.falls, min(_count(state.get("falls")), divergence.FALLS))
        self.stepper.watch.restart(_count(state.get("skipped_in_a_row")))
        joint = schedule.from_state(state.get("joint"))
        settings, before = self.stepper.settings, provenance.setting(state.get("provenance"), "train", "steps")
        self.stepper.joint = schedule.join(settings, _count(before) or settings.steps, self.saved_step, joint)


def _count(value: Any) -> int:
    """Return a count from a checkpoint's state, 0 if it is missing or invalid."""
    return value if type(value) is int and 0 < value <= LARGEST else 0
