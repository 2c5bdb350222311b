"""Make a picture from each of many files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colddiff_cli.console.screen import Screen
from colddiff_cli.picture_series import series
from colddiff_core.errors import ColddiffError, UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.distributed.group import Group

Messages = tuple[int, list[list[str]]]  # the number of a file, and what to print about it
AtShare = Callable[[float], None]


class NothingToDoError(ColddiffError):
    """A file needs no work, so there is no picture of it."""


def make(
    screen: Screen,
    own: series.Series,
    files: Sequence[tuple[Path, bool]],
    doing: str,
    work: Callable[[int, AtShare], Callable[[], None]],
    *,
    is_slow: bool = False,
) -> tuple[list[int], int]:
    """Make the missing pictures of a series; return the numbers of the files done, and how many were kept.

    A series has one picture per file, or several: all the first ones, then all the second ones. The processes of a job
    share the files; rank 0 prints and returns the results of all.

    Args:
        doing: What happens to the pictures, such as "degraded".
        work: Makes the pictures of a file, by number, and returns a function that writes them. It can call its second
            argument with the share of its work that is done.
        is_slow: Show progress even for a single picture.

    Raises:
        UsageError: A file that was named itself cannot be used, or none can. Others are skipped with a warning.
        NothingToDoError: The only file needs no work.
    """
    count, ranks = len(files), own.ranks
    if own.is_complete:
        screen.say("Nothing is missing: all were there already.")
    own.begin()
    missing = [number for number in range(count) if own.lacks(range(number, len(own.targets), count))]
    mine = list(ranks.round_robin(missing))
    made: list[int] = []
    messages: list[Messages] = []
    with screen.progress(is_shown=is_slow or count > series.MANY) as progress:
        task = progress.add_task(doing, total=len(mine))
        for index, number in enumerate(mine):

            def at_share(share: float, index: int = index) -> None:
                progress.update(task, completed=index + share)

            at_share(0)
            with contextlib.nullcontext() if ranks.is_alone else screen.hold_lines() as held:
                is_only = count == 1
                if _has_made(screen, files[number], lambda number=number: work(number, at_share), is_only):  # type: ignore[misc]
                    made.append(number)
            messages += [(number, held)] if held else []
    made = _gather(screen, ranks, made, messages)
    done = sorted({*range(count)}.difference(missing).union(made))
    if ranks.is_first and not done:
        raise UsageError(f"None of {counted(count, 'image')} could be {doing}.", "Check the files.")
    kept = count - len(missing)
    if count > series.MANY or kept:
        screen.say(series.summary(own.folder, len(done), kept))
    return done, kept


def _has_made(screen: Screen, file: tuple[Path, bool], work: Callable[[], Callable[[], None]], is_only: bool) -> bool:
    """Do the work on a file; return False, with a warning, if it is skipped."""
    path, is_named = file
    try:
        write = work()
    except UsageError as error:
        what = error.what if str(path) in error.what else f"{path}: {error.what}"
        if is_named:
            raise UsageError(what, error.remedy) from None
        screen.warn(f"{what} Skipped.")
        return False
    except NothingToDoError as error:
        if is_only:
            raise NothingToDoError(f"{path}: {error.what}", error.remedy) from None
        screen.warn(f"{path}: {error.what} Skipped.")
        return False
    write()
    return True


def _gather(screen: Screen, ranks: Group, made: list[int], messages: list[Messages]) -> list[int]:
    """Return the files done, on rank 0 those of all ranks; it prints their messages in the order of the files."""
    if ranks.is_alone:
        return made
    ranks.barrier()
    every = ranks.gather_json([made, messages])
    for _, held in sorted(line for _, lines in every for line in lines):
        screen.print_held(held)
    return [number for numbers, _ in every for number in numbers]
