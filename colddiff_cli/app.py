"""The Typer app: every command by name."""

from __future__ import annotations

from typing import Annotated

import typer

from colddiff_cli.arguments import operator_options
from colddiff_cli.commands import compare, data, degrade, evaluate, generate, monitor, presets, reproduce, sample, train
from colddiff_cli.jobs import launch
from colddiff_core.config.version import __version__

# Commands that a job of several processes can run.
SHARED = frozenset({"degrade", "train", "sample", "generate", "eval"})


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"colddiff {__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback on errors (works anywhere on the line).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Generalized (cold) diffusion: degrade images, train a restorer, sample and evaluate."""
    if context.invoked_subcommand not in SHARED:
        launch.check_alone(str(context.invoked_subcommand))


def create(arguments: list[str]) -> typer.Typer:
    """Return the app; `degrade` gets options for the operator that the command line names."""
    made = typer.Typer(
        name="colddiff",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(root)
    is_degrading = next((word for word in arguments if not word.startswith("-")), "") == "degrade"
    operator = operator_options.named_operator(arguments) if is_degrading else None
    made.command("degrade")(operator_options.with_parameters(degrade.degrade, operator))
    made.command("train")(train.train)
    made.command("sample")(sample.sample)
    made.command("generate")(generate.generate)
    made.command("eval")(evaluate.evaluate)
    made.command("compare")(compare.compare)
    made.command("reproduce")(reproduce.reproduce)
    made.command("monitor")(monitor.monitor)
    made.command("presets")(presets.presets)
    made.add_typer(_data(), name="data")
    return made


def _data() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="Prepare images for training.")
    group.callback()(lambda: None)  # keeps the name of its only command
    group.command("pack")(data.pack)
    return group


app = create([])
