"""The training loop around the optimizer steps: lines, checkpoints, sheets, requests, and what goes wrong."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from colddiff_core import devices
from colddiff_core.config.fields import LARGEST
from colddiff_core.config.schema import TrainConfig
from colddiff_core.datasets import ImageSet, TrainingSet
from colddiff_core.errors import ColddiffError, ColddiffWarning, MachineError, UsageError, reason
from colddiff_core.experiment import Experiment
from colddiff_core.runs import FollowerRun, RunWriter, checkpoint, control, list_checkpoints, path_step
from colddiff_core.text import counted
from colddiff_core.training import divergence, provenance, sample_sheet
from colddiff_core.training.log_meter import TrainingLog
from colddiff_core.training.sample_sheet import Sheet
from colddiff_core.training.step import Stepper

PAUSE_POLL = 0.05  # seconds between looks at control/ while paused
COMPANY = 1.0  # seconds between signs of life to the other processes while the first does what is its alone


@dataclasses.dataclass(frozen=True)
class Tick:
    """One optimizer step taken; `metrics` is the logged line on the steps that log.

    A run that is paused or goes on after a pause tells so by one more tick of the same step.
    """

    step: int
    metrics: dict[str, Any] | None = None
    is_paused: bool = False


class _UnsoundError(MachineError):
    """What would be saved is not finite."""


class _AbandonedError(ColddiffError):
    """A sheet was given up because the training is to stop."""


class Trainer:
    """Trains one experiment into one run directory.

    `steps()` does the work and yields after each optimizer step; `stop()` has it end after the step in
    hand, with a checkpoint. Resuming from that checkpoint gives bit for bit what would have come, and so
    does a run that was paused, sampled or saved at a reader's request in between.

    A step whose loss or gradient is not finite changes no weight. After several in a row, or where a weight
    is not finite, the run goes back to its newest checkpoint with a lower rate; after several of those it ends.

    Where several processes train together, the first of them has the run, the average, the sheets and readers' requests
    to itself, and the others, as `FollowerRun`s, do as it says: after every step they agree on what is next.
    """

    def __init__(
        self, experiment: Experiment, train: TrainingSet, test: ImageSet, run: RunWriter | FollowerRun
    ) -> None:
        self.experiment = experiment
        self.settings: TrainConfig = experiment.config.train
        self.run = run
        self.step = 0
        self.is_stopping = self.is_finished = False  # as all processes have agreed
        self._is_to_stop = False  # as this one was asked
        self.train_set, self.test_set = train, test
        self.stepper = Stepper(experiment, train, self._note)
        self.ranks = self.stepper.ranks
        self.parts = self.stepper.parts
        self.last_sheet: Sheet | None = None
        self._saved = 0  # step of the newest checkpoint
        self.is_stopped_as_asked = False  # by a reader of the run, and not by a signal
        self._stopped_by: dict[str, Any] = {}
        self._left_out_before, self._left_out = (
            train.skipped,
            0,
        )  # images that could not be read: so far, and told since
        self._in_company = 0.0  # when the others were last told that this process is busy
        self.provenance = provenance.of(experiment, train)

    def resume(self, *, may_change: bool = False) -> None:
        """Go back to the run's newest complete checkpoint and forget what was logged after it.

        A run that was ended before its first checkpoint begins again: its weights follow from the seed.
        Damaged checkpoints are set aside, with a warning; UsageError where no other is left, and where settings,
        images or operator are others than those that the checkpoint was trained with, unless they may change.
        """
        found = checkpoint.newest(self.run, checkpoint.read) if self.ranks.is_first else None
        changed: list[str] = []
        if found is not None:
            changed = provenance.changes(found.content.state.get("provenance"), self.provenance)
            if changed and not may_change:
                what = f"{self.run.path} would go on under changes: {provenance.listed(changed)}."
                raise UsageError(what, "Undo them, or take them with --allow-change; or start a new run.")
        if self.ranks.broadcast_json(found is not None):
            self._restore(found.content if found else None)
        for path in found.damaged if found else ():
            aside = checkpoint.set_aside(path)
            self._warn(f"{path.name} was damaged; set aside as {aside.name}")
        self.run.forget_after(self.step)
        self.run.event("resumed", step=self.step, **self._company(), **({"changed": changed} if changed else {}))

    def _restore(self, read: checkpoint.CheckpointFiles | None) -> None:
        """Take over a checkpoint, which the first process has read; the others hear of it."""
        content = checkpoint.shared(self.ranks, read)
        content.restore(self.parts)
        state = content.state
        self.step = self._saved = int(state["step"])
        self.stepper.falls = max(self.stepper.falls, min(_count(state.get("falls")), divergence.FALLS))
        self.stepper.watch.restart(_count(state.get("skipped_in_a_row")))

    def stop(self, by: str = "") -> None:
        """Have the loop end after the step in hand, with a checkpoint; `by` names whoever asks, for the event."""
        self._is_to_stop = True
        if by:
            self._stopped_by = {"by": by}

    def steps(self) -> Iterator[Tick]:
        """Train to the last step, or until `stop`; the run's files follow."""
        try:
            yield from self._loop()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.run.event("failed", step=self.step, why=reason(error))
            raise

    def _loop(self) -> Iterator[Tick]:
        settings = self.settings
        meter = TrainingLog(self.experiment.device, elapsed=_elapsed(self.run.metrics()))
        if not any(event.get("event") == "started" for event in self.run.events()):
            device = devices.describe(self.experiment.device)
            self.run.event("started", device=device, images=len(self.train_set), **self._company())
        self._saved = self.step
        self.stepper.send_ahead(self.step)
        if self._is_sampled(self.step) and not sample_sheet.path(self.run, self.step).exists():
            self._sample_due()  # a trainer was killed over it
        self._agree()
        while self.step < settings.steps and not self.is_stopping:
            self.stepper.take(self.step, meter)
            self.step += 1
            is_last = self.step == settings.steps
            is_saved = is_last or self.step % settings.checkpoint_every == 0
            is_logged = self._is_logged(self.step)
            # On a GPU looking would have the loop wait, and a skipped step does no harm until it is looked at.
            if is_saved or is_logged or self.experiment.device.type == "cpu":
                self._see_others()
                why = self._trouble(is_saved)
                if why:
                    self._go_back(why, meter)
                    yield Tick(self.step)
                    continue
            metrics = self._log(meter) if is_logged else None
            if is_saved:
                self._save_due(is_last)
            if self._is_sampled(self.step):
                self._sample_due()
            yield Tick(self.step, metrics)
            if is_last:
                self._agree()
            else:
                yield from self._serve(meter)
        if self.step > self._saved:
            self._trouble(False)
            self.save()
        is_shown = sample_sheet.path(self.run, self.step).exists()
        is_finished = self.step >= settings.steps and (is_shown or not self.is_stopping)
        self.is_finished, self.is_stopped_as_asked = self.ranks.broadcast_json(
            [is_finished, "answers" in self._stopped_by]
        )
        if self.is_finished:
            self.run.event("finished", step=self.step)
        else:
            self.run.event("stopped", step=self.step, **self._stopped_by)

    def _see_others(self) -> None:
        """Raise LostError where another process is gone: in the wait for a GPU that waits for it no signal is heard."""
        if self.experiment.device.type != "cpu":
            self.ranks.all_max(0)

    def _trouble(self, is_saved: bool) -> str:
        """Record the steps that were skipped; return why the run cannot go on from here, empty where it can."""
        skipped, are_too_many = self.stepper.watch.read()
        for step in skipped:
            self._note(f"step {step.step} skipped: {step.why}")
        if are_too_many:
            return f"{divergence.IN_A_ROW} steps in a row could not be taken, {skipped[-1].why}"
        if not is_saved:
            return ""
        (is_unsound,) = self.ranks.all_max(not self.parts.is_finite())
        return "a weight is not finite" if is_unsound else ""

    def _agree(self, *, is_paused: bool = False, is_busy: bool = False) -> bool:
        """Tell the other processes how things stand, and hear it of them; return whether the run is paused.

        One that is to stop stops all. While the first is busy with what it does alone the others wait here; it tells
        them again and again, or they would take it for lost.
        """
        while True:
            is_stopping, paused, busy = self.ranks.all_max(self._is_to_stop, is_paused, is_busy)
            self.is_stopping = self.is_stopping or bool(is_stopping)
            if not busy or self.ranks.is_first:
                return bool(paused)

    def _company(self) -> dict[str, int]:
        """Return the part of an event that says how many processes train together."""
        return {} if self.ranks.is_alone else {"processes": self.ranks.count}

    def _go_back(self, why: str, meter: TrainingLog) -> None:
        """Go on from the newest checkpoint with a lower rate; raises MachineError where there is none, or no hope."""
        step, falls = self.step, self.stepper.falls + 1
        # The first step after a checkpoint is the same at any rate: where that was skipped too, it is of no use.
        last_sound = step - self.stepper.watch.in_a_row
        found = None
        if falls <= divergence.FALLS and self.ranks.is_first:
            found = checkpoint.newest(self.run, checkpoint.read, before=last_sound)
        if not self.ranks.broadcast_json(found is not None):
            raise self._diverged(why)
        for path in list_checkpoints(found.path.parent) if found else ():
            if found and path_step(path) > path_step(found.path):
                checkpoint.set_aside(path, "passed")
        self._restore(found.content if found else None)
        # What follows from a checkpoint is the same each time, this too: a run killed here comes to it again.
        self.stepper.falls = falls
        self.stepper.watch.restart(0)  # the lower rate gets as many steps to prove itself
        self.parts.optimizer.zero_grad(set_to_none=True)
        meter.keep(0)
        self.run.forget_after(self.step)
        rate = divergence.SLOWER**falls
        self._warn(f"step {step}: {why}; back to step {self.step}, the rate times {rate:g}")

    def _log(self, meter: TrainingLog) -> dict[str, Any] | None:
        """Log a line and return it; None where no step since the last one had a loss, and in all but the first."""
        meter.gather(self.ranks)
        self._tell_left_out()
        if not self.ranks.is_first:
            return None
        figures = meter.read(self.experiment.operator.steps)
        if figures["loss"] is None:
            return None
        metrics = {"step": self.step} | figures | {"lr": self.stepper.rate(self.step - 1)}
        self.run.log(**metrics)
        return metrics

    def _tell_left_out(self) -> None:
        """Record images that are read while they are trained on and could not be, where there are more of them now.

        Processes meet the same ones, sooner or later: what the first to meet them has counted is told.
        """
        (count,) = self.ranks.all_max(self.train_set.skipped - self._left_out_before)
        if count > self._left_out:
            self._left_out = count
            found = counted(count, "training image")
            self._note(f"{found} could not be read so far; others stand in for them")

    def _save_due(self, is_last: bool) -> None:
        """Save, and go on without where the disk refuses: the next time it may not.

        Not amid skipped steps: these weights may be why, and checkpoints from before that would have to go for it.
        """
        if not self.ranks.is_first:
            return
        if self.stepper.watch.in_a_row and not is_last:
            self._note(f"no checkpoint of step {self.step}: it was skipped")
            return
        try:
            self.save()
        except MachineError as error:
            if is_last:
                raise
            self._warn(f"no checkpoint of step {self.step}: {error.what}")

    def _sample_due(self) -> None:
        """Write a sheet; where the disk refuses, or the training is to stop meanwhile, go on without."""
        if not self.ranks.is_first:
            return
        try:
            self.write_sheet()
        except _AbandonedError:
            return
        except MachineError as error:
            self._warn(f"no sheet of step {self.step}: {error.what}")

    def _note(self, message: str) -> None:
        """Record what the training goes on in spite of."""
        self.run.event("warning", step=self.step, message=message)

    def _warn(self, message: str) -> None:
        """Record it, and tell whoever started the training."""
        self._note(message)
        warnings.warn(ColddiffWarning(message), stacklevel=2)

    def _is_logged(self, step: int) -> bool:
        return step == self.settings.steps or step % self.settings.log_every == 0

    def _is_sampled(self, step: int) -> bool:
        every = self.settings.sample_every
        return step == self.settings.steps or (step > 0 and every > 0 and step % every == 0)

    def _serve(self, meter: TrainingLog) -> Iterator[Tick]:
        """Do what readers ask for in control/; where that is a pause, stay until it ends."""
        self.run.beat()
        began: float | None = None
        while True:
            for name in self.run.requests():
                request, answer = control.word(name), _answering([name])
                if request in ("sample", "checkpoint"):
                    self._oblige(request, answer)
                elif request == "pause":
                    began = began or time.monotonic()
                    self.run.event("paused", step=self.step, **answer)
                    yield Tick(self.step, is_paused=True)
                elif request == "resume":
                    meter.skip_since(began)
                    began = None
                    self.run.event("resumed", step=self.step, **answer)
                    yield Tick(self.step)
                elif request == "stop":
                    self.stop()
                    self._stopped_by = answer
                else:
                    known = ", ".join(control.ANSWERS)
                    self.run.event("warning", message=f"control/{name} is no request; known: {known}")
            is_paused = self._agree(is_paused=began is not None)
            if not is_paused or self.is_stopping:
                meter.skip_since(began)
                return
            self.run.beat()
            time.sleep(PAUSE_POLL)

    def _oblige(self, request: str, answer: dict[str, Any]) -> None:
        """Sample or save as a reader asks; what goes wrong with that is no reason to end the training."""
        try:
            if request == "sample":
                self.write_sheet(answer)
            else:
                self.save(answer)
        except Exception as error:
            self.run.event("warning", step=self.step, message=f"no {request} as asked: {reason(error)}", **answer)

    def _diverged(self, why: str) -> _UnsoundError:
        tried = f", after {counted(self.stepper.falls, 'lower rate')}" if self.stepper.falls else ""
        last_sound = self.step - self.stepper.watch.in_a_row
        is_kept = any(path_step(path) < last_sound for path in self.run.checkpoints())
        kept = "the last checkpoint is kept" if is_kept else "no checkpoint is from before that"
        rate = f"train.lr={self.settings.lr * divergence.SLOWER ** (self.stepper.falls + 2):g}"
        again = f"colddiff train --resume {self.run.path} --set {rate}"
        return _UnsoundError(
            f"Step {self.step}: {why}{tried}; {kept}.",
            f"Use a lower rate: {again}" if is_kept else f"Begin a new run with a lower rate: --set {rate}",
        )

    def save(self, details: dict[str, Any] | None = None) -> None:
        """Have a checkpoint of this step, told by an event; weights that are not finite are not saved.

        In all but the first process nothing happens.
        """
        if not self.ranks.is_first:
            return
        if not self.parts.is_finite():
            raise self._diverged("a weight is not finite")
        in_a_row = self.stepper.watch.in_a_row
        position = self.step * self.stepper.size
        epoch, offset = divmod(position, len(self.train_set))
        state = {
            "channels": self.experiment.channels,
            "seed": self.settings.seed,
            "epoch": epoch,
            "epoch_position": offset,
            "skipped_in_a_row": in_a_row,
            "falls": self.stepper.falls,
            "provenance": self.provenance,
        }
        if self._saved != self.step:  # asked for where there is one already
            self.run.flush()
            # Amid skipped steps those from before them may be what the run has to go back to.
            keep = None if in_a_row else self.settings.keep
            checkpoint.save(self.run.path / "checkpoints", self.step, self.parts, state, keep)
            self._saved = self.step
        self.run.event("checkpoint", step=self.step, **details or {})

    def write_sheet(self, details: dict[str, Any] | None = None) -> None:
        """Restore some test images into samples/step-NNNNNN.png, with a JSON beside it."""
        self.last_sheet = self.restore_tests(self._go_on_sampling)
        name = sample_sheet.store(self.run, self.step, self.experiment, self.last_sheet)
        self.run.event("sample", step=self.step, file=name, **details or {})

    def restore_tests(self, at_step: Callable[[], None] = lambda: None) -> Sheet:
        """Return the sheet's columns (B, C, H, W) of test images, by the averaged weights, and their metrics."""
        assert self.parts.average is not None
        return sample_sheet.restore(self.experiment, self.parts.average.module, self.test_set, at_step)

    def _go_on_sampling(self) -> None:
        """Give a sign of life while a sampler runs, which may take minutes: more than whoever ends this may grant."""
        self.run.beat()
        if self.ranks.is_alone or time.monotonic() - self._in_company >= COMPANY:
            self._in_company = time.monotonic()
            self._agree(is_busy=True)
        if self.is_stopping:
            raise _AbandonedError("The training is to end.")


def _answering(requests: list[str]) -> dict[str, Any]:
    """Return the part of an event that names the requests it answers."""
    return {"answers": requests} if requests else {}


def _elapsed(logged: list[dict[str, Any]]) -> float:
    """Return the seconds that were trained before, as far as the log tells."""
    told = logged[-1].get("elapsed") if logged else 0
    return float(told) if isinstance(told, (int, float)) and math.isfinite(told) else 0.0


def _count(told: Any) -> int:
    """Return a count that a checkpoint's state tells, 0 where it tells none."""
    return told if type(told) is int and 0 < told <= LARGEST else 0
