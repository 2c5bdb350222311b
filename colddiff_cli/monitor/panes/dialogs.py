"""Small screens over the dashboard: all the keys, and a question before something is stopped."""

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
        "Tab": "the next pane",
        "f": "one pane over the whole screen, and back",
        "d": "dark or light",
        "?": "these keys",
        "q": "close; training goes on",
    },
    "The trainer, who confirms each": {
        "p": "pause, or go on",
        "t": "a sample sheet now",
        "c": "a checkpoint now",
        "x": "stop, with a checkpoint",
    },
    "Runs": {
        "↑ ↓": "look at another run",
        "Space": "lay its curves over the others'",
        "/": "filter by name: digits-*, *blur*",
    },
    "Curves": {
        "m M": "the next, the former quantity",
        "l": "linear or logarithmic",
        "s": "smoothing: none, .6, .9, .99 of the line before",
        "+ -": "zoom, about the cursor where there is one; wheel",
        "← →": "pan along the steps",
        "[ ]": "move the cursor; or the mouse; Esc takes it away",
        "0": "all steps",
    },
    "Pictures": {
        "← →": "the sheet before, the next one",
        "Home End": "the first sheet, the newest",
        "Space": "play the training as a film",
    },
    "Status": {"↑ ↓": "scroll: events, configuration"},
}


class HelpDialog(ModalScreen[None]):
    """All the keys."""

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
    """A question: y or Enter affirms, n or Esc denies, and so does the mouse."""

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
