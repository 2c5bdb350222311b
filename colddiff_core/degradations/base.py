"""What a degradation is.

A degradation is a dataclass of parameters with two halves kept apart: `freeze` draws everything
random about a batch of images once, and calling the operator is then deterministic.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from colddiff_core.config.fields import setting, settings_of, validate
from colddiff_core.errors import UsageError
from colddiff_core.seeds import SlotGenerators
from colddiff_core.text import counted, nearest

Generators = torch.Generator | SlotGenerators | Sequence[torch.Generator] | None
Severity = int | Tensor
MOST_STEPS = 10_000
VARIANTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the variants of an operator, in units of the jitter


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The randomness of one batch of images, drawn once: subclasses are dataclasses of tensors.

    Every field has the batch as its first axis; an operator without randomness uses this class bare.
    """

    def __getitem__(self, images: slice | Tensor) -> Frozen:
        """Return the fields of some images of the batch."""
        return dataclasses.replace(self, **{f.name: getattr(self, f.name)[images] for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How badly a picture is degraded, as the operator's own trace in it tells.

    t: the most likely severity, 0..steps, 0 where there is no trace; low, high: nine chances in ten that the
    truth is between them; confidence: the chance, 0 to 1, that t is within a tenth (and at least a step) of it;
    trace: what was seen, in words; fields: what is known of Frozen, each with a batch of one.
    """

    t: int
    low: int
    high: int
    confidence: float
    trace: str
    fields: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degradation:
    """D(x0, t): an image transform with severity t = 0..steps, D(x0, 0) = x0.

    Source: Bansal et al. 2022, section 3.1.
    """

    name: ClassVar[str]
    frozen_type: ClassVar[type[Frozen]] = Frozen
    has_inverse: ClassVar[bool] = False
    is_linear: ClassVar[bool] = False  # D(., t) is linear, or that and an offset, and `_invert` inverts it part by part
    is_coloring: ClassVar[bool] = False  # a gray picture may be what it made of one in color
    has_estimate: ClassVar[bool] = False
    estimated: ClassVar[tuple[str, ...]] = ()  # the random fields that an estimate tells
    second_field: ClassVar[str] = ""  # the random field that takes images of a second data set

    steps: int = setting(50, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in settings_of(type(self))}
        for key, value in validate(type(self), values, self.name).items():
            object.__setattr__(self, key, value)

    @property
    def priors(self) -> tuple[str, ...]:
        """Names of the priors that x_T can be drawn from (colddiff_core/sampling/priors.py), the default first."""
        return ("degraded",)

    def __call__(self, x0: Tensor, t: Severity, frozen: Frozen | None = None) -> Tensor:
        """Return x_t = D(x0, t).

        Shapes: x0 (B, C, H, W) float32 in [-1, 1]; t an int, or (B,) int64, in 0..steps.
        Returns (B, C, H, W) float32; images with t = 0 come back bit for bit.
        Raises UsageError where t is out of range (a CUDA tensor of t is taken at its word: looking
        would stall the device) or `frozen` is missing.
        """
        t = self._checked(t, x0)
        if isinstance(t, int):
            return self._degrade(x0, t, self._known(frozen)) if t else x0
        return torch.where((t == 0).view(-1, 1, 1, 1), x0, self._degrade(x0, t, self._known(frozen)))

    def freeze(self, x0: Tensor, *, generator: Generators = None, **fields: Tensor) -> Frozen:
        """Draw everything random about the images x0 (B, C, H, W), once.

        `generator` is one for the batch, a sequence of one per image, which makes an image's draw independent of its
        neighbors, or `SlotGenerators`, which make it independent of how the batch is divided. A field given by name is
        taken as it is, on x0's device.
        Raises UsageError for a field that the operator does not have or that is not one entry an image.
        """
        known = [f.name for f in dataclasses.fields(self.frozen_type)]
        given = {}
        for name, value in fields.items():
            if name not in known:
                raise UsageError(f"{self.name} has no random field '{name}'.", nearest(name, known))
            given[name] = torch.as_tensor(value).to(x0.device)
            if given[name].shape[:1] != x0.shape[:1]:
                shape = tuple(given[name].shape)
                raise UsageError(
                    f"{self.name}: {name} of shape {shape} for {counted(len(x0), 'image')}.", "Give one entry an image."
                )
        return self._freeze(x0, generator, given)

    def pair(self, x0: Tensor, s: int, r: int, frozen: Frozen | None = None) -> tuple[Tensor, Tensor]:
        """Return D(x0, s) and D(x0, r), what a step of Algorithm 2 takes from x_s and adds, in one pass where it pays.

        Shapes, ranges and errors as in calling; equal to two calls up to rounding, and exactly where s or r is 0.
        """
        if s == 0 or r == 0:
            return self(x0, s, frozen), self(x0, r, frozen)
        self._check_range(min(s, r), max(s, r))
        return self._pair(x0, s, r, self._known(frozen))

    def reestimate(self, x_t: Tensor, x0_hat: Tensor, t: Severity, frozen: Frozen) -> Frozen:
        """Return the randomness that would turn x0_hat into x_t, where x_t tells; else `frozen`.

        Shapes and ranges as in calling. Source: Bansal et al. 2022, section 5.1 ("estimated noise").
        """
        return self._reestimate(x_t, x0_hat, self._checked(t, x_t), frozen)

    def invert(self, x_t: Tensor, t: Severity, frozen: Frozen | None, floor: float) -> Tensor:
        """Return a regularized linear inverse of x_t: what the operator left, put back in proportion.

        `floor` is the noise of x_t over the spread of the picture: 1e-5 for float32, about 1/255 for
        8 bits. Shapes and ranges as in calling. Raises UsageError where `has_inverse` is false.
        """
        if not self.has_inverse:
            raise UsageError(f"{self.name} has no inverse.", "Use model.inputs=plain.")
        return self._invert(x_t, self._checked(t, x_t), self._known(frozen), floor)

    @property
    def is_solving(self) -> bool:
        """Tell whether `reestimate` finds what is random in x_t, so that nothing of it has to be known before."""
        return type(self)._reestimate is not Degradation._reestimate

    def covering(self, hidden: Tensor) -> tuple[int, dict[str, Tensor]]:
        """Return the least severity, and the random fields, by which D hides some pixels, hidden (B, H, W) bool.

        Raises UsageError where the operator hides no pixels, or not as many.
        """
        raise UsageError(f"{self.name} hides no pixels, so a mask says nothing of it.", "Leave --mask out.")

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        """Return operators with kernels up to a share `jitter` wider or narrower, or of other kinds, this among them.

        What one has drawn for an image is good for all. Where nothing of that is to be varied this one is alone.
        """
        return (self,)

    def estimate(self, x_t: Tensor) -> Estimate:
        """Return how severely one picture is degraded already, from the operator's own trace in it.

        Shapes: x_t (1, C, H, W) float32 in [-1, 1], C = 1 or 3, that was rounded to 8 bits; any size.
        Raises UsageError for anything else and where the operator leaves no trace that can be read.
        """
        if not self.has_estimate:
            raise UsageError(f"{self.name} leaves no trace that tells its severity.", "Give --t.")
        if x_t.ndim != 4 or x_t.shape[0] != 1 or x_t.shape[1] not in (1, 3) or not x_t.numel():
            raise UsageError(f"A severity is told of one picture, not of {tuple(x_t.shape)}.", "Give one at a time.")
        if not x_t.sum().isfinite():  # the sum, for a photograph's `isfinite` would be as large as the photograph
            raise UsageError("The picture has values that are no numbers.", "Give another.")
        return self._estimate(x_t.detach().cpu())

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> Frozen:
        """Return the operator's Frozen, drawing what `fields` does not give."""
        return self.frozen_type()

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Any) -> Tensor:
        """Return D(x0, t) for t checked and on x0's device; what t = 0 gives in a tensor does not matter."""
        raise TypeError(f"{type(self).__name__} does not define _degrade")

    def _pair(self, x0: Tensor, s: int, r: int, frozen: Any) -> tuple[Tensor, Tensor]:
        """Return what `pair` does, for s and r checked and neither 0."""
        return self._degrade(x0, s, frozen), self._degrade(x0, r, frozen)

    def _reestimate(self, x_t: Tensor, x0_hat: Tensor, t: int | Tensor, frozen: Any) -> Frozen:
        """Return what `reestimate` does, for t checked and on x_t's device."""
        solved: Frozen = frozen
        return solved

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Any, floor: float) -> Tensor:
        """Return what `invert` does, for t checked and on x_t's device."""
        raise TypeError(f"{type(self).__name__} does not define _invert")

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Return what `estimate` does, for one picture checked and on the CPU."""
        raise TypeError(f"{type(self).__name__} does not define _estimate")

    def _checked(self, t: Severity, images: Tensor) -> int | Tensor:
        """Return t as an int, or as (B,) int64 on the images' device; raises UsageError for anything else."""
        if not isinstance(t, (Tensor, str)) and getattr(t, "__len__", None):
            t = torch.as_tensor(t)
        if isinstance(t, Tensor) and t.ndim == 1 and not t.is_floating_point() and t.dtype != torch.bool:
            if len(t) != len(images):
                raise UsageError(
                    f"{len(t)} severities for {counted(len(images), 'image')}.", "Give one, or one per image."
                )
            if t.device.type == "cpu" and len(t):
                self._check_range(int(t.min()), int(t.max()))
            return t.to(images.device, torch.int64)
        try:
            if isinstance(t, bool):
                raise TypeError
            single = operator.index(t)
        except TypeError:
            raise UsageError(f"t = {t!r} is no severity.", "Use a whole number, or one for each image.") from None
        self._check_range(single, single)
        return single

    def _check_range(self, low: int, high: int) -> None:
        if low < 0 or high > self.steps:
            t = low if low < 0 else high
            raise UsageError(f"t = {t} is out of range for {self.name}.", f"Use t from 0 to {self.steps} (its steps).")

    def _known(self, frozen: Frozen | None) -> Frozen:
        if frozen is not None:
            return frozen
        if dataclasses.fields(self.frozen_type):
            raise UsageError(f"{self.name} is random and was called without its frozen fields.", "Call freeze first.")
        return self.frozen_type()


def at(table: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
    """Return a table's entries for t, shaped to multiply images `like` (B, C, H, W)."""
    entries = on_device(table, like.device)[t]
    return entries if isinstance(t, int) else entries.view(-1, 1, 1, 1)


_COPIES: MutableMapping[Tensor, dict[torch.device, Tensor]] = WeakTensorKeyDictionary()


def on_device(table: Tensor, device: torch.device) -> Tensor:
    """Return an operator's table on a device: brought there once, for a copy makes the device wait."""
    if table.device == device:
        return table
    copies = _COPIES.setdefault(table, {})
    if device not in copies:
        copies[device] = table.to(device)
    return copies[device]


def draw_normal(x0: Tensor, generator: Generators, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers of `shape` for each image: (B, *shape) float32."""
    return _each(x0, generator, lambda g, device, lead: torch.randn(lead + shape, generator=g, device=device))


def draw_uniform(x0: Tensor, generator: Generators, shape: tuple[int, ...]) -> Tensor:
    """Return numbers uniform in [0, 1) of `shape` for each image: (B, *shape) float32."""
    return _each(x0, generator, lambda g, device, lead: torch.rand(lead + shape, generator=g, device=device))


def draw_integers(x0: Tensor, generator: Generators, below: int) -> Tensor:
    """Return a whole number in 0..below - 1 for each image: (B,) int64."""
    return _each(x0, generator, lambda g, device, lead: torch.randint(below, lead, generator=g, device=device))


Draw = Callable[[torch.Generator | None, torch.device, tuple[int, ...]], Tensor]


def _each(x0: Tensor, generator: Generators, draw: Draw) -> Tensor:
    """Draw for a whole batch from one generator, grain by grain, or image by image from as many as there are."""
    if generator is None or isinstance(generator, torch.Generator):
        # Drawn where the generator lives, so that a CPU generator gives the same numbers on every device.
        device = generator.device if generator is not None else x0.device
        return draw(generator, device, (len(x0),)).to(x0.device)
    if len(generator) != len(x0):
        raise UsageError(
            f"{counted(len(generator), 'generator')} for {counted(len(x0), 'image')}.", "Give one, or one per image."
        )
    if not len(generator):
        return draw(None, x0.device, (0,))
    if isinstance(generator, SlotGenerators):
        return generator.draw(lambda g, count: draw(g, g.device, (count,))).to(x0.device)
    return torch.cat([draw(g, g.device, (1,)) for g in generator]).to(x0.device)
