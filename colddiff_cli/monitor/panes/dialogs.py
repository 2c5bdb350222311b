"""Dialogs over the dashboard: the keys, and a question before training is stopped."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

KEYS = {
    "Everywhere": {
        "1 2 3 4": "runs, curves, pictures, status",
        "Tab": "next pane",
        "f": "full screen for one pane, and back",
        "d": "dark or light",
        "?": "this list",
        "q": "quit; training continues",
    },
    "Trainer (it confirms each request)": {
        "p": "pause, resume",
        "t": "draw a sample sheet now",
        "c": "save a checkpoint now",
        "x": "save a checkpoint and stop",
    },
    "Runs": {
        "↑ ↓": "choose a run",
        "Space": "overlay its curves on the others",
        "/": "filter by name: digits-*, *blur*",
    },
    "Curves": {
        "m M": "next, previous quantity",
        "l": "linear or log scale",
        "s": "smoothing: off, 0.6, 0.9, 0.99",
        "+ -": "zoom around the cursor; also the mouse wheel",
        "← →": "pan",
        "[ ]": "move the cursor (or use the mouse); Esc hides it",
        "0": "all steps",
    },
    "Pictures": {
        "← →": "previous, next sheet",
        "Home End": "first, newest sheet",
        "Space": "play all sheets as a film",
    },
    "Status": {"↑ ↓": "scroll to events, configuration"},
}


class HelpDialog(ModalScreen[None]):
    """The list of keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help") as box:
            box.border_title = "Keys"
            box.border_subtitle = "Esc closes"
            yield Static(self._text())

    def on_click(self) -> None:
        self.dismiss()

    @staticmethod
    def _text() -> Text:
        lines = []
        for heading, keys in KEYS.items():
            lines.append(Text(heading, style="bold underline"))
            lines += [Text(f"  {key:<10}", style="bold") + Text(meaning) for key, meaning in keys.items()]
        return Text("\n").join(lines)


class ConfirmDialog(ModalScreen[bool]):
    """A yes-no question: y or Enter, n or Esc, or a click."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "dismiss(True)", "Yes"),
        Binding("n,escape,q", "dismiss(False)", "No"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="question"):
            yield Static(self._text, markup=False)
            yield Static(
                "\n[bold @click=screen.dismiss(True)] y  yes [/]   [bold @click=screen.dismiss(False)] n  no [/]"
            )
