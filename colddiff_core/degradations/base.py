"""The base class of all degradations.

A degradation is a dataclass of parameters. `freeze` draws everything random about a batch once; after that, calling
the operator is deterministic.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, ClassVar

import torch
from torch import Tensor

from colddiff_core import devices
from colddiff_core.config.fields import setting, settings_of, validate
from colddiff_core.degradations.draws import Generators
from colddiff_core.distributed import threads
from colddiff_core.errors import UsageError
from colddiff_core.text import counted, nearest

Severity = int | Tensor
MOST_STEPS = 10_000
VARIANTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # where an operator's variants lie, in units of the jitter


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The randomness of one batch of images, drawn once.

    Subclasses are dataclasses of tensors; the first axis of every field is the batch. An operator without randomness
    uses this class itself.
    """

    def __getitem__(self, images: slice | Tensor) -> Frozen:
        """Return the fields of the selected images."""
        return dataclasses.replace(self, **{f.name: getattr(self, f.name)[images] for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated severity of a degraded picture.

    Attributes:
        t: the median of the severities by probability, 0..steps; 0 means no trace of the operator.
        low: the lower end of a 90% interval for the true severity.
        high: its upper end.
        confidence: the probability, 0 to 1, that t is within 10% of the true severity, or one step if that is more.
        trace: what was found, in words.
        fields: the fields of Frozen that could be recovered, each for a batch of one.
        evidence: the log of how much more probable the picture is with a trace (t > 0) than without one. Several
            operators are compared by it; 0 means that nothing can be said.
    """

    t: int
    low: int
    high: int
    confidence: float
    trace: str
    fields: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    evidence: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degradation:
    """Degrade images: x_t = D(x0, t) with severity t = 0..steps and D(x0, 0) = x0.

    Images are (B, C, H, W) float32 in [-1, 1]. t is an int, or (B,) int64 with one severity per image.

    To write an operator, subclass this as a frozen dataclass under `@register(name)`, declare its parameters with
    `setting` and define hooks. A public method checks its arguments and calls the hook of the same name; `variants` and
    `severity_to_hide` have none and are overridden themselves. A hook gets a
    valid t, on the images' device if it is a tensor, and `frozen` of type `frozen_type`; it returns:

        _degrade(x0, t, frozen)              x_t. Required. Results for t = 0 are ignored.
        _freeze(x0, generator, fields)       a `frozen_type`, drawing what `fields` lacks. For random operators.
        _pair(x0, s, r, frozen)              (D(x0, s), D(x0, r)), s and r ints > 0. When one pass is cheaper than two.
        _invert(x_t, t, frozen, floor)       a regularized inverse of x_t. With `has_inverse = True`.
        _reestimate(x_t, x0_hat, t, frozen)  a `frozen_type` solved from x_t and x0_hat.
        _estimate(x_t)                       an `Estimate` for one CPU picture. With `has_estimate = True`.

    Raises:
        UsageError: on construction, if a parameter is out of range.

    Source: Bansal et al. 2022, section 3.1.
    """

    name: ClassVar[str]
    frozen_type: ClassVar[type[Frozen]] = Frozen
    has_inverse: ClassVar[bool] = False
    inverts_unseen: ClassVar[bool] = False  # `_invert` uses no random field
    is_linear: ClassVar[bool] = False  # D(., t) is linear or affine, and `_invert` inverts each component separately
    is_coloring: ClassVar[bool] = False  # restoring a gray picture may give it color
    has_estimate: ClassVar[bool] = False
    estimated_fields: ClassVar[tuple[str, ...]] = ()  # the random fields that `estimate` recovers
    second_field: ClassVar[str] = ""  # the random field that holds images of a second data set

    steps: int = setting(50, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in settings_of(type(self))}
        for key, value in validate(type(self), values, self.name).items():
            object.__setattr__(self, key, value)

    @property
    def priors(self) -> tuple[str, ...]:
        """Return the names of the priors that can supply x_T (colddiff_core/sampling/priors.py), the default first."""
        return ("degraded",)

    def __call__(self, x0: Tensor, t: Severity, frozen: Frozen | None = None) -> Tensor:
        """Return x_t = D(x0, t), (B, C, H, W) float32; images with t = 0 are returned bit for bit.

        Shapes: x0 (B, C, H, W) float32 in [-1, 1]; t an int or (B,) int64, in 0..steps.

        Raises:
            UsageError: if t is out of range or `frozen` is missing. The values of a CUDA t are not checked: reading
                them would stall the device.
        """
        threads.adapt()
        t = self._check_severity(t, x0)
        if isinstance(t, int):
            return self._degrade(x0, t, self._require_frozen(frozen)) if t else x0
        return torch.where((t == 0).view(-1, 1, 1, 1), x0, self._degrade(x0, t, self._require_frozen(frozen)))

    def freeze(self, x0: Tensor, *, generator: Generators = None, **fields: Tensor) -> Frozen:
        """Draw everything random about the images x0 (B, C, H, W), once.

        Args:
            x0: images, float32 in [-1, 1].
            generator: one generator for the batch; a sequence of one per image, so that a draw does not depend on the
                other images; or `SlotGenerators`, so that it does not depend on how the batch is split.
            **fields: fields of Frozen to use instead of drawing them; the first axis is the batch.

        Raises:
            UsageError: for an unknown field, or one without exactly one entry per image.
        """
        names = [f.name for f in dataclasses.fields(self.frozen_type)]
        tensors = {}
        for name, value in fields.items():
            if name not in names:
                raise UsageError(f"{self.name} has no random field '{name}'.", nearest(name, names))
            tensors[name] = devices.upload(torch.as_tensor(value), x0.device)
            if tensors[name].shape[:1] != x0.shape[:1]:
                shape = tuple(tensors[name].shape)
                raise UsageError(
                    f"{self.name}: {name} of shape {shape} does not fit {counted(len(x0), 'image')}.",
                    "Give one entry per image.",
                )
        return self._freeze(x0, generator, tensors)

    def pair(self, x0: Tensor, s: int, r: int, frozen: Frozen | None = None) -> tuple[Tensor, Tensor]:
        """Return D(x0, s) and D(x0, r), the two terms of a step of Algorithm 2, in one pass where that is faster.

        Equal to two calls up to rounding, and exactly equal if s or r is 0. Shapes, ranges and errors as in `__call__`.
        """
        if s == 0 or r == 0:
            return self(x0, s, frozen), self(x0, r, frozen)
        self._check_range(min(s, r), max(s, r))
        return self._pair(x0, s, r, self._require_frozen(frozen))

    def reestimate(self, x_t: Tensor, x0_hat: Tensor, t: Severity, frozen: Frozen) -> Frozen:
        """Return the randomness that turns x0_hat into x_t, if the operator can solve for it; else `frozen`.

        Shapes, ranges and errors as in `__call__`.

        Source: Bansal et al. 2022, section 5.1 ("estimated noise").
        """
        return self._reestimate(x_t, x0_hat, self._check_severity(t, x_t), frozen)

    def invert(self, x_t: Tensor, t: Severity, frozen: Frozen | None, floor: float) -> Tensor:
        """Return a first guess at x0: a regularized inverse of x_t, (B, C, H, W) float32, linear where `is_linear`.

        Shapes and ranges as in `__call__`. `floor` is the noise in x_t divided by the spread of the picture: 1e-5 for
        float32, about 1/255 for 8 bits.

        Raises:
            UsageError: if `has_inverse` is false, or as in `__call__`.
        """
        if not self.has_inverse:
            raise UsageError(f"{self.name} has no inverse.", "Use model.inputs=plain.")
        return self._invert(x_t, self._check_severity(t, x_t), self._require_frozen(frozen), floor)

    @property
    def has_reestimate(self) -> bool:
        """Whether `reestimate` solves for all random fields, so that they need not be known in advance."""
        return type(self)._reestimate is not Degradation._reestimate

    @property
    def hides(self) -> bool:
        """Whether the operator hides pixels, so that `severity_to_hide` works."""
        return type(self).severity_to_hide is not Degradation.severity_to_hide

    def severity_to_hide(self, hidden: Tensor) -> tuple[int, dict[str, Tensor]]:
        """Return the lowest severity, and the random fields, at which D hides all pixels of a mask.

        Shapes: hidden (B, H, W) bool, true where a pixel is hidden.

        Raises:
            UsageError: if the operator hides no pixels, or cannot hide this many.
        """
        raise UsageError(f"{self.name} hides no pixels, so a mask does not apply.", "Leave out --mask.")

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        """Return similar operators, this one included: kernels up to `jitter` (a fraction) wider or narrower.

        All of them accept the same Frozen. An operator with nothing to vary returns itself alone.
        """
        return (self,)

    def estimate(self, x_t: Tensor) -> Estimate:
        """Estimate how severely a picture is degraded, from the trace that the operator leaves in it.

        Shapes: x_t (1, C, H, W) float32 in [-1, 1], C = 1 or 3, rounded to 8 bits; any size.

        Raises:
            UsageError: if the input is not such a picture, or its severity cannot be estimated.
        """
        if not self.has_estimate:
            raise UsageError(f"{self.name} leaves no trace to estimate its severity from.", "Give --t.")
        if x_t.ndim != 4 or x_t.shape[0] != 1 or x_t.shape[1] not in (1, 3) or not x_t.numel():
            raise UsageError(
                f"The severity of one picture is estimated at a time, but the shape is {tuple(x_t.shape)}.",
                "Give a picture of shape (1, C, H, W) with 1 or 3 channels.",
            )
        if not x_t.sum().isfinite():  # the sum needs no copy of a large photograph
            raise UsageError("The picture contains NaN or infinite values.", "Use another picture.")
        return self._estimate(x_t.detach().cpu())

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> Frozen:
        """Return a `frozen_type`, drawing the fields that `fields` lacks."""
        return self.frozen_type()

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Any) -> Tensor:
        """Return D(x0, t); the caller replaces images with t = 0."""
        raise TypeError(f"{type(self).__name__} does not define _degrade")

    def _pair(self, x0: Tensor, s: int, r: int, frozen: Any) -> tuple[Tensor, Tensor]:
        """Return D(x0, s) and D(x0, r), s and r above 0."""
        return self._degrade(x0, s, frozen), self._degrade(x0, r, frozen)

    def _reestimate(self, x_t: Tensor, x0_hat: Tensor, t: int | Tensor, frozen: Any) -> Frozen:
        """Return the Frozen solved from x_t and x0_hat."""
        unchanged: Frozen = frozen
        return unchanged

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Any, floor: float) -> Tensor:
        """Return a regularized inverse of x_t."""
        raise TypeError(f"{type(self).__name__} does not define _invert")

    def _estimate(self, x_t: Tensor) -> Estimate:
        """Return the Estimate for one picture on the CPU."""
        raise TypeError(f"{type(self).__name__} does not define _estimate")

    def _check_severity(self, t: Severity, images: Tensor) -> int | Tensor:
        """Return t as an int, or as (B,) int64 on the images' device.

        Raises:
            UsageError: for anything else.
        """
        if not isinstance(t, (Tensor, str)) and getattr(t, "__len__", None):
            t = torch.as_tensor(t)
        if isinstance(t, Tensor) and t.ndim == 1 and not t.is_floating_point() and t.dtype != torch.bool:
            if len(t) != len(images):
                raise UsageError(
                    f"{len(t)} severities for {counted(len(images), 'image')}.", "Give one, or one per image."
                )
            if t.device.type == "cpu" and len(t):
                self._check_range(int(t.min()), int(t.max()))
            return devices.upload(t.to(torch.int64), images.device)
        try:
            if isinstance(t, bool):
                raise TypeError
            single = operator.index(t)
        except TypeError:
            raise UsageError(f"t = {t!r} is not a severity.", "Use a whole number, or one per image.") from None
        self._check_range(single, single)
        return single

    def _check_range(self, low: int, high: int) -> None:
        if low < 0 or high > self.steps:
            t = low if low < 0 else high
            raise UsageError(f"t = {t} is out of range for {self.name}.", f"Use t from 0 to {self.steps} (its steps).")

    def _require_frozen(self, frozen: Frozen | None) -> Frozen:
        if frozen is not None:
            return frozen
        if dataclasses.fields(self.frozen_type):
            raise UsageError(f"{self.name} is random and needs its frozen fields.", "Call freeze first.")
        return self.frozen_type()


def entry_at(table: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
    """Return table[t], a scalar or (B, 1, 1, 1), on the device of the images `like` (B, C, H, W)."""
    entries = devices.on_device(table, like.device)[t]
    return entries if isinstance(t, int) else entries.view(-1, 1, 1, 1)
