"""The Typer app: every command by name. Only the command that runs is imported, so that `--help` stays fast."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

from colddiff_cli.arguments import completions, shell_scripts
from colddiff_core.config.version import __version__
from colddiff_core.errors import UsageError
from colddiff_core.text import nearest

# Commands that a job of several processes can run.
SHARED = frozenset({"degrade", "train", "restore", "sample", "generate", "eval"})

# What a command is: a function of its options, or a group of commands.
CommandFunction = Callable[..., Any] | typer.Typer


def degrade(arguments: list[str]) -> CommandFunction:
    """Degrade pictures: x_t = D(x0, t)."""
    from colddiff_cli.arguments import operator_options
    from colddiff_cli.commands.degrade import degrade

    return operator_options.with_parameters(degrade, operator_options.named_operator(arguments))


def train(_: list[str]) -> CommandFunction:
    """Train a restorer."""
    from colddiff_cli.commands.train import train

    return train


def sample(_: list[str]) -> CommandFunction:
    """Degrade images and restore them with a run: a sheet."""
    from colddiff_cli.commands.sample import sample

    return sample


def restore(_: list[str]) -> CommandFunction:
    """Restore your own pictures."""
    from colddiff_cli.commands.restore import restore

    return restore


def generate(_: list[str]) -> CommandFunction:
    """Generate new images."""
    from colddiff_cli.commands.generate import generate

    return generate


def evaluate(_: list[str]) -> CommandFunction:
    """Measure a run: RMSE, PSNR, SSIM, distance to real images."""
    from colddiff_cli.commands.evaluate import evaluate

    return evaluate


def compare(_: list[str]) -> CommandFunction:
    """Compare samplers, runs or strides on the same images."""
    from colddiff_cli.commands.compare import compare

    return compare


def reproduce(_: list[str]) -> CommandFunction:
    """Reproduce tables of the paper."""
    from colddiff_cli.commands.reproduce import reproduce

    return reproduce


def monitor(_: list[str]) -> CommandFunction:
    """Watch training: curves, pictures, status."""
    from colddiff_cli.commands.monitor import monitor

    return monitor


def runs(_: list[str]) -> CommandFunction:
    """List the trained runs: yours and the bundled ones."""
    from colddiff_cli.commands.runs import runs

    return runs


def presets(_: list[str]) -> CommandFunction:
    """List the presets, or print one in full."""
    from colddiff_cli.commands.presets import presets

    return presets


def data(_: list[str]) -> CommandFunction:
    """Prepare images for training."""
    from colddiff_cli.commands.data import pack

    group = typer.Typer(no_args_is_help=True, help=data.__doc__)
    group.callback()(lambda: None)  # keeps the name of its only command
    group.command("pack")(_resolved(pack))
    return group


# A loader imports its command when it is called; its docstring is the command's line in `colddiff --help`.
LOADERS: dict[str, Callable[[list[str]], CommandFunction]] = {
    "degrade": degrade,
    "train": train,
    "restore": restore,
    "sample": sample,
    "generate": generate,
    "eval": evaluate,
    "compare": compare,
    "reproduce": reproduce,
    "monitor": monitor,
    "runs": runs,
    "presets": presets,
    "data": data,
}


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"colddiff {__version__}\n")
        raise typer.Exit


def _print_script(shell: str | None) -> None:
    if shell is None:
        return
    if shell not in shell_scripts.SCRIPTS:
        raise UsageError(f"No completion for '{shell}'.", nearest(shell, shell_scripts.SCRIPTS))
    sys.stdout.write(shell_scripts.SCRIPTS[shell])
    raise typer.Exit


def root(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback on errors (works anywhere on the line).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    shell: Annotated[
        str | None,
        typer.Option(
            "--show-completion",
            callback=_print_script,
            is_eager=True,
            help="Print a script that completes commands with TAB, for bash, zsh or fish.",
            metavar="SHELL",
            autocompletion=completions.one_of(lambda: shell_scripts.SCRIPTS),
        ),
    ] = None,
) -> None:
    """Generalized (cold) diffusion: degrade images, train a restorer, sample and evaluate."""
    if context.invoked_subcommand not in SHARED:
        from colddiff_cli.jobs import launch

        launch.check_alone(str(context.invoked_subcommand))


class CommandGroup(TyperGroup):
    """Commands that are imported when one of them is on the command line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that `args` begin with, then find it as usual."""
        if args[0] in LOADERS:
            self.add_command(_command(args[0], args[1:]))
        name, command, rest = super().resolve_command(ctx, args)
        if ctx.resilient_parsing and command is not None:
            _keep_words(command, ctx)
        return name, command, rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        if ctx.resilient_parsing:
            _keep_words(self, ctx)
        return super().parse_args(ctx, args)


def _keep_words(command: Any, context: Any) -> None:
    """Keep what was typed as text: for completion, Typer need not import Pydantic to convert it, which takes 0.1 s."""
    for parameter in command.get_params(context):
        parameter.process_value = lambda context, value: value
    for inner in getattr(command, "commands", {}).values():
        _keep_words(inner, context)


def _command(name: str, arguments: list[str]) -> Any:
    """Return the parser of one command. Building the app around it again would take milliseconds."""
    alone = typer.Typer(add_completion=False)
    _add(alone, name, arguments)
    built: Any = typer.main.get_command(alone)
    return built.commands[name] if alone.registered_groups else built


def with_commands(names: Iterable[str], arguments: list[str], group: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """Return the app with the commands `names`; `degrade` has options for the operator that `arguments` name."""
    made = typer.Typer(
        name="colddiff",
        cls=group,
        no_args_is_help=True,
        add_completion=False,  # Typer's scripts do not complete words with = in bash: `shell_scripts` has ours
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_resolved(root))
    for name in names:
        _add(made, name, arguments)
    return made


def _resolved(function: Callable[..., Any]) -> Callable[..., Any]:
    """Resolve the string annotations of a command once; Typer would resolve them four times, most of its run time."""
    function.__annotations__ = get_type_hints(function, include_extras=True)
    return function


def _add(made: typer.Typer, name: str, arguments: list[str]) -> None:
    function = LOADERS[name](arguments)
    if isinstance(function, typer.Typer):
        made.add_typer(function, name=name)
    else:
        made.command(name)(_resolved(function))


app = with_commands([], [], CommandGroup)
for _name, _loader in LOADERS.items():  # what the help lists
    app.command(_name, help=_loader.__doc__)(lambda: None)
if shell_scripts.ASKING in os.environ:
    shell_scripts.register()
