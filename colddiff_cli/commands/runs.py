"""`colddiff runs`: list the runs in runs/ and the bundled ones."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from colddiff_cli.arguments import completions, options
from colddiff_cli.console.screen import Screen
from colddiff_core import runs as library
from colddiff_core.config import sizes
from colddiff_core.errors import UsageError
from colddiff_core.files import read_ordinary
from colddiff_core.runs import pretrained
from colddiff_core.text import one_line

CLASSES_SHOWN = 4  # of a run, in the listing


def runs(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print the card of this pretrained run: data, license, figures.", autocompletion=completions.pretrained
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the trained runs: yours, newest first, and the bundled ones."""
    screen = Screen(json)
    if name is not None:
        _show_card(screen, name)
        return
    from rich.table import Table

    own = sorted(library.listed(), key=library.last_written, reverse=True)
    bundled = [pretrained.directory() / known for known in pretrained.names()]
    rows = [_described(screen, library.Run(path)) for path in own + bundled]
    screen.result({row.pop("run"): row for row in map(dict, rows) if row})
    if json:
        return
    listing = Table(box=None, pad_edge=False)
    headings = ["run", "operator", "data", "step", "description"]
    if any(row.get("classes") for row in rows):
        headings.insert(3, "classes")
    for heading in headings:
        listing.add_column(heading, no_wrap=heading != "description")
    for row in filter(None, rows):
        listing.add_row(*(_few(row[key]) if key == "classes" else one_line(str(row[key])) for key in headings))
    screen.show(listing)
    example = pretrained.PREFIX + pretrained.names()[0] if bundled else "RUN"
    screen.say()
    screen.say(f"Use one: colddiff sample {example}      About a pretrained one: colddiff runs {example}")


def _described(screen: Screen, run: library.Run) -> dict[str, Any]:
    """Return the row of a run; empty, with a warning, if its run.toml is damaged."""
    try:
        config = run.config()
    except UsageError as error:
        screen.warn(error.what)
        return {}
    steps = [library.path_step(path) for path in library.list_checkpoints(run.path / "checkpoints")]
    return {
        "run": run.label,
        "operator": config.degradation.name,
        "data": f"{config.data.dataset} {sizes.typed(config.data.size)}",
        "classes": _classes(screen, run, config.model.classes),
        "step": steps[-1] if steps else 0,
        "description": config.description,
    }


def _classes(screen: Screen, run: library.Run, count: int) -> list[str]:
    """Return what `generate --class` calls the classes of a run: their names, or numbers if it keeps no names."""
    names: tuple[str, ...] = ()
    if count > 0:
        try:
            names = run.classes()[:count]
        except UsageError as error:
            screen.warn(error.what)
    return list(names or map(str, range(count)))


def _few(names: list[str]) -> str:
    """Return names for a cell of a table: the first few, and how many more there are."""
    from rich.markup import escape

    more = f" and {len(names) - CLASSES_SHOWN} more" if len(names) > CLASSES_SHOWN else ""
    return escape(", ".join(names[:CLASSES_SHOWN]) + more)


def _show_card(screen: Screen, name: str) -> None:
    path = pretrained.find(name)
    card = read_ordinary(path / pretrained.CARD).decode(errors="replace")
    screen.result({"run": pretrained.PREFIX + path.name, "card": card})
    screen.say_lines(card.rstrip())
