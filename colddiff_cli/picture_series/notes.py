"""Notes on what of each picture was lost: a line each, or for many pictures a line per kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from colddiff_cli.console.screen import Screen
from colddiff_cli.picture_series.series import MANY
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.distributed.group import Group


class PictureNotes:
    """The notes of one call, by any process of a job."""

    def __init__(self, screen: Screen, count: int) -> None:
        """Prepare for the notes of `count` pictures. A few, in a single process, are printed at once."""
        from colddiff_core.distributed import group

        self._screen = screen
        self._is_counted = count > MANY
        self._is_immediate = not self._is_counted and group.current().is_alone
        self._notes: dict[str, list[tuple[int, str]]] = {}

    def add(self, number: int, path: Path, text: str) -> None:
        """Note something about a picture, whose number in the call is `number`; the same twice counts once."""
        noted = self._notes.setdefault(text, [])
        if (number, str(path)) in noted:
            return
        noted.append((number, str(path)))
        if self._is_immediate:
            self._screen.warn(f"{path}: {text}")

    def report(self, ranks: Group) -> None:
        """Print the notes of all processes, in the order of the pictures; all processes must call this."""
        if self._is_immediate:
            return
        gathered: dict[str, list[tuple[int, str]]] = {}
        for notes in [self._notes] if ranks.is_alone else ranks.gather_json(self._notes):
            for text, noted in notes.items():
                gathered.setdefault(text, []).extend((int(number), str(path)) for number, path in noted)
        self._notes = {}
        if not ranks.is_first:
            return
        if self._is_counted:
            for text, noted in sorted(gathered.items()):
                first = min(noted)[1]
                also = f"{first} and {counted(len(noted) - 1, 'other picture')}" if len(noted) > 1 else first
                self._screen.warn(f"{also}: {text}")
            return
        for _, path, text in sorted((number, path, text) for text, noted in gathered.items() for number, path in noted):
            self._screen.warn(f"{path}: {text}")
