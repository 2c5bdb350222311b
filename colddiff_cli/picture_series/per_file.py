"""Pictures that a command makes one by one, out of files that may be many."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from colddiff_cli.console.screen import Screen
from colddiff_cli.picture_series import series
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.distributed.group import Group

Line = tuple[int, list[list[str]]]  # what is told of a file, by its number
AtShare = Callable[[float], None]


def make(
    screen: Screen,
    own: series.Series,
    files: Sequence[tuple[Path, bool]],
    doing: str,
    work: Callable[[int, AtShare], Callable[[], None]],
    *,
    is_slow: bool = False,
) -> tuple[list[int], int]:
    """Have what is missing of a series made and written for each file; return the numbers of those done, and how many
    of them were there already.

    A series has one picture for each file, or several: all the first ones, then all the second. What cannot be made of
    a file out of a folder is told and left out. `work` makes what belongs to a file, by its number, and returns what
    writes it; it is given what to call with the share of its work that is done. doing: what is done to the pictures, as
    "degraded"; is_slow: show progress of a single picture too.
    The processes of a job share the files out; the first one returns, and tells of, what all of them have done.
    Raises UsageError for a file that was named itself, and where none of a folder's can be used.
    """
    count, together = len(files), own.together
    if own.is_complete:
        screen.say("Nothing is missing: all were there already.")
    own.begin()
    missing = [number for number in range(count) if own.lacks(range(number, len(own.targets), count))]
    mine = list(together.round_robin(missing))
    made: list[int] = []
    told: list[Line] = []
    is_shown = screen.is_terminal and (is_slow or count > series.MANY)
    with Progress(console=screen.console, transient=True, disable=not is_shown) as progress:
        task = progress.add_task(doing, total=len(mine))
        for place, number in enumerate(mine):

            def at_share(share: float, place: int = place) -> None:
                progress.update(task, completed=place + share)

            at_share(0)
            with contextlib.nullcontext() if together.is_alone else screen.hold_lines() as held:
                if _has_made(screen, files[number], lambda number=number: work(number, at_share)):  # type: ignore[misc]
                    made.append(number)
            told += [(number, held)] if held else []
    made = _gather(screen, together, made, told)
    done = sorted({*range(count)}.difference(missing).union(made))
    if together.is_first and not done:
        raise UsageError(f"None of {counted(count, 'image')} could be {doing}.", "Check the files.")
    kept = count - len(missing)
    if count > series.MANY or kept:
        screen.say(series.summary(own.folder, len(done), kept))
    return done, kept


def _has_made(screen: Screen, file: tuple[Path, bool], work: Callable[[], Callable[[], None]]) -> bool:
    """Do the work on a file; False, with a word, where it is left out."""
    path, is_asked_for = file
    try:
        write = work()
    except UsageError as error:
        what = error.what if str(path) in error.what else f"{path}: {error.what}"
        if is_asked_for:
            raise UsageError(what, error.remedy) from None
        screen.warn(f"{what} Left out.")
        return False
    write()
    return True


def _gather(screen: Screen, together: Group, made: list[int], told: list[Line]) -> list[int]:
    """Return, to the first process, what all have made; it tells what they have to tell, in the order of the files."""
    if together.is_alone:
        return made
    together.barrier()
    every = together.gather_json([made, told])
    for _, held in sorted(line for _, lines in every for line in lines):
        screen.print_held(held)
    return [number for numbers, _ in every for number in numbers]
