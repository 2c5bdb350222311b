"""The Typer app: every command by name."""

from __future__ import annotations

from typing import Annotated

import typer

from colddiff_cli.commands import degrade, evaluate, presets, sample, train
from colddiff_core import __version__

app = typer.Typer(
    name="colddiff",
    help="Generalized (cold) diffusion: degrade images, train a restorer, sample, measure.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"colddiff {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback where something fails.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Generalized (cold) diffusion: degrade images, train a restorer, sample, measure."""


app.command("degrade")(degrade.degrade)
app.command("train")(train.train)
app.command("sample")(sample.sample)
app.command("eval")(evaluate.evaluate)
app.command("presets")(presets.presets)
