"""`colddiff monitor`: runs watched from the terminal."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colddiff_cli.arguments import options
from colddiff_cli.console.screen import Screen
from colddiff_core import runs
from colddiff_core.errors import UsageError

NICENESS = 10

if TYPE_CHECKING:
    from colddiff_cli.monitor.data.run_state import RunState


def monitor(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs, by folder or name; all in runs/ if left out.", metavar="[RUN]...")
    ] = None,
    pattern: Annotated[str, typer.Option("--filter", help="Only runs of such names.", metavar="GLOB")] = "*",
    once: Annotated[bool, typer.Option("--once", help="Print one frame as text and end.")] = False,
    light: Annotated[bool, typer.Option("--light", help="For a light terminal.")] = False,
    json: options.Json = False,
) -> None:
    """Watch training: curves, pictures, status; pause, sample, save or stop it. Closing it leaves training running."""
    screen = Screen(json)
    named = [runs.find(name).path for name in names or []]
    found = named or runs.listed()
    if not found:
        runs.find(None)  # says what to do
    from colddiff_cli.monitor.data.run_state import is_named

    shown = [path for path in found if is_named(path.name, pattern)]
    if not shown:
        raise UsageError(
            f"No run is named like {pattern}.", f"There are: {', '.join(path.name for path in found[:8])}."
        )
    if json or once:
        _print(screen, shown, is_frame=once and not json)
    else:
        watch(named, pattern=pattern, is_light=light)


def check_terminal() -> None:
    """Raise UsageError where the dashboard has no terminal to be drawn on."""
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError(
            "The dashboard needs a terminal.", "`colddiff monitor` prints a frame with --once, the state with --json."
        )


def watch(named: Sequence[Path], *, pattern: str = "*", is_light: bool = False) -> None:
    """Open the dashboard on these runs, or on all in runs/.

    Raises UsageError where there is no terminal.
    """
    check_terminal()
    os.nice(NICENESS)  # a trainer on the same cores goes first
    gc.disable()  # until it is on the screen: what is made so far stays, and to look for what does not takes a tenth
    from colddiff_cli.console import terminal_images
    from colddiff_cli.monitor.app import Monitor
    from colddiff_cli.monitor.data.machine import MachineReadings

    way = terminal_images.best()
    app = Monitor(runs.ROOT, named, pattern=pattern, is_light=is_light, drawing=way, machine=MachineReadings())
    app.run()
    if app.return_code:
        raise typer.Exit(app.return_code)


def _print(screen: Screen, paths: Sequence[Path], *, is_frame: bool) -> None:
    from colddiff_cli.monitor.data.run_state import RunState, WallClock
    from colddiff_cli.monitor.render import frame

    watched: list[RunState] = [RunState(runs.Run(path), WallClock()) for path in paths]
    for each in watched:
        each.poll()
    if is_frame:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a log may be of few characters
        current = max(watched, key=lambda each: runs.last_written(each.run.path))
        screen.console.print(frame.frame(current, watched, screen.console.width), soft_wrap=True)
    screen.result(frame.state(watched))
