"""The pictures pane: sample sheets as they are written, and the older ones."""

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

from colddiff_cli.console.terminal_images import ImageBackend
from colddiff_cli.monitor.data.run_state import RunState
from colddiff_cli.monitor.data.sample_sheets import GAP, GAP_COLOR, SCREEN_GAP, SampleSheet, SheetLayout, arrange
from colddiff_cli.monitor.panes.text import LiveText, set_titles
from colddiff_core.text import one_line

FRAME_SECONDS = 0.35  # of a film


class PicturesPane(Vertical, can_focus=True):
    """The newest sheet of the current run, or an older one that the user went back to."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Back"),
        Binding("right", "step(1)", "Next"),
        Binding("space", "film", "Film"),
        Binding("home", "first", show=False),
        Binding("end", "newest", show=False),
    ]

    def __init__(self, backend: ImageBackend) -> None:
        super().__init__(id="pictures", classes="pane")
        self.border_title = "3 Pictures"
        self.run: RunState | None = None
        self.name_shown: str | None = None  # the sheet the user chose; None for the newest
        self._backend = backend
        self._drawn: tuple[object, ...] = ()
        self._sheet: SampleSheet | None = None  # the last readable one of this run
        self._newest: str | None = None
        self._film: Timer | None = None
        self._names: list[str] = []

    def compose(self) -> ComposeResult:
        yield LiveText(id="headings")
        yield LiveText(id="caption")

    def show(self, run: RunState | None) -> None:
        """Show the sheets of a run."""
        if run is not self.run:
            self.run, self.name_shown, self._names, self._sheet = run, None, [], None
            self._stop()
        if run and run.state != "gone":
            self._names, self._newest = run.sheets.names(), run.newest_sheet
        self.redraw()

    @property
    def index(self) -> int:
        """Index of the sheet shown among the run's: the chosen one, else the newest."""
        shown = self.name_shown if self.name_shown in self._names else self._newest
        return self._names.index(shown) if shown in self._names else len(self._names) - 1

    def redraw(self) -> None:
        """Draw the sheet if it or its size has changed."""
        if self.run is None or not self._names:
            self._show_message("no sample sheets yet" if self.run else "")
            return
        name = self._names[self.index]
        sheet = self.run.sheets.load(name)
        if sheet is None:
            if self._sheet is None:
                self._show_message("")
            set_titles(self, subtitle=f"{name} cannot be read (yet)")
            return
        self._sheet = sheet
        set_titles(self, subtitle=f"{self.index + 1} of {len(self._names)}")
        # One line for the headings, one for the caption.
        cells = self.content_size.width, self.content_size.height - 2
        if (sheet, cells) == self._drawn or cells[0] < 4 or cells[1] < 2:
            return
        self._drawn = sheet, cells
        self._draw(sheet, cells)

    def _draw(self, sheet: SampleSheet, cells: tuple[int, int]) -> None:
        from PIL import Image  # imported late, so the dashboard opens faster

        cell_width, cell_height = self._backend.cell
        gap = GAP if self._backend.is_half_blocks else SCREEN_GAP
        layout = arrange(sheet, cells[0] * cell_width, cells[1] * cell_height, gap=gap)
        picture = layout.picture
        if picture.height % cell_height:  # fill up to whole cells, so that half-blocks are not scaled
            height = math.ceil(picture.height / cell_height) * cell_height
            padded = Image.new("RGB", (picture.width, height), GAP_COLOR)
            padded.paste(picture)
            picture = padded
        for old in self.query(".sheet"):
            old.remove()
        image: Widget = self._backend.widget(picture, classes="sheet")
        image.styles.width = math.ceil(picture.width / cell_width)
        image.styles.height = math.ceil(picture.height / cell_height)
        self.mount(image, before="#caption")
        self.query_one("#headings", LiveText).set_text(self._headings(layout, cell_width))
        self.query_one("#caption", LiveText).set_text(self._caption(sheet))

    @staticmethod
    def _headings(layout: SheetLayout, cell_width: int) -> Text:
        line = Text()
        cells = [left // cell_width for _, left in layout.headings]
        for (name, _), cell, next_cell in zip(layout.headings, cells, [*cells, math.inf][1:], strict=True):
            line.pad_right(max(0, cell - line.cell_len))
            name = one_line(name)  # noqa: PLW2901
            fits = len(name) < next_cell - cell
            line.append(name if fits else name[: max(1, int(next_cell - cell) - 1)], style="bold")
        return line

    def _caption(self, sheet: SampleSheet) -> Text:
        text = Text.assemble((f"step {sheet.step:,}", "bold"))
        metrics = sheet.metadata.get("metrics")
        entries = metrics.items() if isinstance(metrics, dict) else []
        values = [(name, entry.get("rmse")) for name, entry in entries if isinstance(entry, dict)]
        shown = [f"{one_line(name)} {value:.4f}" for name, value in values if isinstance(value, float)]
        if shown:
            text.append(f"  RMSE ({one_line(str(sheet.metadata.get('n', '?')))} images) ", style="dim")
            text.append(" ".join(shown))
        return text

    def _show_message(self, text: str) -> None:
        if self._drawn != (text,):
            self._drawn = (text,)
            for old in self.query(".sheet"):
                old.remove()
            self.query_one("#headings", LiveText).set_text(Text(text, style="dim"))
            self.query_one("#caption", LiveText).set_text(Text())
            set_titles(self, subtitle="")

    def on_resize(self, event: events.Resize) -> None:
        self.redraw()

    def action_step(self, by: int) -> None:
        """Show the previous or next sheet; past the last one, follow the newest."""
        self._stop()
        self._show_sheet(self.index + by)

    def _show_sheet(self, index: int) -> None:
        if self._names:
            name = self._names[min(max(0, index), len(self._names) - 1)]
            self.name_shown = None if name == self._newest else name
            self.redraw()

    def action_first(self) -> None:
        """Show the first sheet."""
        self._stop()
        self._show_sheet(0)

    def action_newest(self) -> None:
        """Follow the newest sheet."""
        self._stop()
        self.name_shown = None
        self.redraw()

    def action_film(self) -> None:
        """Play the sheets from first to newest, or stop playing."""
        if self._film is not None:
            self._stop()
        elif len(self._names) > 1:
            self._show_sheet(0)
            self._film = self.set_interval(FRAME_SECONDS, self._advance)

    def _advance(self) -> None:
        if self.index >= len(self._names) - 1:
            self._stop()
        else:
            self._show_sheet(self.index + 1)

    def _stop(self) -> None:
        if self._film is not None:
            self._film.stop()
            self._film = None
