"""A configuration brought to life: operator, restorer and images, for training and for using a run."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from colddiff_core import datasets, degradations, devices, seeds
from colddiff_core.config.schema import Config
from colddiff_core.config.version import __version__
from colddiff_core.datasets.from_config import load_second
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.degradations.base import Generators, draw_integers, draw_normal
from colddiff_core.errors import UsageError
from colddiff_core.images import jpeg_round_trip, quantize
from colddiff_core.models import Restorer, UNet, compiling, memory
from colddiff_core.sampling import DegradedImages, Sampling, Step, sample
from colddiff_core.text import counted

BEST_JPEG = 100  # quality


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of one configuration on one device.

    pieces: what sampling evaluates the restorer by; it remembers how many images there was memory for.
    """

    config: Config
    operator: Degradation
    restorer: Restorer
    channels: int
    device: torch.device
    second: datasets.ImageSet | None = None
    pieces: memory.ChunkedRestorer = dataclasses.field(default_factory=memory.ChunkedRestorer)

    @property
    def body_dtype(self) -> torch.dtype:
        """Return the dtype that the network's body runs in."""
        unet: Any = self.restorer.unet
        return unet.body_dtype

    @property
    def precision(self) -> str:
        """Return the same as train.precision has it: "bf16" or "float32"."""
        return "bf16" if self.body_dtype == torch.bfloat16 else "float32"

    def batch_size(self, most: Mapping[str, int]) -> int:
        """Return how many images to sample at a time: what memory has room for, `most` of the kind of device at most.

        The same on every call, and on every machine of as much memory.
        """
        side, limit = self.config.data.size, most[self.device.type]
        return memory.batch_size(self.config.model, side, self.body_dtype, self.device, limit)

    @functools.cached_property
    def variants(self) -> tuple[Degradation, ...]:
        """Return the operators that training degrades by, of which any may have made a picture that a user has."""
        jitter = self.config.degradation.jitter
        return self.operator.variants(jitter) if jitter else (self.operator,)

    @property
    def bits(self) -> int:
        """Return what `degrade` rounds to, 0 for not at all."""
        return self.config.degradation.quantize

    def observe(self, x_t: Tensor, generator: Generators) -> Tensor:
        """Return what the network gets to see of x_t: under white noise or rounded, where the preset says so."""
        settings = self.config.degradation
        if settings.dither:
            x_t = x_t + settings.dither * draw_normal(x_t, generator, tuple(x_t.shape[1:]))
        x_t = quantize(x_t, settings.quantize)
        if settings.jpeg:
            drawn = draw_integers(x_t, generator, BEST_JPEG + 1 - settings.jpeg) + settings.jpeg
            x_t = jpeg_round_trip(x_t, drawn.tolist())
        return x_t

    def degrade_variously(self, x0: Tensor, t: Tensor, frozen: Frozen, generator: Generators) -> Tensor:
        """Return D(x0, t) as training shows it, t (B,) int64: by one of the operator's variants for each image."""
        if len(self.variants) == 1:
            return self.operator(x0, t, frozen)
        drawn = draw_integers(x0, generator, len(self.variants))
        x_t = torch.empty_like(x0)
        for number, variant in enumerate(self.variants):
            own = (drawn == number).nonzero()[:, 0]
            if len(own):  # an FFT of nothing is an error
                x_t[own] = variant(x0[own], t[own], frozen[own])
        return x_t

    def freeze(self, x0: Tensor, generator: Generators) -> Frozen:
        """Draw everything random about the images, pictures of the second data set among it."""
        if self.second is None:
            return self.operator.freeze(x0, generator=generator)
        picked = draw_integers(x0, generator, len(self.second))
        fields = {self.operator.second_field: self.second.images(picked).to(x0.device)}
        return self.operator.freeze(x0, generator=generator, **fields)

    def restore(self, images: DegradedImages, sampling: Sampling, labels: Tensor | None = None) -> Iterator[Step]:
        """Take x_t back to x_0 and yield every step.

        White noise that x_t carries by `degradation.dither` stays in every step but the last: x_0 has none. Where
        memory runs out the network gets fewer images at a time, with a ColddiffWarning.

        Args:
            labels: (B,) int64, the classes for a conditional network; None for no known class.

        Raises:
            UsageError: as `sampling.sample` does.
            MachineError: on the way, where memory has no room for a single image.
        """
        is_compiled = self.config.sample.compile != compiling.OFF
        restorer = functools.partial(compiling.evaluated, self.restorer) if is_compiled else self.restorer
        steps = sample(functools.partial(self.pieces, restorer, labels=labels), self.operator, images, sampling)
        return _without_dither(steps) if self.config.degradation.dither else steps

    def with_network(self, unet: nn.Module) -> Experiment:
        """Return the same experiment around another network, such as the averaged one."""
        return dataclasses.replace(self, restorer=self.restorer.with_network(unet))

    def try_out(self, images: datasets.TrainingSet) -> None:
        """Take one image through operator and network, so that what does not fit is told before anything is made.

        Raises UsageError as they do, and where a conditional network is to be trained on images of other classes.
        """
        classes = self.config.model.classes
        if classes and not images.has_labels:
            raise UsageError(
                f"model.classes = {classes}: {self.config.data.dataset} has no classes.", "Use model.classes=0."
            )
        if classes and classes < images.class_count:
            count = images.class_count
            raise UsageError(
                f"model.classes = {classes}: {self.config.data.dataset} has {count}.", f"Use model.classes={count}."
            )
        first = datasets.ImageSet(images.rows(torch.zeros(1, dtype=torch.int64)))
        x0 = first.center(self.config.data.size).images(slice(0, 1))
        x_t, frozen = self.degrade(x0.to(self.device), self.operator.steps, seeds.image_generators(0, [0]))
        with torch.no_grad():
            self.restorer(x_t, self.operator.steps, frozen)

    def degrade(self, x0: Tensor, t: int, generators: Generators) -> tuple[Tensor, Frozen]:
        """Return (x_t, frozen) of images x0, everything random drawn from the generators."""
        frozen = self.freeze(x0, generators)
        return self.observe(self.operator(x0, t, frozen), generators), frozen


def _without_dither(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        yield dataclasses.replace(step, x=step.x0_hat) if step.index == step.count else step


def build(config: Config, channels: int, device: torch.device, split: datasets.base.Split = "train") -> Experiment:
    """Return the parts for images of `channels` channels, the network with fresh weights.

    The weights follow from train.seed; `split` is that of a second data set, where there is one.
    Raises UsageError for an operator, parameter or combination that cannot be, and for an image size
    that the network cannot take.
    """
    operator = degradations.build(config.degradation.name, **config.degradation.parameters)
    Sampling(config.sample.sampler).check(operator)
    if config.degradation.jitter and len(operator.variants(config.degradation.jitter)) == 1:
        what = f"degradation.jitter = {config.degradation.jitter}: {operator.name} has no kernels to vary."
        raise UsageError(what, "Use degradation.jitter=0.")
    model = config.model
    divisor = 2 ** (len(model.multipliers) - 1)
    if config.data.size % divisor:
        near = max(divisor, round(config.data.size / divisor) * divisor)
        times = counted(len(model.multipliers) - 1, "time")
        raise UsageError(
            f"data.size = {config.data.size}: the network halves the side {times}.",
            f"Use a multiple of {divisor}, such as {near}.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        unet = UNet(
            channels * (2 if model.inputs == "inverse" else 1),
            channels,
            width=model.width,
            multipliers=model.multipliers,
            block=model.block,
            attention=model.attention,
            classes=model.classes,
            body_dtype=devices.body_dtype(config.train.precision, device),
        )
    unet = unet.to(device).lay_out(config.data.size)
    restorer = Restorer(unet, operator, inputs=model.inputs, floor=model.floor, consistent=model.consistent)
    second = load_second(config, split, channels, operator.name) if operator.second_field else None
    return Experiment(config, operator, restorer, channels, device, second)


def versions() -> dict[str, str]:
    """Return the versions that a run's figures depend on."""
    return {"colddiff": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
