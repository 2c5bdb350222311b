"""`colddiff monitor`: watch runs in the terminal."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colddiff_cli.arguments import completions, options
from colddiff_cli.console.screen import Screen
from colddiff_core import runs
from colddiff_core.errors import UsageError

PLAIN = ("", "dumb", "unknown")  # kinds of terminal that only print lines
NICENESS = 10  # a trainer on the same cores goes first

if TYPE_CHECKING:
    from colddiff_cli.monitor.data.run_state import RunState


def monitor(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs to watch, by folder or name (default: all in runs/).",
            metavar="[RUN]...",
            autocompletion=completions.own_runs,
        ),
    ] = None,
    pattern: Annotated[str, typer.Option("--filter", help="Only runs whose name matches.", metavar="GLOB")] = "*",
    once: Annotated[bool, typer.Option("--once", help="Print one frame as text and exit.")] = False,
    light: Annotated[bool, typer.Option("--light", help="For a light terminal.")] = False,
    json: options.Json = False,
) -> None:
    """Watch training: curves, pictures, status; pause, sample, save or stop it. Training continues when you quit."""
    screen = Screen(json)
    found = [runs.find(name) for name in names or []]
    for run in found:
        if run.is_pretrained:
            raise UsageError(f"{run.label} is trained already: there is nothing to watch.", "Name a run in runs/.")
    named = [run.path for run in found]
    paths = named or runs.listed()
    if not paths:
        runs.find(None)  # raises the error that says what to do
    from colddiff_cli.monitor.data.run_state import is_named

    shown = [path for path in paths if is_named(path.name, pattern)]
    if not shown:
        raise UsageError(f"No run matches {pattern}.", f"Runs: {', '.join(path.name for path in paths[:8])}.")
    if json or once:
        _print(screen, shown, is_frame=once and not json)
    else:
        watch(named, pattern=pattern, is_light=light)


def check_terminal() -> None:
    """Check that the dashboard has a terminal that it can draw on.

    Raises:
        UsageError: stdin, stdout or stderr is not a terminal, or it has no cursor to move.
    """
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError(
            "The dashboard needs a terminal.",
            "Without one, use `colddiff monitor --once` or `colddiff monitor --json`.",
        )
    kind = os.environ.get("TERM", "")
    if kind in PLAIN:
        what = f"The dashboard needs a terminal that can move its cursor, but TERM is {kind or 'not set'}."
        raise UsageError(what, "Use `colddiff monitor --once`, or set TERM to the kind of your terminal.")


def watch(named: Sequence[Path], *, pattern: str = "*", is_light: bool = False) -> None:
    """Open the dashboard on the named runs, or on all in runs/.

    Raises:
        UsageError: There is no terminal that it can be drawn on.
    """
    check_terminal()
    os.nice(NICENESS)
    gc.disable()  # until the first frame: nothing is freed before that, and collecting takes a tenth of the start
    from colddiff_cli.console import terminal_images, terminal_query
    from colddiff_cli.monitor import late_answers
    from colddiff_cli.monitor.app import Monitor
    from colddiff_cli.monitor.data.machine import MachineReadings

    image_backend = terminal_images.detect()
    if terminal_query.is_answer_due():
        late_answers.ignore()
    app = Monitor(
        runs.ROOT,
        named,
        pattern=pattern,
        is_light=is_light,
        image_backend=image_backend,
        machine=MachineReadings(),
    )
    app.run()
    if app.return_code:
        raise typer.Exit(app.return_code)


def _print(screen: Screen, paths: Sequence[Path], *, is_frame: bool) -> None:
    from colddiff_cli.monitor.data.run_state import RunState, WallClock
    from colddiff_cli.monitor.render import frame

    states: list[RunState] = [RunState(runs.Run(path), WallClock()) for path in paths]
    for state in states:
        state.poll()
    if is_frame:
        current = max(states, key=lambda state: runs.last_written(state.path))
        lines = os.environ.get("LINES", "")
        height = int(lines) if lines.isdecimal() else 0
        screen.console.print(frame.render(current, states, screen.console.width, height), soft_wrap=True)
    screen.result(frame.state_table(states))
