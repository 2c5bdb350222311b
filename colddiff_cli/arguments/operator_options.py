"""Options for an operator's parameters, generated from its fields."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Container
from typing import Annotated, Any, Literal

import typer

from colddiff_core.errors import ColddiffError

COMMON = "steps"  # every command has its own option for it


def named_operator(arguments: list[str]) -> str | None:
    """Return the operator that a command line names with --op or --preset; None if it names none."""
    for index, word in enumerate(arguments):
        for option in ("--op", "--preset"):
            value = arguments[index + 1] if word == option and index + 1 < len(arguments) else None
            value = word.partition("=")[2] if word.startswith(f"{option}=") else value
            if value:
                return value if option == "--op" else _operator_of_preset(value)
    return None


def with_parameters(command: Callable[..., Any], name: str | None) -> Callable[..., Any]:
    """Return `command` with an option for every parameter of the operator `name`.

    Values arrive as the keyword `given`, {parameter: value}. An unknown operator adds no options; the command reports
    it. A parameter with the name of one of the command's own options gets the operator's name as a prefix
    (`--holes-size`).
    """
    try:
        options = _options(name, inspect.signature(command).parameters) if name else {}
    except ColddiffError:
        options = {}

    def with_operator(**values: Any) -> Any:
        own = {key: values.pop(variable) for variable, (key, _) in options.items()}
        return command(**values, given={key: value for key, value in own.items() if value is not None})

    signature = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "given"]
    added = [
        inspect.Parameter(variable, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for variable, (_, annotation) in options.items()
    ]
    every = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in kept] + added
    with_operator.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
    with_operator.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    with_operator.__doc__ = command.__doc__
    return with_operator


def _operator_of_preset(preset: str) -> str | None:
    from colddiff_core.config import presets

    try:
        return presets.load(preset).degradation.name
    except ColddiffError:
        return None


def _options(name: str, taken: Container[str]) -> dict[str, tuple[str, Any]]:
    """Return {variable: (parameter, annotation)}; in a composition, parameters have their part's name as a prefix."""
    from colddiff_core import degradations
    from colddiff_core.config.fields import settings_of

    parts = name.split("+")
    options = {}
    for part in parts:
        operator = degradations.find(part)
        hints = typing.get_type_hints(operator)
        for field in settings_of(operator):
            if field.name == COMMON and len(parts) == 1:
                continue
            key = f"{part}.{field.name}" if len(parts) > 1 else field.name
            variable = f"operator_{part}_{field.name}"
            label = f"{part}.{field.name}" if field.name in taken else key
            options[variable] = (key, _annotation(label, field, hints[field.name], part))
    return options


def _annotation(label: str, field: dataclasses.Field[Any], hint: Any, part: str) -> Any:
    flag = "--" + label.replace("_", "-").replace(".", "-")
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    help_text = f"{field.metadata['help']} ({default})"
    panel = f"Parameters of {part}"
    if hint is bool:
        no = flag.replace("--", "--no-", 1)
        return Annotated[bool | None, typer.Option(f"{flag}/{no}", help=help_text, rich_help_panel=panel)]
    metavar = None
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        metavar = "|".join(map(str, choices))
        hint = type(choices[0])
    return Annotated[hint | None, typer.Option(flag, help=help_text, metavar=metavar, rich_help_panel=panel)]
