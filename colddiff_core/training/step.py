"""One optimizer step: the images, their severities and degradations, the loss of R(D(x0, t), t), the update.

Everything random is keyed by (seed, step) and an image's place in the step, so a step taken again is the same, and so
is one that several processes share. Source: Bansal et al. 2022, section 3.1, equation 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from colddiff_core import devices, seeds
from colddiff_core.config.schema import TrainConfig
from colddiff_core.datasets import TrainingSet
from colddiff_core.distributed import group as ranks
from colddiff_core.errors import ColddiffError, UsageError, reason
from colddiff_core.experiment import Experiment
from colddiff_core.models import compiling
from colddiff_core.runs import checkpoint
from colddiff_core.text import counted
from colddiff_core.training import divergence
from colddiff_core.training.loader import BatchLoader, CropsAndFlips
from colddiff_core.training.log_meter import TrainingLog

UNTRIED = 3  # steps of a compiled network that may fail of it: one compiles, one records its graphs, one runs them
UNTOLD = 0.1  # share of images whose class a conditional network is not told, so that it restores without one too


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Some images of a step, by their places in it, and what was drawn for them: all (B,) on the CPU but views.

    t: severities; is_told: whether a conditional network is told the class, None for a network without classes.
    """

    slots: range
    indices: Tensor
    views: CropsAndFlips
    t: Tensor
    is_told: Tensor | None


def check_processes(settings: TrainConfig, count: int) -> None:
    """Raise UsageError where there are more processes than images of a step."""
    images = settings.batch_size * settings.accumulate
    if images < count:
        what = f"{count} processes for steps of {counted(images, 'image')}."
        raise UsageError(what, "Raise train.batch_size or train.accumulate, or use fewer.")


class Stepper:
    """Takes the optimizer steps of one experiment, each by its number from 0.

    A step is of `train.batch_size` x `train.accumulate` images, however many processes share them: each takes the
    gradient of its own, `batch_size` at a time, and all of them take the same step by the mean of it.

    parts: network, average (the first process's alone) and optimizer; watch: which steps were skipped, since they were
    not finite; falls: how many times the run went back, which lowers the rate.
    """

    def __init__(self, experiment: Experiment, train: TrainingSet, tell: Callable[[str], None]) -> None:
        """Make the optimizer and the average; `tell` is given what training goes on in spite of.

        Raises UsageError as `check_processes` does.
        """
        self.experiment, self.train_set, self._tell = experiment, train, tell
        self.settings: TrainConfig = experiment.config.train
        self.size = self.settings.batch_size * self.settings.accumulate  # images of a step
        self.ranks = ranks.current()
        check_processes(self.settings, self.ranks.count)
        data = experiment.config.data
        self.feed = BatchLoader(train, experiment.device, size=data.size, flip=data.flip)
        network = experiment.restorer.unet
        average = AveragedModel(network) if self.ranks.is_first else None
        self._blend = get_ema_multi_avg_fn(self.settings.ema_decay)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        self.parts = checkpoint.TrainingState(network, average, optimizer)
        self.watch = divergence.DivergenceWatch()
        self.falls = 0
        mode = compiling.mode(self.settings.compile, experiment.device, self.settings.steps, data.size)
        if self.ranks.is_alone or self.settings.compile != "auto":  # a step that one process takes again hangs the rest
            compiling.compile_network(network, mode)
        self._untried = UNTRIED if compiling.is_compiled(network) and self.ranks.is_alone else 0  # steps
        self._called = self.ranks.wrap_ddp(network, experiment.device)
        self._shared = None if self.ranks.is_alone else experiment.restorer.with_network(self._called)

    def take(self, step: int, meter: TrainingLog) -> None:
        """Take a step; one whose loss or gradient is not finite changes no weight, as `watch` will tell.

        Raises LostError where another process has ended.
        """
        with ranks.guarded():
            (self._try if self._untried else self._take)(step, meter)

    def send_ahead(self, step: int) -> None:
        """Have a step's images gathered while the one before is taken, where they are not on the device."""
        if step < self.settings.steps and not self.feed.is_resident:
            indices = self.indices(step)
            for slots in self._passes():
                self.feed.ahead(indices[slots.start : slots.stop])

    def _try(self, step: int, meter: TrainingLog) -> None:
        """Take one of the first steps of a compiled network; where it fails, say so and go on without compiling.

        A step's randomness follows from its number: taken again, it is the same.
        """
        self._untried -= 1
        known = len(meter.losses)
        try:
            self._take(step, meter)
        except ColddiffError:
            raise
        except Exception as error:
            why = " ".join(reason(error).split("\n")[0].split())
        else:
            return
        # Not above: until the error is gone it holds all that the step had made.
        self._untried = 0
        compiling.disable(self.parts.network)
        self._tell(f"the network is not compiled: {why}")
        self.parts.optimizer.zero_grad(set_to_none=True)
        meter.keep(known)
        self._take(step, meter)

    def _take(self, step: int, meter: TrainingLog) -> None:
        """Take one optimizer step: forward and backward passes over this process's images, then the update.

        On a GPU nothing here waits for it: what is drawn on the CPU goes up pinned, and the loss stays there. Not so a
        second data set, which lies on the CPU, and tables of masks and snow too large to keep.
        """
        settings, experiment = self.settings, self.experiment
        device = experiment.device
        self.send_ahead(step + 1)
        if compiling.is_compiled(self.parts.network):
            compiling.begin_step()
        optimizer: Any = self.parts.optimizer
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        restorer = self._shared or experiment.restorer
        loss = torch.zeros((), device=device)
        parts = self.draw(step)
        for part in parts:
            # Fields the size of the images are drawn where they are needed.
            fields = seeds.SlotGenerators((settings.seed, "frozen", step), part.slots, device)
            with self._sending(is_last=part is parts[-1]):
                x0 = self.feed.take(part.indices, part.views)
                t = devices.upload(part.t, device)
                frozen = experiment.freeze(x0, fields)
                x_t = experiment.observe(experiment.degrade_variously(x0, t, frozen, fields), fields)
                error = restorer(x_t, t, frozen, self.labels(part)) - x0
                losses = (error.abs() if settings.loss == "l1" else error.square()).mean((1, 2, 3))
                share = losses.sum() / self.size
                (share * self.ranks.count).backward()  # the gradients' mean over the processes is then of all images
            loss += share.detach()
            meter.add(losses.detach(), t)
        self.ranks.sum(loss)  # so that all of them skip the same steps
        if settings.clip:
            meter.grad_norm = torch.nn.utils.clip_grad_norm_(self.parts.network.parameters(), settings.clip)
        else:
            gradients = [p.grad for p in self.parts.network.parameters() if p.grad is not None]
            meter.grad_norm = torch.nn.utils.get_total_norm(gradients)
        # The fused optimizer leaves weights and moments as they are where this is 1, without the CPU's having to look.
        optimizer.grad_scale, optimizer.found_inf = None, self.watch.add(step + 1, loss, meter.grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % settings.ema_every == 0 and self.parts.average is not None:
            self._update(self.parts.average)

    def draw(self, step: int) -> list[MicroBatch]:
        """Return this process's images of a step, pass by pass, with all that is drawn for them but fields.

        Small numbers are drawn for all images of the step, so that they are the same whoever takes which.
        """
        numbers = seeds.generator(self.settings.seed, "step", step)
        indices = self.indices(step)
        views = self.feed.draw(self.size, numbers)
        t = torch.randint(1, self.experiment.operator.steps + 1, (self.size,), generator=numbers)
        is_told = torch.rand(self.size, generator=numbers) >= UNTOLD if self.experiment.config.model.classes else None
        parts = []
        for slots in self._passes():
            some = slice(slots.start, slots.stop)
            parts.append(
                MicroBatch(slots, indices[some], views[some], t[some], None if is_told is None else is_told[some])
            )
        return parts

    def _passes(self) -> list[range]:
        """Return this process's places in a step, as many at a time as it takes."""
        own, size = self.ranks.slice_of(self.size), self.settings.batch_size
        return [range(first, min(first + size, own.stop)) for first in range(own.start, own.stop, size)]

    @contextlib.contextmanager
    def _sending(self, *, is_last: bool) -> Iterator[None]:
        """Have gradients go to the other processes with the last pass alone: until then they add up here."""
        if is_last or not isinstance(self._called, DistributedDataParallel):
            yield
            return
        with self._called.no_sync():
            yield

    @torch.no_grad()
    def _update(self, average: AveragedModel) -> None:
        """Bring the average nearer to the weights, or to them the first time."""
        network = self.parts.network
        if not average.n_averaged:
            average.update_parameters(network)
            return
        # Not by update_parameters, which sends the count to the device and waits.
        self._blend(list(average.module.parameters()), list(network.parameters()), average.n_averaged)
        average.n_averaged += 1

    def labels(self, part: MicroBatch) -> Tensor | None:
        """Return what a conditional network is told of images that were taken: most of their classes, the rest as
        unknown.
        """
        if part.is_told is None:
            return None
        told = torch.where(part.is_told, self.train_set.labels_of(part.indices), self.experiment.config.model.classes)
        return devices.upload(told, self.experiment.device)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0: a linear warm-up, then the schedule."""
        settings = self.settings
        scale = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
        if settings.schedule == "cosine":
            scale *= 0.5 * (1 + math.cos(math.pi * min(step / settings.steps, 1)))
        return settings.lr * scale * divergence.SLOWER**self.falls

    def indices(self, step: int) -> Tensor:
        """Return a step's training images, (size,) int64 on the CPU."""
        return self.train_set.order(self.settings.seed, step, self.size)
