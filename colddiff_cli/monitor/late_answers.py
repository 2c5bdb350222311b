"""Keep a terminal's late answer to our question from the dashboard's keys: its "c" would ask the trainer to save."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from textual import constants
from textual._xterm_parser import XTermParser
from textual.drivers import linux_driver
from textual.message import Message

ANSWER = re.compile(r"\x1b\[\?[\d;]*c|\x1b\[6;\d+;\d+t|\x1b_G[^\x1b]*\x1b\\")
BEGINNING = re.compile(r"\x1b(\[(\?[\d;]*|6?(;\d*){0,2})|_(G[^\x1b]*\x1b?)?)?\Z")  # an unfinished answer at the end


def ignore() -> None:
    """Ignore late answers in the dashboard; call it before the dashboard opens."""
    vars(linux_driver)["XTermParser"] = LateAnswerParser


class LateAnswerParser(XTermParser):
    """Textual's key parser, but it drops the terminal's answers."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._begun, self._held_since = "", 0.0

    def feed(self, data: str) -> Iterable[Message]:
        """Yield the keys and events in `data`; no data is the end of the input."""
        if data:
            data = ANSWER.sub("", self._begun + data)
            begun = BEGINNING.search(data)
            self._begun, self._held_since = begun[0] if begun else "", time.monotonic()
            data = data.removesuffix(self._begun)
            if not data:
                return
        yield from super().feed(data)

    def tick(self) -> Iterable[Message]:
        """Yield a beginning that nothing follows as the keys that it is, such as Escape."""
        if self._begun and time.monotonic() > self._held_since + constants.ESCAPE_DELAY:
            begun, self._begun = self._begun, ""
            yield from super().feed(begun)
        yield from super().tick()
