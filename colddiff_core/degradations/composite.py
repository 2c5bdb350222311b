"""Compositions `a+b`: one operator after another, with their severities in step."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from colddiff_core.config.fields import setting, settings_of, validate
from colddiff_core.degradations.base import MOST_STEPS, Degradation, Frozen
from colddiff_core.degradations.draws import Generators
from colddiff_core.errors import UsageError
from colddiff_core.text import nearest, shown

JOIN = "+"
MAX_PARTS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composite(Degradation):
    """A composition: D(x0, t) = D_n(... D_1(x0, t_1) ..., t_n), with t_i = t scaled to the steps of part i.

    Its random fields are those of its parts. A name that several parts share gets the part's number appended
    (`z_1`, `z_2`).
    """

    parts: tuple[Degradation, ...]
    fields: tuple[dict[str, str], ...]  # per part: its field name -> the name in the composition

    steps: int = setting(1, "number of severities T; t = T is the most severe", minimum=1, maximum=MOST_STEPS)

    def __post_init__(self) -> None:
        """Do nothing: the parts have been validated."""

    @property
    def has_reestimate(self) -> bool:
        """Whether `reestimate` solves for all random fields: only the last part's can be seen in x_t."""
        return self.parts[-1].has_reestimate and not any(self.fields[:-1])

    def variants(self, jitter: float) -> tuple[Degradation, ...]:
        """Return compositions of the parts' variants, all parts varied together, this one included."""
        by_part = [part.variants(jitter) for part in self.parts]
        count = max(map(len, by_part))
        composites = [
            dataclasses.replace(self, parts=tuple(variants[number * len(variants) // count] for variants in by_part))
            for number in range(count)
        ]
        return tuple(composites if self in composites else [self, *composites])

    def _freeze(self, x0: Tensor, generator: Generators, fields: dict[str, Tensor]) -> Frozen:
        drawn: dict[str, Tensor] = {}
        for part, names in zip(self.parts, self.fields, strict=True):
            part_fields = {name: fields[joint] for name, joint in names.items() if joint in fields}
            frozen = part._freeze(x0, generator, part_fields)
            drawn |= {joint: getattr(frozen, name) for name, joint in names.items()}
        return self.frozen_type(**drawn)

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        return self._apply_first(x0, t, frozen, len(self.parts))

    def _reestimate(self, x_t: Tensor, x0_hat: Tensor, t: int | Tensor, frozen: Frozen) -> Frozen:
        """Solve for the last part's randomness; that of the earlier parts cannot be seen in x_t and is kept.

        So `blur+noise` samples with estimated noise, and `noise+blur` with the noise that was drawn.
        """
        before = self._apply_first(x0_hat, t, frozen, len(self.parts) - 1)
        part, names = self.parts[-1], self.fields[-1]
        solved = part.reestimate(
            x_t, before, self._part_severity(t, part), self._part_frozen(frozen, len(self.parts) - 1)
        )
        return dataclasses.replace(frozen, **{joint: getattr(solved, name) for name, joint in names.items()})

    def _invert(self, x_t: Tensor, t: int | Tensor, frozen: Frozen, floor: float) -> Tensor:
        for index in reversed(range(len(self.parts))):
            x_t = self.parts[index].invert(
                x_t, self._part_severity(t, self.parts[index]), self._part_frozen(frozen, index), floor
            )
        return x_t

    def _apply_first(self, x: Tensor, t: int | Tensor, frozen: Frozen, count: int) -> Tensor:
        """Apply the first `count` parts."""
        for index in range(count):
            x = self.parts[index](x, self._part_severity(t, self.parts[index]), self._part_frozen(frozen, index))
        return x

    def _part_frozen(self, frozen: Frozen, index: int) -> Frozen:
        values = {name: getattr(frozen, joint) for name, joint in self.fields[index].items()}
        return self.parts[index].frozen_type(**values)

    def _part_severity(self, t: int | Tensor, part: Degradation) -> int | Tensor:
        """Return a part's severity: t / T of its steps, rounded up."""
        if part.steps == self.steps:
            return t
        if isinstance(t, int):
            return -(-t * part.steps // self.steps)
        return torch.div(t * part.steps + self.steps - 1, self.steps, rounding_mode="floor")


def compose(name: str, operators: list[type[Degradation]], values: dict[str, Any]) -> Composite:
    """Return the composition of operators, applied in order.

    Args:
        name: the joint name, for messages.
        operators: the classes, in order.
        values: parameters, as `registry.build` takes them.

    Raises:
        UsageError: for an unknown or ambiguous parameter, a value out of range, or too many parts.
    """
    if len(operators) > MAX_PARTS:
        raise UsageError(f"A composition of {len(operators)} operators is too long.", f"Use at most {MAX_PARTS}.")
    shared = {key: value for key, value in values.items() if key == "steps"}
    parts = tuple(
        op(**validate(op, shared | part_values, f"{name}: {op.name}"))
        for op, part_values in zip(operators, _values_by_part(name, operators, values), strict=True)
    )
    steps = validate(Composite, shared, name).get("steps", max(part.steps for part in parts))
    by_part = [[field.name for field in dataclasses.fields(part.frozen_type)] for part in parts]
    all_fields = [field for fields in by_part for field in fields]
    joint = tuple(
        {field: f"{field}_{number}" if all_fields.count(field) > 1 else field for field in fields}
        for number, fields in enumerate(by_part, start=1)
    )
    frozen_fields = [(field, Tensor) for names in joint for field in names.values()]
    second = [names[part.second_field] for part, names in zip(parts, joint, strict=True) if part.second_field]
    if len(second) > 1:
        raise UsageError(f"{name}: only one part can mix in a second data set.", "Leave out the others.")
    traits = {
        "name": name,
        "frozen_type": dataclasses.make_dataclass("FrozenComposite", frozen_fields, bases=(Frozen,), frozen=True),
        "has_inverse": all(part.has_inverse for part in parts),
        "inverts_unseen": all(part.inverts_unseen or not dataclasses.fields(part.frozen_type) for part in parts),
        "is_coloring": any(part.is_coloring for part in parts),
        "second_field": second[0] if second else "",
    }
    composite: Composite = type("Composite", (Composite,), traits)(parts=parts, fields=joint, steps=steps)
    return composite


def _values_by_part(name: str, operators: list[type[Degradation]], values: dict[str, Any]) -> list[dict[str, Any]]:
    """Assign flat, dotted and nested parameters to the parts they belong to."""
    known = [[field.name for field in settings_of(op)] for op in operators]
    labels = [op.name for op in operators]
    by_part: list[dict[str, Any]] = [{} for _ in operators]
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    for key, value in flat.items():
        label, dot, inner = key.partition(".")
        if dot and label in labels:
            for index in (i for i, other in enumerate(labels) if other == label):
                by_part[index][inner] = value
        elif key != "steps":
            owners = [index for index, fields in enumerate(known) if key in fields]
            if not owners:
                choices = {field for fields in known for field in fields}
                raise UsageError(f"{name}: unknown key {shown(key)}.", nearest(key, choices))
            if len(owners) > 1:
                dotted = " or ".join(f"{labels[i]}.{key}" for i in owners)
                raise UsageError(f"{name}: several parts have '{key}'.", f"Use {dotted}.")
            by_part[owners[0]][key] = value
    return by_part
