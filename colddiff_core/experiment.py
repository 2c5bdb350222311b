"""Build the parts of a configuration: operator, restorer and second data set, to train or to use a run."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from colddiff_core import datasets, degradations, devices, seeds
from colddiff_core.config.schema import ALL_CLASSES, Config
from colddiff_core.config.sizes import sides, simplest, typed
from colddiff_core.config.version import __version__
from colddiff_core.datasets.from_config import load_second
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.degradations.draws import Generators, draw_choices, draw_integers, draw_normal
from colddiff_core.errors import UsageError
from colddiff_core.images import jpeg_round_trip, quantize
from colddiff_core.models import Restorer, UNet, compiling, guidance, memory
from colddiff_core.sampling import DegradedImages, Sampling, Step, sample
from colddiff_core.text import counted

BEST_JPEG = 100  # quality


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of one configuration on one device.

    Attributes:
        pieces: Evaluates the restorer in chunks during sampling; it remembers how many images fit into memory.
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
        """Return the dtype of the network's body."""
        unet: Any = self.restorer.unet
        return unet.body_dtype

    @property
    def precision(self) -> str:
        """Return that dtype as `train.precision` spells it: "bf16" or "float32"."""
        return "bf16" if self.body_dtype == torch.bfloat16 else "float32"

    def batch_size(self, most: Mapping[str, int]) -> int:
        """Return how many images to sample at a time: as many as fit into memory, at most `most[device type]`.

        The result depends only on the configuration and the size of the memory.
        """
        size, limit = self.config.data.size, most[self.device.type]
        return memory.batch_size(self.config.model, size, self.body_dtype, self.device, limit)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of an image, (C, H, W)."""
        return self.channels, *sides(self.config.data.size)

    @functools.cached_property
    def variants(self) -> tuple[Degradation, ...]:
        """Return the operators that training uses: with `degradation.jitter`, variants of the operator."""
        jitter = self.config.degradation.jitter
        return self.operator.variants(jitter) if jitter else (self.operator,)

    @property
    def bits(self) -> int:
        """Return how many bits `degrade` rounds to, 0 for no rounding."""
        return self.config.degradation.quantize

    def observe(self, x_t: Tensor, generator: Generators) -> Tensor:
        """Return x_t as the network sees it: with white noise, rounded and compressed, as configured.

        x_t and the result are (B, C, H, W) float32 in about [-1, 1].
        """
        settings = self.config.degradation
        if settings.dither:
            x_t = x_t + settings.dither * draw_normal(x_t, generator, tuple(x_t.shape[1:]))
        x_t = quantize(x_t, settings.quantize)
        if settings.jpeg:
            qualities = draw_integers(x_t, generator, BEST_JPEG + 1 - settings.jpeg) + settings.jpeg
            x_t = jpeg_round_trip(x_t, qualities)
        return x_t

    def degrade_variously(self, x0: Tensor, t: Tensor, frozen: Frozen, generator: Generators) -> Tensor:
        """Return D(x0, t), (B, C, H, W) float32, by a random variant of the operator per image; t is (B,) int64."""
        if len(self.variants) == 1:
            return self.operator(x0, t, frozen)
        choices = draw_choices(x0, generator, len(self.variants))
        x_t = torch.empty_like(x0)
        for number, variant in enumerate(self.variants):
            rows = (choices == number).nonzero()[:, 0]
            if len(rows):  # an FFT of no images is an error
                rows = devices.upload(rows, x0.device)
                x_t[rows] = variant(x0[rows], t[rows], frozen[rows])
        return x_t

    def freeze(self, x0: Tensor, generator: Generators) -> Frozen:
        """Draw everything random about images x0 (B, C, H, W), images of the second data set included."""
        if self.second is None:
            return self.operator.freeze(x0, generator=generator)
        picked = draw_choices(x0, generator, len(self.second))
        fields = {self.operator.second_field: self.second.images(picked, x0.device)}
        return self.operator.freeze(x0, generator=generator, **fields)

    def restore(
        self, images: DegradedImages, sampling: Sampling, labels: Tensor | None = None, guided_by: float = 1.0
    ) -> Iterator[Step]:
        """Restore x_0 from x_t and yield every step, with images (B, C, H, W) float32 in about [-1, 1].

        White noise from `degradation.dither` stays in every step but the last: x_0 has none. If memory runs out, the
        network gets fewer images at a time, with a ColddiffWarning.

        Args:
            images: The degraded images.
            sampling: Sampler, stride and seed.
            labels: (B,) int64, the classes for a conditional network; None if they are unknown.
            guided_by: With labels, how far to lean towards them: 1 as trained, 0 not at all. See `models.guidance`.

        Raises:
            UsageError: The sampler, its stride or the severity does not fit the operator.
            MachineError: Memory has no room for a single image; raised while iterating.
        """
        restorer: Callable[..., Tensor] = self.restorer
        compiled = self.config.sample.compile
        if compiled != compiling.OFF:
            is_optional = compiled == compiling.AUTO
            restorer = compiling.CompiledRestorer(self.restorer, self.restorer.unet, is_optional=is_optional)
        if guided_by == 0:
            labels = None
        elif labels is not None and guided_by != 1:
            restorer = guidance.guided(restorer, guided_by, self.config.model.classes)
        steps = sample(functools.partial(self.pieces, restorer, labels=labels), self.operator, images, sampling)
        return _without_dither(steps) if self.config.degradation.dither else steps

    def compile_for(self, evaluations: int) -> None:
        """With `sample.compile` = "auto", compile the network if that pays off for so many evaluations."""
        if self.config.sample.compile == compiling.AUTO and not compiling.is_compiled(self.restorer.unet):
            side = max(sides(self.config.data.size))
            compiling.compile_network(
                self.restorer.unet, compiling.mode(compiling.AUTO, self.device, evaluations, side)
            )

    def with_network(self, unet: nn.Module) -> Experiment:
        """Return the same experiment with another network, such as the averaged one."""
        return dataclasses.replace(self, restorer=self.restorer.with_network(unet))

    def with_second_kept(self) -> Experiment:
        """Return the same experiment with the second data set on the device, if there is one and it fits."""
        return dataclasses.replace(self, second=self.second.kept_on(self.device)) if self.second else self

    def try_out(self, images: datasets.TrainingSet) -> None:
        """Run one image through operator and network, to fail before anything is written.

        Raises:
            UsageError: Something does not fit, such as the classes of a conditional network.
        """
        classes = self.config.model.classes
        if classes and not images.has_labels:
            raise UsageError(
                f"model.classes = {classes}: {self.config.data.dataset} has no classes.", "Use model.classes=0."
            )
        if classes and classes < images.class_count:
            count = images.class_count
            raise UsageError(
                f"model.classes = {classes}: {self.config.data.dataset} has {count}.",
                f"Use model.classes={count}, or all.",
            )
        first = datasets.ImageSet(images.rows(torch.zeros(1, dtype=torch.int64)))
        x0 = first.center(self.config.data.size).images(slice(0, 1))
        x_t, frozen = self.degrade(x0.to(self.device), self.operator.steps, seeds.image_generators(0, [0]))
        with torch.no_grad():
            self.restorer(x_t, self.operator.steps, frozen)

    def degrade(self, x0: Tensor, t: int, generators: Generators) -> tuple[Tensor, Frozen]:
        """Degrade images x0 to severity t, with everything random drawn from the generators.

        Returns:
            x_t (B, C, H, W) float32 as the network sees it, and what was drawn for the operator.
        """
        frozen = self.freeze(x0, generators)
        return self.observe(self.operator(x0, t, frozen), generators), frozen


def _without_dither(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        yield dataclasses.replace(step, x=step.x0_hat) if step.index == step.count else step


def build_operator(config: Config, *, stride: int = 1) -> Degradation:
    """Build the operator of a configuration and check that sampler, `stride` and jitter fit it.

    Raises:
        UsageError: Operator, parameter or sampler is unknown or out of range, or they do not fit together.
    """
    operator = degradations.build(config.degradation.name, **config.degradation.parameters)
    Sampling.of(config, stride=stride).check(operator)
    if config.degradation.jitter and len(operator.variants(config.degradation.jitter)) == 1:
        what = f"degradation.jitter = {config.degradation.jitter}: {operator.name} has no kernels to vary."
        raise UsageError(what, "Use degradation.jitter=0.")
    return operator


def build(
    config: Config,
    channels: int,
    device: torch.device,
    split: datasets.base.Split = "train",
    *,
    operator: Degradation | None = None,
) -> Experiment:
    """Build all parts of a configuration; the network gets initial weights that follow from `train.seed`.

    Args:
        config: The configuration.
        channels: Channels of the images.
        device: Where the network is placed.
        split: Split of the second data set, if there is one.
        operator: From `build_operator`, if it was called already.

    Raises:
        UsageError: The operator does not fit, the network cannot take the image size, or a second data set is missing.
    """
    operator = operator or build_operator(config)
    model = config.model
    if model.classes == ALL_CLASSES:
        raise UsageError("model.classes = all: the classes are counted when training starts.", "Give their number.")
    divisor = 2 ** (len(model.multipliers) - 1)
    if any(side % divisor for side in sides(config.data.size)):
        near = simplest(*(max(divisor, round(side / divisor) * divisor) for side in sides(config.data.size)))
        times = counted(len(model.multipliers) - 1, "time")
        is_square = isinstance(config.data.size, int)
        raise UsageError(
            f"data.size = {typed(config.data.size)}: the network halves {'the side' if is_square else 'both'} {times}.",
            f"Use {'a multiple' if is_square else 'multiples'} of {divisor}, such as {typed(near)}.",
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
            stem=model.stem,
        )
    unet = unet.to(device).lay_out(max(sides(config.data.size)))
    restorer = Restorer(unet, operator, inputs=model.inputs, floor=model.floor, consistent=model.consistent)
    second = load_second(config, split, channels, operator.name) if operator.second_field else None
    return Experiment(config, operator, restorer, channels, device, second)


def versions() -> dict[str, str]:
    """Return the versions of colddiff, python and torch, which a run's metrics depend on."""
    return {"colddiff": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
