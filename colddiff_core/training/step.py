"""One optimizer step: the images, their severities and degradations, the loss of R(D(x0, t), t), the update.

Everything random is keyed by seed, step and an image's slot in the step, so a step repeats exactly, however many
processes share it. Source: Bansal et al. 2022, section 3.1, equation 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from colddiff_core import devices, seeds
from colddiff_core.config.schema import TrainConfig
from colddiff_core.config.sizes import sides
from colddiff_core.datasets import TrainingSet
from colddiff_core.distributed import group as ranks
from colddiff_core.distributed import threads
from colddiff_core.errors import ColddiffError, ColddiffWarning, UsageError, is_out_of_memory
from colddiff_core.experiment import Experiment
from colddiff_core.models import compiling
from colddiff_core.runs import checkpoint
from colddiff_core.text import counted
from colddiff_core.training import divergence, passes, schedule
from colddiff_core.training.loader import BatchLoader, CropsAndFlips
from colddiff_core.training.log_meter import TrainingLog

UNTRIED = 3  # steps in which compilation may fail: one compiles, one records CUDA graphs, one replays them
VARIED = "other programs use the processors, so fewer threads train meanwhile; OMP_NUM_THREADS=N keeps the number"
WARM_UPDATES = 10  # of the average, during which it also follows every step in between


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Some images of a step and what was drawn for them: tensors (B,) on the CPU.

    Attributes:
        slots: Their places in the step.
        indices: int64, into the training set.
        t: int64, severities.
        is_labeled: bool, whether a conditional network sees the class; None for a network without classes.
    """

    slots: range
    indices: Tensor
    views: CropsAndFlips
    t: Tensor
    is_labeled: Tensor | None


def check_processes(settings: TrainConfig, count: int) -> None:
    """Check that a step has an image for every process.

    Raises:
        UsageError: There are more processes than images.
    """
    images = settings.batch_size * settings.accumulate
    if images < count:
        what = f"{count} processes for steps of {counted(images, 'image')}."
        raise UsageError(what, "Raise train.batch_size or train.accumulate, or use fewer.")


def warm_decay(decay: float, updates: int) -> float:
    """Return the decay of the moving average after `updates` updates, in [0, decay]; 0 copies the weights."""
    return min(decay, (1 + updates) / (10 + updates)) if updates else 0.0


class Stepper:
    """Takes the optimizer steps of one experiment, numbered from 0.

    A step has `train.batch_size` x `train.accumulate` images, however many processes share them. Each process computes
    the gradient of its share, and all take the same step with the mean. On a CPU a pass has `batch_size` images,
    on a GPU as many as fit in memory (`passes`); up to rounding, the step does not depend on it.

    Attributes:
        parts: Network, average (on rank 0 only) and optimizer.
        most: The most images of a pass; halved whenever a GPU's memory runs out.
        compile_mode: torch.compile's mode for the network; empty if it is not compiled.
        watch: Skipped steps.
        falls: How often the run went back, each time to a lower learning rate.
        joint: How the learning rate joins the schedule, if the run was resumed with another length.
    """

    def __init__(self, experiment: Experiment, train: TrainingSet, note: Callable[[str], None]) -> None:
        """Create the optimizer and the average; `note` receives messages about problems that do not end training.

        Raises:
            UsageError: There are more processes than images in a step.
        """
        self.train_set, self._note = train, note
        self.settings: TrainConfig = experiment.config.train
        self.size = self.settings.batch_size * self.settings.accumulate  # images per step
        self.ranks = ranks.current()
        check_processes(self.settings, self.ranks.count)
        data = experiment.config.data
        self.feed = BatchLoader(train, experiment.device, size=data.size, flip=data.flip)
        self.experiment = experiment = experiment.with_second_kept()  # if it fits beside the training images
        network = experiment.restorer.unet
        average = AveragedModel(network) if self.ranks.is_first else None
        # Listed once: walking through a small network's modules takes a tenth of a step.
        self._weights = list(network.parameters())
        self._averages = list(average.module.parameters()) if average else []
        optimizer = torch.optim.AdamW(
            self._weights, lr=self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        self.parts = checkpoint.TrainingState(network, average, optimizer)
        self.watch = divergence.DivergenceWatch()
        self.falls = 0
        self.joint: schedule.Joint | None = None
        self.most = passes.most_images(experiment, self.feed.pixel_bytes)
        mode = compiling.mode(self.settings.compile, experiment.device, self.settings.steps, max(sides(data.size)))
        # A rank that repeats a failed step would hang the others, so "auto" compiles only a training of one process.
        self.compile_mode = mode if self.ranks.is_alone or self.settings.compile != "auto" else ""
        compiling.compile_network(network, self.compile_mode)
        self._has_noted_threads = False
        self._untried = UNTRIED if compiling.is_compiled(network) and self.ranks.is_alone else 0  # steps
        self._called = self.ranks.wrap_ddp(network, experiment.device)
        self._shared = None if self.ranks.is_alone else experiment.restorer.with_network(self._called)

    @torch.enable_grad()  # notebooks that only sample turn gradients off
    def take(self, step: int, meter: TrainingLog) -> None:
        """Take a step. If its loss or gradient is not finite, no weight changes and `watch` records it.

        The CPU does not wait for a GPU here: draws are uploaded from pinned memory, and the loss stays on the device.

        Raises:
            LostError: Another process ended.
            MachineError: Memory ran out and passes are not halved: on a CPU, with several processes, or at one image.
        """
        with ranks.guarded():
            self._advance(step, self._try(step, meter), meter)
        if threads.has_varied() and not self._has_noted_threads:
            self._has_noted_threads = True
            self._note(VARIED)

    def send_ahead(self, step: int) -> None:
        """Start to gather a step's images in the background, unless they are on the device."""
        if step < self.settings.steps and not self.feed.is_resident:
            indices = self.indices(step)
            for slots in self._passes():
                self.feed.ahead(indices[slots.start : slots.stop])

    def _try(self, step: int, meter: TrainingLog) -> Tensor:
        """Return the loss () float32 of a step and leave its gradients in the weights.

        If memory runs out on a GPU, the step is repeated with passes of half the size. If one of the first steps of a
        compiled network fails, it is repeated without compilation. Each repetition issues a ColddiffWarning. A step's
        randomness follows from its number, so the repeated step is the same.
        """
        while True:
            logged = len(meter.losses)
            try:
                loss = self._differentiate(step, meter)
            except ColddiffError:
                raise
            except Exception as error:
                largest = max(map(len, self._passes()))
                is_short = is_out_of_memory(error)
                is_halved = is_short and largest > 1 and self._can_halve
                if is_short and not (is_halved or self._untried):
                    raise passes.no_room(self.experiment, largest) from error
                if not (is_halved or self._untried):
                    raise
                why = compiling.failure(error)
            else:
                self._untried = max(0, self._untried - 1)
                return loss
            # Not in the handler: the error keeps the tensors of the failed step alive.
            self.parts.optimizer.zero_grad(set_to_none=True)
            meter.keep(logged)
            message = self._halve(largest) if is_halved else self._stop_compiling(why)
            self._note(message)
            warnings.warn(message, ColddiffWarning, stacklevel=2)

    @property
    def _can_halve(self) -> bool:
        """Whether passes may become smaller: a rank that repeats a step would hang the others."""
        return self.ranks.is_alone and passes.follow_memory(self.experiment.device)

    def _halve(self, largest: int) -> str:
        """Halve the pass size, given that of the largest pass, and free memory; return a message."""
        self.most = largest // 2
        if compiling.is_compiled(self.parts.network):
            self._untried = UNTRIED  # it compiles again, for the new size
            compiling.forget()
        else:
            torch.cuda.empty_cache()
        smaller = max(map(len, self._passes()))
        return f"memory ran out on {self.experiment.device} with {largest} images in a pass; continuing with {smaller}"

    def _stop_compiling(self, why: str) -> str:
        """Continue without compilation; return a message."""
        self._untried, self.compile_mode = 0, ""
        # Undo halvings: the compiler may have taken the memory.
        self.most = passes.most_images(self.experiment, self.feed.pixel_bytes)
        compiling.disable(self.parts.network)
        return f"the network is not compiled: {why}"

    def _differentiate(self, step: int, meter: TrainingLog) -> Tensor:
        """Run the forward and backward passes of this process's images; return the loss () over all processes."""
        settings, experiment = self.settings, self.experiment
        device = experiment.device
        self.send_ahead(step + 1)
        if compiling.is_compiled(self.parts.network):
            compiling.begin_step()
        restorer = self._shared or experiment.restorer
        loss = torch.zeros((), device=device)
        parts = self.draw(step)
        for part in parts:
            # Image-sized fields are drawn on the device that needs them.
            fields = seeds.SlotGenerators((settings.seed, "frozen", step), part.slots, device)
            with self._sending(is_last=part is parts[-1]):
                x0 = self.feed.take(part.indices, part.views)
                t = devices.upload(part.t, device)
                frozen = experiment.freeze(x0, fields)
                x_t = experiment.observe(experiment.degrade_variously(x0, t, frozen, fields), fields)
                error = restorer(x_t, t, frozen, self.labels(part)) - x0
                losses = (error.abs() if settings.loss == "l1" else error.square()).mean((1, 2, 3))
                share = losses.sum() / self.size
                # DDP averages over processes: with the factor, the result is the mean over all images.
                (share * self.ranks.count).backward()
            loss += share.detach()
            meter.add(losses.detach(), t)
        return self.ranks.sum(loss)  # so that all processes skip the same steps

    def _advance(self, step: int, loss: Tensor, meter: TrainingLog) -> None:
        """Update the weights from their gradients, then the average."""
        optimizer: Any = self.parts.optimizer
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if self.settings.clip:
            meter.grad_norm = torch.nn.utils.clip_grad_norm_(self._weights, self.settings.clip)
        else:
            gradients = [weight.grad for weight in self._weights if weight.grad is not None]
            meter.grad_norm = torch.nn.utils.get_total_norm(gradients)
        # If found_inf is 1, the fused optimizer changes nothing, and the CPU need not wait to see it.
        optimizer.grad_scale, optimizer.found_inf = None, self.watch.add(step + 1, loss, meter.grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.parts.average is not None:
            self._update(self.parts.average, is_due=(step + 1) % self.settings.ema_every == 0)

    def draw(self, step: int) -> list[MicroBatch]:
        """Return this process's images of a step as micro-batches, with all draws but image-sized fields.

        Draws are made for all images of the step, so that they do not depend on how processes share it.
        """
        numbers = seeds.generator(self.settings.seed, "step", step)
        indices = self.indices(step)
        views = self.feed.draw(self.size, numbers)
        t = torch.randint(1, self.experiment.operator.steps + 1, (self.size,), generator=numbers)
        is_labeled = None
        if self.experiment.config.model.classes:
            is_labeled = torch.rand(self.size, generator=numbers) >= self.settings.unlabeled
        parts = []
        for slots in self._passes():
            some = slice(slots.start, slots.stop)
            parts.append(
                MicroBatch(slots, indices[some], views[some], t[some], None if is_labeled is None else is_labeled[some])
            )
        return parts

    def _passes(self) -> list[range]:
        """Return this process's slots in a step, one range per micro-batch."""
        slots = self.ranks.slice_of(self.size)
        return passes.divide(slots, self.most, is_even=passes.follow_memory(self.experiment.device))

    @contextlib.contextmanager
    def _sending(self, *, is_last: bool) -> Iterator[None]:
        """Exchange gradients in the last pass only; before that they add up locally."""
        if is_last or not isinstance(self._called, DistributedDataParallel):
            yield
            return
        with self._called.no_sync():
            yield

    @torch.no_grad()
    def _update(self, average: AveragedModel, *, is_due: bool) -> None:
        """Update the moving average if it is due; the first few updates are made at every step and count when due.

        With a constant decay the average of a short training would consist of its first weights, and that of one
        shorter than `ema_every` of the initial ones.

        Source: for the growing decay, `num_updates` of TensorFlow's ExponentialMovingAverage. Bansal et al. copy the
        weights during the first 2,000 steps instead (`step_start_ema` in their code).
        """
        updates = int(average.n_averaged)  # on the CPU
        if not (is_due or updates < WARM_UPDATES):
            return
        get_ema_multi_avg_fn(warm_decay(self.settings.ema_decay, updates))(self._averages, self._weights, updates)
        average.n_averaged += is_due

    def labels(self, part: MicroBatch) -> Tensor | None:
        """Return the classes (B,) int64 that the network sees, a few replaced by "unknown"; None without classes."""
        if part.is_labeled is None:
            return None
        unknown = self.experiment.config.model.classes
        labels = torch.where(part.is_labeled, self.train_set.labels_of(part.indices), unknown)
        return devices.upload(labels, self.experiment.device)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, lowered by each fall."""
        return self.settings.lr * schedule.scale(self.settings, step, self.joint) * divergence.SLOWER**self.falls

    def indices(self, step: int) -> Tensor:
        """Return the indices of a step's training images, (size,) int64 on the CPU."""
        return self.train_set.order(self.settings.seed, step, self.size)
