"""Pictures that a command makes one by one, out of files that may be many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from colddiff_cli import series
from colddiff_cli.screen import Screen
from colddiff_core.errors import UsageError, counted

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
    Raises UsageError for a file that was named itself, and where none of a folder's can be used.
    """
    count = len(files)
    if own.is_complete:
        screen.say("Nothing is missing: all were there already.")
    missing = [own.lacks(range(number, len(own.targets), count)) for number in range(count)]
    done = []
    is_shown = screen.is_terminal and (is_slow or count > series.MANY)
    with Progress(console=screen.console, transient=True, disable=not is_shown) as progress:
        task = progress.add_task(doing, total=count)
        for number, (file, is_asked_for) in enumerate(files):
            progress.update(task, completed=number)
            if missing[number]:
                try:
                    write = work(number, lambda share, number=number: progress.update(task, completed=number + share))  # type: ignore[misc]
                except UsageError as error:
                    what = error.what if str(file) in error.what else f"{file}: {error.what}"
                    if is_asked_for:
                        raise UsageError(what, error.remedy) from None
                    screen.warn(f"{what} Left out.")
                    continue
                write()
            done.append(number)
    if not done:
        raise UsageError(f"None of {counted(count, 'image')} could be {doing}.", "Check the files.")
    kept = count - sum(missing)
    if count > series.MANY or kept:
        screen.say(series.summary(own.folder, len(done), kept))
    return done, kept
