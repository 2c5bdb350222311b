"""`colddiff presets`: list the presets and show their settings."""

from __future__ import annotations

from typing import Annotated

import typer

from colddiff_cli.arguments import completions, options
from colddiff_cli.console.screen import Screen
from colddiff_core.config import presets as library
from colddiff_core.config import sizes, toml
from colddiff_core.text import one_line


def presets(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this preset with all settings.", autocompletion=completions.presets),
    ] = None,
    overrides: options.Set = None,
    json: options.Json = False,
) -> None:
    """List the presets, or print one in full."""
    screen = Screen(json)
    if name is not None:
        table = library.load(name, overrides or []).to_table()
        screen.result(table)
        if not json:
            screen.say_lines(toml.dump(table).rstrip())
        return
    from rich.table import Table

    loaded = {preset: library.load(preset) for preset in library.names()}
    listing = Table(box=None, pad_edge=False)
    for heading in ("preset", "operator", "T", "data", "description"):
        listing.add_column(heading, no_wrap=heading != "description")
    for preset, config in loaded.items():
        steps = str(config.degradation.parameters.get("steps", ""))
        data = f"{config.data.dataset} {sizes.typed(config.data.size)}"
        listing.add_row(*map(one_line, (preset, config.degradation.name, steps, data, config.description)))
    screen.result({preset: config.description for preset, config in loaded.items()})
    if not json:
        screen.show(listing)
        screen.say()
        screen.say("Train one: colddiff train --preset NAME      Print one: colddiff presets NAME")
        screen.say("Trained already: colddiff runs")
