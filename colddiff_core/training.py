"""The training loop: the loss of R(D(x0, t), t), L1 as the paper's, everything random keyed by (seed, step).

Source: Bansal et al. 2022, section 3.1, equation 1.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from colddiff_core import checkpoint, compiling, control, devices, preview, seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.errors import ColddiffError, MachineError
from colddiff_core.experiment import Experiment
from colddiff_core.feed import Feed
from colddiff_core.meter import Meter
from colddiff_core.presets import TrainConfig
from colddiff_core.preview import Sheet
from colddiff_core.runs import RunWriter

UNTRIED = 3  # steps of a compiled network that may fail of it: one compiles, one records its graphs, one runs them
PAUSE_POLL = 0.05  # seconds between looks at control/ while paused
UNTOLD = 0.1  # share of images whose class a conditional network is not told, so that it restores without one too


@dataclasses.dataclass(frozen=True)
class Tick:
    """One optimizer step taken; `metrics` is the logged line on the steps that log.

    A run that is paused or goes on after a pause tells so by one more tick of the same step.
    """

    step: int
    metrics: dict[str, Any] | None = None
    is_paused: bool = False


class Trainer:
    """Trains one experiment into one run directory.

    `steps()` does the work and yields after each optimizer step; `stop()` has it end after the step in
    hand, with a checkpoint. Resuming from that checkpoint gives bit for bit what would have come, and so
    does a run that was paused, sampled or saved at a reader's request in between.
    """

    def __init__(self, experiment: Experiment, train: ImageSet, test: ImageSet, run: RunWriter) -> None:
        self.experiment = experiment
        self.settings: TrainConfig = experiment.config.train
        self.run = run
        self.step = 0
        self.is_stopping = False
        data = experiment.config.data
        self.train_set, self.test_set = train, test
        self.feed = Feed(train, experiment.device, size=data.size, flip=data.flip)
        network = experiment.restorer.unet
        average = AveragedModel(network)
        self._blend = get_ema_multi_avg_fn(self.settings.ema_decay)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        self.parts = checkpoint.Training(network, average, optimizer)
        self.last_sheet: Sheet | None = None
        self._saved = 0  # step of the newest checkpoint
        self._stop_request: list[str] = []
        self._order: tuple[int, Tensor] | None = None
        mode = compiling.mode(self.settings.compile, experiment.device, self.settings.steps, data.size)
        compiling.compile_network(network, mode)
        self._untried = UNTRIED if compiling.is_compiled(network) else 0  # steps

    def resume(self) -> None:
        """Go back to the run's newest complete checkpoint and forget what was logged after it.

        A run that was ended before its first checkpoint begins again: its weights follow from the seed.
        Damaged checkpoints are set aside, with a warning in the events; UsageError where no other is left.
        """
        damaged = self.run.damaged_checkpoints()
        if damaged or self.run.checkpoints():
            self.step = int(checkpoint.load(self.run.newest_checkpoint(), self.parts)["step"])
        for path in damaged:
            aside = checkpoint.set_aside(path)
            self.run.event("warning", message=f"{path.name} was damaged; set aside as {aside.name}")
        self.run.forget_after(self.step)
        self.run.event("resumed", step=self.step)

    def stop(self) -> None:
        """Have the loop end after the step in hand, with a checkpoint."""
        self.is_stopping = True

    def steps(self) -> Iterator[Tick]:
        """Train to the last step, or until `stop`; the run's files follow."""
        try:
            yield from self._loop()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.run.event("failed", step=self.step, why=_reason(error))
            raise

    def _loop(self) -> Iterator[Tick]:
        settings = self.settings
        logged = self.run.metrics()
        meter = Meter(self.experiment.device, elapsed=float(logged[-1].get("elapsed", 0)) if logged else 0.0)
        if not any(event.get("event") == "started" for event in self.run.events()):
            self.run.event("started", device=devices.describe(self.experiment.device), images=len(self.train_set))
        self._saved = self.step
        self._send_ahead(self.step)
        while self.step < settings.steps and not self.is_stopping:
            take = self._try_step if self._untried else self._take_step
            take(meter)
            self.step += 1
            is_last = self.step == settings.steps
            metrics = None
            if self._is_logged(self.step):
                metrics = (
                    {"step": self.step} | meter.read(self.experiment.operator.steps) | {"lr": self._rate(self.step - 1)}
                )
                if not math.isfinite(metrics["loss"]):
                    raise self._diverged(f"The loss is {metrics['loss']}")
                self.run.log(**metrics)
            if is_last or self.step % settings.checkpoint_every == 0:
                self.save()
            if is_last or (settings.sample_every and self.step % settings.sample_every == 0):
                self.write_sheet()
            yield Tick(self.step, metrics)
            if not is_last:
                yield from self._serve(meter)
        if self.step > self._saved:
            self.save()
        if self.step >= settings.steps:
            self.run.event("finished", step=self.step)
        else:
            self.run.event("stopped", step=self.step, **_answering(self._stop_request))

    def _is_logged(self, step: int) -> bool:
        return step == self.settings.steps or step % self.settings.log_every == 0

    def _serve(self, meter: Meter) -> Iterator[Tick]:
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
                    self._stop_request.append(name)
                    self.stop()
                else:
                    known = ", ".join(control.ANSWERS)
                    self.run.event("warning", message=f"control/{name} is no request; known: {known}")
            if began is None or self.is_stopping:
                meter.skip_since(began)
                return
            self.run.beat()
            time.sleep(PAUSE_POLL)

    def _oblige(self, request: str, answer: dict[str, Any]) -> None:
        """Sample or save as a reader asks; what goes wrong with that is no reason to end the training."""
        try:
            if request == "sample":
                self.write_sheet(**answer)
            else:
                self.save(**answer)
        except Exception as error:
            self.run.event("warning", step=self.step, message=f"no {request} as asked: {_reason(error)}", **answer)

    def _send_ahead(self, step: int) -> None:
        """Have a step's images gathered while the one before is taken, where they are not on the device."""
        if step < self.settings.steps and not self.feed.is_resident:
            for part in self._indices(step).split(self.settings.batch_size):
                self.feed.ahead(part)

    def _try_step(self, meter: Meter) -> None:
        """Take one of the first steps of a compiled network; where it fails, say so and go on without compiling.

        A step's randomness follows from its number: taken again, it is the same.
        """
        self._untried -= 1
        known = len(meter.losses)
        try:
            self._take_step(meter)
        except ColddiffError:
            raise
        except Exception as error:
            why = " ".join(_reason(error).split("\n")[0].split())
        else:
            return
        # Not above: until the error is gone it holds all that the step had made.
        self._untried = 0
        compiling.undo(self.parts.network)
        self.run.event("warning", step=self.step, message=f"the network is not compiled: {why}")
        self.parts.optimizer.zero_grad(set_to_none=True)
        meter.keep(known)
        self._take_step(meter)

    def _take_step(self, meter: Meter) -> None:
        """Take one optimizer step: `accumulate` forward and backward passes, then the update.

        On a GPU nothing here waits for it: what is drawn on the CPU goes up pinned, and the loss stays there. Not so a
        second data set, which lies on the CPU, and tables of masks and snow too large to keep.
        """
        settings, experiment = self.settings, self.experiment
        operator, device = experiment.operator, experiment.device
        self._send_ahead(self.step + 1)
        if compiling.is_compiled(self.parts.network):
            compiling.begin_step()
        rate = self._rate(self.step)
        for group in self.parts.optimizer.param_groups:
            group["lr"] = rate
        numbers = seeds.generator(settings.seed, "step", self.step)
        # Fields the size of the images are drawn where they are needed.
        fields = seeds.generator(settings.seed, "frozen", self.step, device=device)
        indices = self._indices(self.step)
        for part in indices.split(settings.batch_size):
            x0 = self.feed.take(part, numbers)
            t = devices.upload(torch.randint(1, operator.steps + 1, (len(x0),), generator=numbers), device)
            frozen = experiment.freeze(x0, fields)
            x_t = experiment.observe(operator(x0, t, frozen), fields)
            error = experiment.restorer(x_t, t, frozen, self._labels(part, numbers)) - x0
            losses = (error.abs() if settings.loss == "l1" else error.square()).mean((1, 2, 3))
            (losses.sum() / len(indices)).backward()
            meter.add(losses.detach(), t)
        if settings.clip:
            meter.grad_norm = torch.nn.utils.clip_grad_norm_(self.parts.network.parameters(), settings.clip)
        elif self._is_logged(self.step + 1):  # to be told alone: a pass over every gradient
            gradients = [p.grad for p in self.parts.network.parameters() if p.grad is not None]
            meter.grad_norm = torch.nn.utils.get_total_norm(gradients)
        self.parts.optimizer.step()
        self.parts.optimizer.zero_grad(set_to_none=True)
        if (self.step + 1) % settings.ema_every == 0:
            self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Bring the average nearer to the weights, or to them the first time."""
        average, network = self.parts.average, self.parts.network
        if not average.n_averaged:
            average.update_parameters(network)
            return
        # Not by update_parameters, which sends the count to the device and waits.
        self._blend(list(average.module.parameters()), list(network.parameters()), average.n_averaged)
        average.n_averaged += 1

    def _labels(self, picked: Tensor, numbers: torch.Generator) -> Tensor | None:
        """Return what a conditional network is told of these images: most of their classes, the rest as unknown."""
        classes = self.experiment.config.model.classes
        if not classes:
            return None
        assert self.train_set.labels is not None
        is_told = torch.rand(len(picked), generator=numbers) >= UNTOLD
        told = torch.where(is_told, self.train_set.labels[picked], classes)
        return devices.upload(told, self.experiment.device)

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0: a linear warm-up, then the schedule."""
        settings = self.settings
        scale = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
        if settings.schedule == "cosine":
            scale *= 0.5 * (1 + math.cos(math.pi * min(step / settings.steps, 1)))
        return settings.lr * scale

    def _indices(self, step: int) -> Tensor:
        """Return a step's training images: every epoch a new permutation, read on across its end."""
        size, count = self.settings.batch_size * self.settings.accumulate, len(self.train_set)
        position = step * size
        picked = []
        while size:
            epoch, offset = divmod(position, count)
            part = self._permutation(epoch)[offset : offset + size]
            picked.append(part)
            position += len(part)
            size -= len(part)
        return torch.cat(picked)

    def _permutation(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            numbers = seeds.generator(self.settings.seed, "epoch", epoch)
            self._order = (epoch, torch.randperm(len(self.train_set), generator=numbers))
        return self._order[1]

    def _diverged(self, what: str) -> MachineError:
        kept = "the last checkpoint is kept" if self.run.checkpoints() else "before the first checkpoint"
        return MachineError(
            f"{what} at step {self.step}, {kept}.",
            f"Use a lower rate: colddiff train --resume {self.run.path} --set train.lr={self.settings.lr / 4:g}",
        )

    def save(self, **details: Any) -> None:
        """Have a checkpoint of this step, told by an event; weights that are not finite are not saved."""
        if not all(p.isfinite().all() for p in self.parts.network.parameters()):
            raise self._diverged("A weight is not finite")
        position = self.step * self.settings.batch_size * self.settings.accumulate
        epoch, offset = divmod(position, len(self.train_set))
        state = {
            "channels": self.experiment.channels,
            "seed": self.settings.seed,
            "epoch": epoch,
            "epoch_position": offset,
        }
        if self._saved != self.step:  # asked for where there is one already
            checkpoint.save(self.run.path / "checkpoints", self.step, self.parts, state, self.settings.keep)
            self._saved = self.step
        self.run.event("checkpoint", step=self.step, **details)

    def write_sheet(self, **details: Any) -> None:
        """Restore some test images into samples/step-NNNNNN.png, with a JSON beside it."""
        self.last_sheet = self.restore_tests()
        name = preview.store(self.run, self.step, self.experiment, self.last_sheet)
        self.run.event("sample", step=self.step, file=name, **details)

    def restore_tests(self) -> Sheet:
        """Return the sheet's columns (B, C, H, W) of test images, by the averaged weights, and their metrics."""
        # With signs of life while the sampler runs, which may take minutes.
        return preview.restore(self.experiment, self.parts.average.module, self.test_set, self.run.beat)


def _answering(requests: list[str]) -> dict[str, Any]:
    """Return the part of an event that names the requests it answers."""
    return {"answers": requests} if requests else {}


def _reason(error: BaseException) -> str:
    return error.what if isinstance(error, ColddiffError) else f"{type(error).__name__}: {error}"
