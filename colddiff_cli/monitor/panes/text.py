"""Text and keys on the screen that are only redrawn when they change."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Footer, Static

from colddiff_cli.monitor.render.text import harmless
from colddiff_core.text import one_line


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


class LiveFooter(Footer):
    """The keys of the focused pane, rebuilt only if they changed; each rebuild takes several layouts of the screen."""

    def __init__(self) -> None:
        super().__init__(compact=True)
        self._shown: list[tuple[Binding, bool]] = []

    def _keys(self) -> list[tuple[Binding, bool]]:
        return [(key.binding, key.enabled) for key in self.screen.active_bindings.values() if key.binding.show]

    def compose(self) -> ComposeResult:
        self._shown = self._keys() if self._bindings_ready else []
        yield from super().compose()

    async def recompose(self) -> None:
        if self._keys() != self._shown:
            await super().recompose()


def set_titles(pane: Widget, *, title: str | None = None, subtitle: str | None = None) -> None:
    """Set the texts in a pane's border if they changed; a change redraws the whole pane."""
    if title is not None and pane.border_title != title:
        pane.border_title = Text(one_line(title))  # brackets in a string would be markup
    if subtitle is not None and (pane.border_subtitle or "") != subtitle:
        pane.border_subtitle = Text(one_line(subtitle))
