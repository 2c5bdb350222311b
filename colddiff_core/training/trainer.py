"""The training loop around the optimizer steps: logs, checkpoints, sample sheets, requests and recovery."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from colddiff_core import devices
from colddiff_core.config.schema import TrainConfig
from colddiff_core.datasets import ImageSet, TrainingSet, hold_out
from colddiff_core.errors import ColddiffError, ColddiffWarning, MachineError, reason
from colddiff_core.experiment import Experiment
from colddiff_core.runs import FollowerRun, RunWriter, checkpoint
from colddiff_core.training import divergence, sample_sheet, schedule
from colddiff_core.training.log_meter import TrainingLog, UnreadableImages, elapsed_seconds
from colddiff_core.training.recovery import TrainingCheckpoints
from colddiff_core.training.requests import Action, RequestHandler
from colddiff_core.training.sample_sheet import Sheet
from colddiff_core.training.saving import CheckpointSaver
from colddiff_core.training.step import Stepper
from colddiff_core.training.tick import Tick
from colddiff_core.training.validation import ValidationRecord, Validator

PAUSE_POLL_SECONDS = 0.05  # between looks at control/ while paused
RANK_HEARTBEAT_SECONDS = 1.0  # between heartbeats to the other ranks while rank 0 samples


class _AbandonedError(ColddiffError):
    """A sheet was abandoned because training is stopping."""


class Trainer:
    """Trains one experiment into one run directory.

    `steps()` trains and yields after each optimizer step; `stop()` ends it after the current step, with a checkpoint.
    A run that was resumed, paused, sampled or saved on request gives the same bits as one that was left alone.

    A step whose loss or gradient is not finite changes no weight. After several in a row, or when a weight is not
    finite, the run goes back to its newest checkpoint with a lower rate; after several of those it fails.

    With several processes, rank 0 owns the run, the average, the sheets and the requests. The others have a
    `FollowerRun`; after every step all ranks agree on what is next.
    """

    def __init__(
        self, experiment: Experiment, train: TrainingSet, test: ImageSet, run: RunWriter | FollowerRun
    ) -> None:
        self.experiment = experiment
        self.settings: TrainConfig = experiment.config.train
        self.validator = None
        if self.settings.validate_every:
            train, held = hold_out(train, has_crops=experiment.config.data.crop > 0)
            self.validator = Validator(experiment, held.center(experiment.config.data.size))
        self.run = run
        self.step = 0
        self.is_stopping = self.is_finished = False  # as all ranks agreed
        self._is_to_stop = False  # as this rank was asked
        self.train_set, self.test_set = train, test
        self.stepper = Stepper(experiment, train, self._note)
        self.ranks = self.stepper.ranks
        self.parts = self.stepper.parts
        self.last_sheet: Sheet | None = None
        self.is_stopped_as_asked = False  # by a reader of the run, not by a signal
        self._stopped_by: dict[str, Any] = {}
        self._unreadable = UnreadableImages(train, self.ranks)
        self._heartbeat = 0.0  # time of the last one to the other ranks
        self.checkpoints = TrainingCheckpoints(experiment, self.stepper, run)
        self.provenance = self.checkpoints.provenance
        self.saving = CheckpointSaver(self.checkpoints, run, self._warn)

    def resume(self, *, may_change: bool = False) -> None:
        """Go back to the run's newest complete checkpoint and drop what was logged after it.

        A run without a checkpoint starts over from step 0, with the weights that its seed gives. Damaged checkpoints
        are set aside with a warning.

        Raises:
            UsageError: All checkpoints are damaged, or settings, images or operator changed without `may_change`.
        """
        self.saving.hear(wait=True)  # one that this trainer began
        changed, damaged = self.checkpoints.restore_newest(may_change=may_change)
        self.step = self.checkpoints.saved_step
        for path in damaged:
            aside = checkpoint.set_aside(path)
            self._warn(f"{path.name} was damaged; set aside as {aside.name}")
        self.run.forget_after(self.step)
        self.run.event("resumed", step=self.step, **self._processes(), **({"changed": changed} if changed else {}))
        if words := schedule.announce(
            self.settings, self.stepper.joint, self.step, divergence.SLOWER**self.stepper.falls
        ):
            self._warn(words)

    def stop(self, by: str = "") -> None:
        """End the loop after the current step, with a checkpoint; the event says `by` whom."""
        self._is_to_stop = True
        if by:
            self._stopped_by = {"by": by}

    def steps(self) -> Iterator[Tick]:
        """Train to the last step, or until `stop`, and write the run's files.

        Raises:
            MachineError: Training diverged, or the disk refuses the last checkpoint.
            LostError: Another process ended.
        """
        try:
            yield from self._loop()
        except BaseException as error:
            try:
                self.saving.end(error)
            finally:
                if not isinstance(error, GeneratorExit):
                    self.run.event("failed", step=self.step, why=reason(error))
            raise

    def _loop(self) -> Iterator[Tick]:
        settings = self.settings
        meter = TrainingLog(self.experiment.device, elapsed=elapsed_seconds(self.run.metrics()))
        if not any(event.get("event") == "started" for event in self.run.events()):
            device = devices.describe(self.experiment.device)
            self.run.event("started", device=device, images=len(self.train_set), **self._processes())
        self.stepper.send_ahead(self.step)
        if (self._is_sampled(self.step) or self._is_over) and not sample_sheet.path(self.run, self.step).exists():
            self._sample_due()  # the last trainer was killed while sampling
        self._is_to_stop = self._is_to_stop or self._is_over
        self._agree()
        while self.step < settings.steps and not self.is_stopping:
            self.stepper.take(self.step, meter)
            self.step += 1
            is_last = self.step == settings.steps
            is_saved = is_last or self.step % settings.checkpoint_every == 0
            is_logged = self._is_logged(self.step)
            is_validated = self.validator is not None and (is_last or self.step % settings.validate_every == 0)
            # On a GPU this check waits for the step. A skipped step does no harm, so a GPU only pays for it when due.
            if is_saved or is_logged or is_validated or self.experiment.device.type == "cpu":
                self._check_ranks()
                why = self._trouble(is_saved or is_validated)
                if why:
                    self._go_back(why, meter)
                    yield Tick(self.step)
                    continue
            metrics = self._log(meter) if is_logged else None
            found = self._validate_due() if is_validated else None
            if is_saved and self.ranks.is_first:
                self.saving.due(self.step, is_last=is_last)
            if self._is_sampled(self.step) or self._is_over:
                self._sample_due()
            self._is_to_stop = self._is_to_stop or self._is_over
            yield Tick(self.step, metrics, validation=found)
            if is_last:
                self._agree()
            else:
                yield from self._serve(meter)
        self.saving.hear(wait=True)
        if self.step > self.checkpoints.saved_step:
            self._trouble(False)
            self.save()
        has_sheet = sample_sheet.path(self.run, self.step).exists()
        is_finished = self._is_over or (self.step >= settings.steps and (has_sheet or not self.is_stopping))
        self.is_finished, self.is_stopped_as_asked = self.ranks.broadcast_json(
            [is_finished, "answers" in self._stopped_by]
        )
        if self.is_finished:
            self.run.event("finished", step=self.step, **({"early": True} if self.step < settings.steps else {}))
        else:
            self.run.event("stopped", step=self.step, **self._stopped_by)

    def _check_ranks(self) -> None:
        """Raise LostError if another process ended: a GPU that waits for a lost one would hang and ignore signals."""
        if self.experiment.device.type != "cpu":
            self.ranks.all_max(0)

    def _trouble(self, is_saved: bool) -> str:
        """Log skipped steps; return why the run must go back, empty if it need not."""
        skipped, are_too_many = self.stepper.watch.read()
        for step in skipped:
            self._note(f"step {step.step} skipped: {step.why}")
        if are_too_many:
            return f"{divergence.IN_A_ROW} steps in a row were skipped, the last because {skipped[-1].why}"
        if not is_saved:
            return ""
        (is_unsound,) = self.ranks.all_max(not self.parts.is_finite())
        return "a weight is not finite" if is_unsound else ""

    def _agree(self, *, is_paused: bool = False, is_busy: bool = False) -> bool:
        """Exchange flags with the other ranks; return whether the run is paused. A stop on one rank stops all.

        While rank 0 is busy the others wait here, and rank 0 calls this regularly so that they do not time out.
        """
        while True:
            is_stopping, paused, busy = self.ranks.all_max(self._is_to_stop, is_paused, is_busy)
            self.is_stopping = self.is_stopping or bool(is_stopping)
            if not busy or self.ranks.is_first:
                return bool(paused)

    def _processes(self) -> dict[str, int]:
        """Return the part of an event that says how many processes train together."""
        return {} if self.ranks.is_alone else {"processes": self.ranks.count}

    def _go_back(self, why: str, meter: TrainingLog) -> None:
        """Continue from the newest checkpoint with a lower rate; raise MachineError if that is impossible."""
        step = self.step
        self.saving.hear(wait=True)
        factor = self.checkpoints.go_back(step, why)
        self.step = self.checkpoints.saved_step
        meter.keep(0)
        self.run.forget_after(self.step)
        rate = f"the learning rate is now {factor:g} times the configured one"
        self._warn(f"step {step}: {why}; went back to step {self.step}; {rate}")

    def _log(self, meter: TrainingLog) -> dict[str, Any] | None:
        """Log a line and return it; None on other ranks, and if no step since the last line had a finite loss."""
        meter.gather(self.ranks)
        if message := self._unreadable.message():
            self._note(message)
        if not self.ranks.is_first:
            return None
        figures = meter.read(self.experiment.operator.steps)
        if figures["loss"] is None:
            return None
        metrics = {"step": self.step} | figures | {"lr": self.stepper.rate(self.step - 1)}
        self.run.log(**metrics)
        return metrics

    @property
    def _is_over(self) -> bool:
        """Whether validation, which only rank 0 knows, ends the training early."""
        return self.ranks.is_first and self.checkpoints.validation.is_over(self.settings)

    def _validate_due(self) -> ValidationRecord | None:
        """Measure the average on the held-out images and save it if it is the best; only rank 0 does anything.

        Not right after a skipped step, whose weights are not saved either.
        """
        average = self.parts.average  # on rank 0
        if self.validator is None or average is None or self.stepper.watch.in_a_row:
            return None
        self.saving.hear(wait=True)  # a best checkpoint that the disk refused does not count
        before = self.checkpoints.validation
        rmse = self.validator.rmse(average.module, self._beat_while_busy)
        found = self.checkpoints.validation = before.after(self.step, rmse)
        self.run.event("validated", step=self.step, rmse=rmse, best_step=found.best_step, failures=found.failures)
        if found.best_step == self.step and self.settings.keep_best:
            self.saving.begin(self.step, before)
        return found

    def _sample_due(self) -> None:
        """Write a sheet; if the disk refuses, or training is stopped meanwhile, continue without it."""
        if not self.ranks.is_first:
            return
        try:
            self.write_sheet()
        except _AbandonedError:
            return
        except MachineError as error:
            self._warn(f"no sheet at step {self.step}: {error.what}")

    def _note(self, message: str) -> None:
        """Log a problem that does not end the training."""
        self.run.event("warning", step=self.step, message=message)

    def _warn(self, message: str) -> None:
        """Log a problem and warn the caller of it."""
        self._note(message)
        warnings.warn(ColddiffWarning(message), stacklevel=2)

    def _is_logged(self, step: int) -> bool:
        return step == self.settings.steps or step % self.settings.log_every == 0

    def _is_sampled(self, step: int) -> bool:
        every = self.settings.sample_every
        return step == self.settings.steps or (step > 0 and every > 0 and step % every == 0)

    def _serve(self, meter: TrainingLog) -> Iterator[Tick]:
        """Answer requests in control/; if one is a pause, wait until it ends."""
        self.run.beat()
        actions: dict[str, Action] = {
            "sample": self.write_sheet,
            "checkpoint": self.save,
            "stop": self._stop_as_asked,
        }
        requests = RequestHandler(self.run, self.step, actions)
        while True:
            self.saving.hear()
            for is_paused in requests.answer(meter):
                yield Tick(self.step, is_paused=is_paused)
            is_paused = self._agree(is_paused=requests.paused_at is not None)
            if not is_paused or self.is_stopping:
                meter.skip_since(requests.paused_at)
                return
            self.run.beat()
            time.sleep(PAUSE_POLL_SECONDS)

    def _stop_as_asked(self, answer: dict[str, Any]) -> None:
        self.stop()
        self._stopped_by = answer

    def save(self, details: dict[str, Any] | None = None) -> None:
        """Save a checkpoint of this step and log it, with `details` in the event. Only rank 0 does anything.

        Raises:
            MachineError: A weight is not finite, or the disk refuses.
        """
        if self.ranks.is_first:
            self.saving.save(self.step, details or {})

    def write_sheet(self, details: dict[str, Any] | None = None) -> None:
        """Restore some test images into samples/step-NNNNNN.png, with a JSON beside it.

        Raises:
            MachineError: The disk refuses, or memory has no room for one image.
        """
        self.last_sheet = self.restore_tests(self._send_heartbeat)
        name = sample_sheet.store(self.run, self.step, self.experiment, self.last_sheet)
        self.run.event("sample", step=self.step, file=name, **details or {})

    def restore_tests(self, at_step: Callable[[], None] = lambda: None) -> Sheet:
        """Restore test images by the averaged weights; return the sheet's columns and their metrics.

        Columns are (B, C, H, W) float32 in [-1, 1]. `at_step` is called after each sampler step.
        """
        assert self.parts.average is not None
        return sample_sheet.restore(self.experiment, self.parts.average.module, self.test_set, at_step)

    def _send_heartbeat(self) -> None:
        """Send a heartbeat during long sampling; abandon the sheet if training is to stop."""
        self._beat_while_busy()
        if self.is_stopping:
            raise _AbandonedError("Training is stopping.")

    def _beat_while_busy(self) -> None:
        """Send a heartbeat to the readers and, now and then, to the other ranks."""
        self.run.beat()
        if self.saving.is_on_disk:
            self.saving.hear()
        if self.ranks.is_alone or time.monotonic() - self._heartbeat >= RANK_HEARTBEAT_SECONDS:
            self._heartbeat = time.monotonic()
            self._agree(is_busy=True)
