"""Options for an operator's parameters, generated from their declarations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container
from typing import Annotated, Any

import typer

from colddiff_cli.arguments import completions, registered
from colddiff_core.config.toml import spelled
from colddiff_core.errors import ColddiffError
from colddiff_core.text import shown

COMMON = "steps"  # every command has its own option for it
TYPES: dict[str, Any] = {"int": int, "float": float, "str": str}


def named_operator(arguments: list[str]) -> str | None:
    """Return the operator that a command line names with --op or --preset; None if it names none."""
    for index, word in enumerate(arguments):
        for option in ("--op", "--preset"):
            value = arguments[index + 1] if word == option and index + 1 < len(arguments) else None
            value = word.partition("=")[2] if word.startswith(f"{option}=") else value
            if value:
                return value if option == "--op" else registered.operator_of_preset(value)
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


def whole(text: str) -> int:
    """Parse a whole number, which may have a point or an exponent as in `--set`: 1e3."""
    value = spelled(text)
    if type(value) is not int:
        raise typer.BadParameter(f"{shown(text)} is not a whole number.")
    return value


def _options(name: str, taken: Container[str]) -> dict[str, tuple[str, Any]]:
    """Return {variable: (parameter, annotation)}; in a composition, parameters have their part's name as a prefix."""
    parts = name.split("+")
    options = {}
    for part in parts:
        for parameter in registered.parameters(part):
            if parameter.name == COMMON and len(parts) == 1:
                continue
            key = f"{part}.{parameter.name}" if len(parts) > 1 else parameter.name
            variable = f"operator_{part}_{parameter.name}"
            label = f"{part}.{parameter.name}" if parameter.name in taken else key
            options[variable] = (key, _annotation(label, parameter, part))
    return options


def _annotation(label: str, parameter: registered.DeclaredSetting, part: str) -> Any:
    flag = "--" + label.replace("_", "-").replace(".", "-")
    default = str(parameter.default).lower() if isinstance(parameter.default, bool) else parameter.default
    help_text = f"{parameter.help} ({default})"
    panel = f"Parameters of {part}"
    if parameter.type == "bool":
        no = flag.replace("--", "--no-", 1)
        return Annotated[bool | None, typer.Option(f"{flag}/{no}", help=help_text, rich_help_panel=panel)]
    choices = [str(choice) for choice in parameter.choices]
    is_whole = parameter.type == "int"
    option = typer.Option(
        flag,
        parser=whole if is_whole else None,
        help=help_text,
        metavar="|".join(choices) or ("INTEGER" if is_whole else None),
        rich_help_panel=panel,
        autocompletion=completions.one_of(lambda: choices),
    )
    return Annotated[TYPES[parameter.type] | None, option]
