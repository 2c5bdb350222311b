"""For the library's pages: a field declared by `setting(default, help, ...)` shows its default, help and range."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import griffe

BOUNDS = {"minimum": "at least", "above": "above", "maximum": "at most", "longest": "entries at most"}


class SettingFields(griffe.Extension):
    """Rewrite the fields once all is loaded, before Griffe's own extension makes signatures of them."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for attribute in attributes(pkg):
            value = attribute.value
            if isinstance(value, griffe.ExprCall) and str(value.function) == "setting":
                describe(attribute, value)


def attributes(owner: griffe.Module | griffe.Class) -> Iterator[griffe.Attribute]:
    for member in owner.members.values():
        if isinstance(member, griffe.Attribute):
            yield member
        elif isinstance(member, griffe.Module | griffe.Class):
            yield from attributes(member)


def describe(attribute: griffe.Attribute, call: griffe.ExprCall) -> None:
    default, text, *limits = call.arguments
    bounds = [
        f"{BOUNDS[limit.name]} {constant(str(limit.value), attribute.module)}"
        for limit in limits
        if isinstance(limit, griffe.ExprKeyword) and limit.name in BOUNDS  # words stand in the help
    ]
    line = ast.literal_eval(str(text)) + (f" ({', '.join(bounds)})" if bounds else "")
    attribute.value = default
    attribute.docstring = griffe.Docstring(f"{line[0].upper()}{line[1:]}.", parent=attribute, lineno=attribute.lineno)


def constant(name: str, module: griffe.Module) -> str:
    """Return the value of a constant that the module defines or imports; otherwise the text itself."""
    member = module.members.get(name)
    return str(member.value) if member is not None else name
