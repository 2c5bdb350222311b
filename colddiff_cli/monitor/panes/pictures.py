"""The pictures: sample sheets as they are written, and the way there."""

from __future__ import annotations

import math
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.timer import Timer
from textual.widget import Widget

from colddiff_cli.console.terminal_images import Drawing
from colddiff_cli.monitor.data.run_state import RunState
from colddiff_cli.monitor.data.sample_sheets import BETWEEN, GAP, SCREEN_GAP, SampleSheet, SheetLayout, arrange
from colddiff_cli.monitor.panes.text import LiveText, entitle

FRAME = 0.35  # seconds of a film


class PicturesPane(Vertical, can_focus=True):
    """The newest sheet of the run that is looked at, or one of its history."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Back"),
        Binding("right", "step(1)", "Next"),
        Binding("space", "film", "Film"),
        Binding("home", "first", show=False),
        Binding("end", "newest", show=False),
    ]

    def __init__(self, drawing: Drawing) -> None:
        super().__init__(id="pictures", classes="pane")
        self.border_title = "3 Pictures"
        self.watched: RunState | None = None
        self.name_shown: str | None = None  # of the sheet chosen; None for the newest
        self._drawing = drawing
        self._drawn: tuple[object, ...] = ()
        self._sheet: SampleSheet | None = None  # the last one of this run that could be read
        self._newest: str | None = None
        self._film: Timer | None = None
        self._names: list[str] = []

    def compose(self) -> ComposeResult:
        yield LiveText(id="heads")
        yield LiveText(id="caption")

    def show(self, watched: RunState | None) -> None:
        """Show that run's sheets as they stand now."""
        if watched is not self.watched:
            self.watched, self.name_shown, self._names, self._sheet = watched, None, [], None
            self._stop()
        if watched and watched.state != "gone":
            self._names, self._newest = watched.sheets.names(), watched.newest_sheet
        self.redraw()

    @property
    def place(self) -> int:
        """The place of the sheet shown among the run's: of the one chosen, else of the newest."""
        shown = self.name_shown if self.name_shown in self._names else self._newest
        return self._names.index(shown) if shown in self._names else len(self._names) - 1

    def redraw(self) -> None:
        """Draw the sheet anew if it, or the space for it, is another."""
        if self.watched is None or not self._names:
            self._say("no sample sheets yet" if self.watched else "")
            return
        name = self._names[self.place]
        sheet = self.watched.sheets.load(name)
        if sheet is None:
            if self._sheet is None:
                self._say("")
            entitle(self, subtitle=f"{name} cannot be read, or not yet")
            return
        self._sheet = sheet
        entitle(self, subtitle=f"{self.place + 1} of {len(self._names)}")
        # A border, a line of names and one of figures.
        room = self.content_size.width, self.content_size.height - 2
        if (sheet, room) == self._drawn or room[0] < 4 or room[1] < 2:
            return
        self._drawn = sheet, room
        self._draw(sheet, room)

    def _draw(self, sheet: SampleSheet, room: tuple[int, int]) -> None:
        from PIL import Image  # as late as this: the dashboard opens without it

        wide, high = self._drawing.cell
        gap = GAP if self._drawing.is_half_blocks else SCREEN_GAP
        made = arrange(sheet, room[0] * wide, room[1] * high, gap=gap)
        picture = made.picture
        if picture.height % high:  # to whole cells: half-blocks are then not scaled at all
            whole = Image.new("RGB", (picture.width, math.ceil(picture.height / high) * high), BETWEEN)
            whole.paste(picture)
            picture = whole
        for old in self.query(".sheet"):
            old.remove()
        image: Widget = self._drawing.widget(picture, classes="sheet")
        image.styles.width = math.ceil(picture.width / wide)
        image.styles.height = math.ceil(picture.height / high)
        self.mount(image, before="#caption")
        self.query_one("#heads", LiveText).tell(self._heads(made, wide))
        self.query_one("#caption", LiveText).tell(self._caption(sheet))

    @staticmethod
    def _heads(made: SheetLayout, wide: int) -> Text:
        line = Text()
        for place, (name, left) in enumerate(made.heads):
            cell = left // wide
            line.pad_right(max(0, cell - line.cell_len))
            after = made.heads[place + 1][1] // wide if place + 1 < len(made.heads) else math.inf
            line.append(name if len(name) < after - cell else name[: max(1, int(after - cell) - 1)], style="bold")
        return line

    def _caption(self, sheet: SampleSheet) -> Text:
        text = Text.assemble((f"step {sheet.step:,}", "bold"))
        metrics = sheet.note.get("metrics")
        told = metrics.items() if isinstance(metrics, dict) else []
        figures = [(name, entry.get("rmse")) for name, entry in told if isinstance(entry, dict)]
        shown = [f"{name} {value:.4f}" for name, value in figures if isinstance(value, float)]
        if shown:
            text.append(f"  RMSE ({sheet.note.get('n', '?')} images) ", style="dim")
            text.append(" ".join(shown))
        return text

    def _say(self, text: str) -> None:
        if self._drawn != (text,):
            self._drawn = (text,)
            for old in self.query(".sheet"):
                old.remove()
            self.query_one("#heads", LiveText).tell(Text(text, style="dim"))
            self.query_one("#caption", LiveText).tell(Text())
            entitle(self, subtitle="")

    def on_resize(self, event: events.Resize) -> None:
        self.redraw()

    def action_step(self, by: int) -> None:
        """Show the sheet before or after; after the last one, follow the newest."""
        self._stop()
        self._go(self.place + by)

    def _go(self, place: int) -> None:
        if self._names:
            place = max(0, place)
            name = self._names[min(place, len(self._names) - 1)]
            self.name_shown = None if name == self._newest else name
            self.redraw()

    def action_first(self) -> None:
        """Show the first sheet."""
        self._stop()
        self._go(0)

    def action_newest(self) -> None:
        """Follow the newest sheet."""
        self._stop()
        self.name_shown = None
        self.redraw()

    def action_film(self) -> None:
        """Play the sheets from the first to the newest, or stop."""
        if self._film is not None:
            self._stop()
        elif len(self._names) > 1:
            self._go(0)
            self._film = self.set_interval(FRAME, self._advance)

    def _advance(self) -> None:
        if self.place >= len(self._names) - 1:
            self._stop()
        else:
            self._go(self.place + 1)

    def _stop(self) -> None:
        if self._film is not None:
            self._film.stop()
            self._film = None
