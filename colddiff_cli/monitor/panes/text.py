"""A piece of text on the screen that costs nothing while it says the same."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget
from textual.widgets import Static

from colddiff_cli.monitor.render.text import harmless


class LiveText(Static):
    """Text that is drawn anew where it has changed, and laid out anew where it may need other room."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._told = Text()
        self.display = False  # without a word it takes no line

    def tell(self, text: Text) -> None:
        """Show that text."""
        text = harmless(text)
        if text == self._told and text.style == self._told.style:
            return
        # Laying out costs the whole screen: only for another number of lines, as they are folded.
        lines = len(text.wrap(self.app.console, self.size.width)) if self.size.width else 0
        self.update(text, layout=not lines or lines != self.size.height)
        self._told = text
        self.display = bool(text)


def entitle(pane: Widget, *, title: str | None = None, subtitle: str | None = None) -> None:
    """Set what stands in a pane's border, which costs a drawing of all of the pane, where it is another."""
    if title is not None and pane.border_title != title:
        pane.border_title = harmless(Text(title))  # not a string, whose brackets would be markup
    if subtitle is not None and (pane.border_subtitle or "") != subtitle:
        pane.border_subtitle = harmless(Text(subtitle))
