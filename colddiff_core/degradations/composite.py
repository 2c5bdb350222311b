"""`a+b`: one operator after another, their severities in step."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from colddiff_core.config.fields import setting, settings_of, validate
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Frozen, Generators
from colddiff_core.errors import UsageError
from colddiff_core.text import nearest, shown

JOIN = "+"
MOST_PARTS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composite(Degradation):
    """D(x0, t) = D_n(... D_1(x0, t_1) ..., t_n), t_i = t scaled to the steps of part i.

    Its random fields are those of its parts, under their own names; a name that two parts share gets the
    part's number behind it (`z_1`, `z_2`).
    """

    parts: tuple[Degradation, ...]
    fields: tuple[dict[str, str], ...]

    steps: int = setting(1, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)

    def __post_init__(self) -> None:
        """The parts are checked already."""

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        each = [part.variants(jitter) for part in self.parts]
        count = max(map(len, each))
        made = [
            dataclasses.replace(self, parts=tuple(own[number * len(own) // count] for own in each))
            for number in range(count)
        ]
        return tuple(made if self in made else [self, *made])

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> Frozen:
        drawn: dict[str, Tensor] = {}
        for part, names in zip(self.parts, self.fields, strict=True):
            given = {name: fields[joint] for name, joint in names.items() if joint in fields}
            frozen = part._freeze(x0, generator, given)
            drawn |= {joint: getattr(frozen, name) for name, joint in names.items()}
        return self.frozen_type(**drawn)

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        return self._through(x0, t, frozen, len(self.parts))

    def _reestimate(self, x_t: Tensor, x0_hat: Tensor, t: int | Tensor, frozen: Frozen) -> Frozen:
        """Solve for the last part's randomness; x_t does not tell what the earlier ones drew, which is kept.

        So `blur+noise` samples with estimated noise, and `noise+blur` with the noise that was drawn.
        """
        before = self._through(x0_hat, t, frozen, len(self.parts) - 1)
        part, names = self.parts[-1], self.fields[-1]
        found = part.reestimate(x_t, before, self._own(t, part), self._part(frozen, len(self.parts) - 1))
        return dataclasses.replace(frozen, **{joint: getattr(found, name) for name, joint in names.items()})

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        for index in reversed(range(len(self.parts))):
            x_t = self.parts[index].invert(x_t, self._own(t, self.parts[index]), self._part(frozen, index), floor)
        return x_t

    def _through(self, x: Tensor, t: int | Tensor, frozen: Frozen, count: int) -> Tensor:
        for index in range(count):
            x = self.parts[index](x, self._own(t, self.parts[index]), self._part(frozen, index))
        return x

    def _part(self, frozen: Frozen, index: int) -> Frozen:
        values = {name: getattr(frozen, joint) for name, joint in self.fields[index].items()}
        return self.parts[index].frozen_type(**values)

    def _own(self, t: int | Tensor, part: Degradation) -> int | Tensor:
        """Return a part's severity: t / T of its steps, at least one step once t is."""
        if part.steps == self.steps:
            return t
        if isinstance(t, int):
            return -(-t * part.steps // self.steps)
        return torch.div(t * part.steps + self.steps - 1, self.steps, rounding_mode="floor")


def compose(name: str, operators: list[type[Degradation]], values: dict[str, Any]) -> Composite:
    """Return the composition of some operators; parameters and errors as `build` says."""
    if len(operators) > MOST_PARTS:
        raise UsageError(f"A composition of {len(operators)} operators is too long.", f"Use at most {MOST_PARTS}.")
    shared = {key: value for key, value in values.items() if key == "steps"}
    parts = tuple(
        op(**validate(op, shared | part_values, f"{name}: {op.name}"))
        for op, part_values in zip(operators, _sorted(name, operators, values), strict=True)
    )
    steps = validate(Composite, shared, name).get("steps", max(part.steps for part in parts))
    own = [[field.name for field in dataclasses.fields(part.frozen_type)] for part in parts]
    every = [field for fields in own for field in fields]
    joint = tuple(
        {field: f"{field}_{number}" if every.count(field) > 1 else field for field in fields}
        for number, fields in enumerate(own, start=1)
    )
    made = [(field, Tensor) for names in joint for field in names.values()]
    second = [names[part.second_field] for part, names in zip(parts, joint, strict=True) if part.second_field]
    if len(second) > 1:
        raise UsageError(f"{name}: only one part can mix in a second data set.", "Leave the others out.")
    traits = {
        "name": name,
        "frozen_type": dataclasses.make_dataclass("FrozenComposite", made, bases=(Frozen,), frozen=True),
        "has_inverse": all(part.has_inverse for part in parts),
        "is_coloring": any(part.is_coloring for part in parts),
        "second_field": second[0] if second else "",
    }
    composite: Composite = type("Composite", (Composite,), traits)(parts=parts, fields=joint, steps=steps)
    return composite


def _sorted(name: str, operators: list[type[Degradation]], values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each part's own parameters out of flat, dotted and nested ones."""
    known = [[field.name for field in settings_of(op)] for op in operators]
    labels = [op.name for op in operators]
    found: list[dict[str, Any]] = [{} for _ in operators]
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    for key, value in flat.items():
        label, dot, inner = key.partition(".")
        if dot and label in labels:
            for index in (i for i, other in enumerate(labels) if other == label):
                found[index][inner] = value
        elif key != "steps":
            owners = [index for index, fields in enumerate(known) if key in fields]
            if not owners:
                choices = {field for fields in known for field in fields}
                raise UsageError(f"{name}: unknown key {shown(key)}.", nearest(key, choices))
            if len(owners) > 1:
                both = " or ".join(f"{labels[i]}.{key}" for i in owners)
                raise UsageError(f"{name}: '{key}' could be meant for several parts.", f"Say {both}.")
            found[owners[0]][key] = value
    return found
