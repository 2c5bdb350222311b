"""Text on the screen that is only redrawn when it changes."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget
from textual.widgets import Static

from colddiff_cli.monitor.render.text import harmless


class LiveText(Static):
    """Text that is redrawn only if it changed, with a new layout only if it takes another number of lines."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._text = Text()
        self.display = False  # empty text takes no line

    def set_text(self, text: Text) -> None:
        """Show a text."""
        text = harmless(text)
        if text == self._text and text.style == self._text.style:
            return
        # A new layout redraws the whole screen, so only if the number of wrapped lines changes.
        lines = len(text.wrap(self.app.console, self.size.width)) if self.size.width else 0
        self.update(text, layout=not lines or lines != self.size.height)
        self._text = text
        self.display = bool(text)


def set_titles(pane: Widget, *, title: str | None = None, subtitle: str | None = None) -> None:
    """Set the texts in a pane's border if they changed; a change redraws the whole pane."""
    if title is not None and pane.border_title != title:
        pane.border_title = harmless(Text(title))  # brackets in a string would be markup
    if subtitle is not None and (pane.border_subtitle or "") != subtitle:
        pane.border_subtitle = harmless(Text(subtitle))
