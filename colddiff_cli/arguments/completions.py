"""What TAB offers as values of options and arguments.

Nothing here imports torch or numpy, so that TAB answers at once. Where nothing is offered, the shell offers files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from colddiff_cli.arguments import registered
from colddiff_core.errors import ColddiffError

MOST_OFFERED = 1000  # classes
JOIN = "+"  # between the operators of a composition
REGISTRIES: dict[str, registered.Registry] = {
    "sample.sampler": "samplers",
    "data.dataset": "datasets",
    "data.second": "datasets",
}

Names = Callable[[], Iterable[str]]
Complete = Callable[[str], list[str]]


def one_of(names: Names) -> Complete:
    """Return a completion that offers these names."""

    def complete(incomplete: str) -> list[str]:
        return list(names())

    return complete


def list_of(names: Names) -> Complete:
    """Return a completion for a comma-separated list, which offers each name once."""

    def complete(incomplete: str) -> list[str]:
        *given, last = incomplete.split(",")
        start = incomplete.removesuffix(last)
        return [start + name for name in names() if name not in given]

    return complete


def choices(key: str) -> Names:
    """Return the choices of a setting, such as "train.precision"."""

    def names() -> list[str]:
        return _values(key, lambda: None)

    return names


def operators(incomplete: str) -> list[str]:
    """Offer operators, one after another in a composition."""
    last = incomplete.rpartition(JOIN)[2]
    return [incomplete.removesuffix(last) + name for name in registered.operators()]


def presets(incomplete: str) -> list[str]:
    """Offer presets; for the path of a preset's file the shell offers files."""
    from colddiff_core.config import presets as library

    return library.names()


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the runs that are not on the command line yet: by name those in runs/, by path those in other folders."""
    given = ctx.params.get("names") or ()
    return [run for run in _runs(incomplete) if run not in given]


def own_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the runs that can be trained or watched: not the bundled ones."""
    bundled = pretrained(incomplete)
    return [run for run in runs(ctx, incomplete) if run not in bundled]


def first_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer runs as the first argument; images follow it."""
    return [] if ctx.params.get("arguments") else _runs(incomplete)


def pretrained(incomplete: str) -> list[str]:
    """Offer the bundled runs."""
    from colddiff_core.runs import pretrained as library

    return [library.PREFIX + name for name in library.names()]


def classes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the classes of the run on the command line, or of the newest: names, or numbers if it keeps no names."""
    from colddiff_core import runs
    from colddiff_core.runs import classes as library

    try:
        # Click leaves the arguments in `args` if the last option still lacks its value.
        run = runs.find(ctx.params.get("run") or next(iter(ctx.args), None))
        count = run.config().model.classes
        names = run.classes()[:count] or [str(number) for number in range(count)]
    except ColddiffError:
        return []
    given = ctx.params.get("label") or ()
    return [name for name in [*names[:MOST_OFFERED], *([library.ALL] if count else [])] if name not in given]


def tables(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the paper's tables that are not on the command line yet."""
    from colddiff_core.paper import tables as paper

    given = ctx.params.get("names") or ()
    return [name for name in paper.names() if name not in given]


def table_datasets() -> list[str]:
    """Return the data sets of the paper's tables."""
    from colddiff_core.paper import tables as paper

    return sorted({part.dataset for name in paper.names() for part in paper.find(name).parts})


def settings(ctx: typer.Context, incomplete: str) -> list[str] | list[tuple[str, str]]:
    """Offer section.key= for the settings that are not on the command line yet, then the key's choices."""
    from colddiff_core.config import schema

    key, equals, value = incomplete.partition("=")
    if key == "degradation.name" and equals:
        return [f"{key}={name}" for name in operators(value)]
    if equals:
        return [f"{key}={choice}" for choice in _values(key, lambda: _operator(ctx))]
    given = {word.partition("=")[0] for word in ctx.params.get("overrides") or ()}
    offered = [
        (f"{section}.{setting.name}", setting.help)
        for section, owner in schema.SECTIONS.items()
        for setting in registered.declared(owner)
    ]
    offered += [(f"degradation.{name}", setting.help) for name, setting in _parameters(_operator(ctx)).items()]
    return [(f"{key}=", help_text) for key, help_text in offered if key not in given]


def _runs(incomplete: str) -> list[str]:
    from colddiff_core import runs

    folder = incomplete.rpartition("/")[0]
    if "/" not in incomplete:
        own = {path.name for root in (runs.ROOT, Path()) for path in runs.listed(root)}
        return [*sorted(own), *pretrained(incomplete)]
    return [f"{folder}/{path.name}" for path in runs.listed(Path(folder or "/").expanduser())]


def _values(key: str, operator: Callable[[], str | None]) -> list[str]:
    """Return the choices of a setting, none if it may have any value."""
    from colddiff_core.config import schema

    if key in REGISTRIES:
        return registered.names(REGISTRIES[key])
    section, _, name = key.partition(".")
    owner = schema.SECTIONS.get(section)
    found = {setting.name: setting for setting in registered.declared(owner)} if owner else {}
    if section == "degradation" and name not in found:
        found = _parameters(operator())
    if name not in found:
        return []
    return ["true", "false"] if found[name].type == "bool" else [str(choice) for choice in found[name].choices]


def _parameters(operator: str | None) -> dict[str, registered.DeclaredSetting]:
    """Return an operator's parameters by key; in a composition, with their part's name as a prefix."""
    parts = operator.split(JOIN) if operator else []
    try:
        return {
            f"{part}.{setting.name}" if len(parts) > 1 else setting.name: setting
            for part in parts
            for setting in registered.parameters(part)
        }
    except ColddiffError:
        return {}


def _operator(ctx: typer.Context) -> str | None:
    """Return the operator that the command line names: with --set, with a preset or with a run to resume."""
    for word in reversed(ctx.params.get("overrides") or ()):
        key, _, value = word.partition("=")
        if key == "degradation.name":
            return value
    if ctx.params.get("preset"):
        return registered.operator_of_preset(ctx.params["preset"])
    if not ctx.params.get("resume"):
        return None
    from colddiff_core import runs

    try:
        return runs.find(ctx.params["resume"]).config().degradation.name
    except ColddiffError:
        return None
