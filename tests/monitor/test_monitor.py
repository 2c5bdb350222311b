"""The dashboard as its user sees it: keys, mouse, sizes, and a golden picture of every screen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from pathlib import Path

import pytest
import textual
from golden_runs import NOW, metrics, write_run, write_runs, write_sheet
from textual.widgets import DataTable, Static
from textual_image.widget import HalfcellImage, SixelImage, TGPImage

from colddiff_cli.console import terminal_images
from colddiff_cli.monitor.app import Monitor
from colddiff_cli.monitor.data.run_state import WallClock
from colddiff_cli.monitor.panes.curves import CurvesPane, Plot
from colddiff_cli.monitor.panes.dialogs import ConfirmDialog, HelpDialog
from colddiff_cli.monitor.panes.pictures import PicturesPane
from colddiff_cli.monitor.panes.runs import RunsPane

GOLDEN = Path(__file__).parents[1] / "golden" / "monitor"
SIZES = {"80x24": (80, 24), "160x48": (160, 48)}
READINGS = [("CPU", "150 % of 2 cores"), ("memory", "3.1 of 25.3 GB"), ("GPU", "97 %, 11.2 of 80.0 GB")]
TINTED = re.compile(r"terminal-\d+-")


class SteadyMachine:
    """A machine that always reads alike."""

    def read(self, holder):
        return READINGS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("colddiff_cli.monitor.app.POLL", 3600)  # it looks when the test says
    yield write_runs(tmp_path / "runs")
    monkeypatch.undo()
    time.tzset()


def make(folder, **options):
    clock = WallClock(lambda: NOW, lambda: 1000.0)
    settings = {"drawing": terminal_images.half_blocks(), "machine": SteadyMachine(), "clock": clock}
    return Monitor(folder, **(settings | options))


@contextlib.asynccontextmanager
async def opened(app, size=(160, 48), keys=""):
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause()
        for key in keys.split():
            await pilot.press(key)
        await pilot.pause(0.1)
        yield pilot


def drive(app, size=(160, 48), keys=""):
    """Return a decorator that runs a coroutine over the app once it is open."""

    def decorate(body):
        async def run():
            async with opened(app, size, keys) as pilot:
                await body(pilot)

        asyncio.run(run())

    return decorate


def text_of(app):
    """Return what is on the screen, line by line."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


async def looked(pilot, app):
    """Have the app look at its files now, rather than at its next poll."""
    app._poll()
    await pilot.pause(0.1)


SCREENS = {
    "curves": "2",
    "pictures": "3",
    "sheets-back": "3 left",
    "full": "3 f",
    # of a run without pictures, whose cells would make the files large
    "runs": "1 down",
    "status": "1 down 4",
    "overlay": "1 down space down 2 s s",
    "bands": "1 down 2 m l",
    "zoomed": "1 down 2 plus plus left left_square_bracket left_square_bracket",
    "help": "1 down question_mark",
    "stop": "1 down x",
    "light": "1 down d",
    "filter": "1 down slash d i g",
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("screen", SCREENS)
def test_every_screen_looks_as_it_did(folder, screen, size, pytestconfig):
    app = make(folder)

    @drive(app, SIZES[size], SCREENS[screen])
    async def _(pilot):
        await looked(pilot, app)
        picture = TINTED.sub("terminal-", app.export_screenshot(title="colddiff monitor"))
        text = text_of(app)
        path = GOLDEN / f"{screen}-{size}.svg"
        if pytestconfig.getoption("update_golden"):
            GOLDEN.mkdir(parents=True, exist_ok=True)
            path.write_text(picture)
            path.with_suffix(".txt").write_text(text)
            (GOLDEN / "TEXTUAL").write_text(f"{textual.__version__}\n")
        assert text == path.with_suffix(".txt").read_text(), "look at it, then: pytest --update-golden"
        if (GOLDEN / "TEXTUAL").read_text().strip() == textual.__version__:  # its drawing of colors is its own
            assert picture == path.read_text()


def test_arrow_keys_choose_the_run_and_every_pane_follows(folder):
    app = make(folder)
    assert app.current is None

    @drive(app, keys="1")
    async def _(pilot):
        assert app.current.name == "digits-blur"
        for name in ("digits-mask", "digits-noise", "faces"):
            await pilot.press("down")
            await pilot.pause()
            assert app.current.name == name
            assert f"{name}  " in text_of(app).split("\n")[0]
        assert "no sample sheets yet" in text_of(app)


def test_several_runs_are_overlaid_and_told_apart(folder):
    app = make(folder)

    @drive(app, keys="1 down space down space up up")
    async def _(pilot):
        await pilot.pause()
        legend = str(app.query_one("#legend", Static).render())
        assert [name in legend for name in ("1 digits-blur", "2 digits-mask", "3 digits-noise")] == [True] * 3
        assert len(app.query_one(CurvesPane).runs) == 3
        await pilot.press("down", "space")
        await pilot.pause()
        assert "digits-noise" in str(app.query_one("#legend", Static).render())
        assert app.query_one(RunsPane).marked == {str(folder / "digits-noise")}


def test_a_failed_run_says_why_where_there_is_room(folder):
    app = make(folder)

    @drive(app, size=(80, 24), keys="1")
    async def _(pilot):
        assert "The loss is nan" in text_of(app)


def test_runs_are_filtered_by_glob_and_by_a_part_of_the_name(folder):
    app = make(folder)

    @drive(app, keys="1 slash")
    async def _(pilot):
        table = app.query_one(DataTable)
        for pattern, count in (("blur", 2), ("digits-*", 3), ("*", 6), ("nothing", 0)):
            await pilot.press("ctrl+u", *pattern)
            await pilot.pause()
            assert table.row_count == count, pattern
        await pilot.press("enter", "escape")
        await pilot.pause()
        assert table.row_count == 6


def test_a_filter_leaves_no_hidden_run_to_be_acted_on(folder):
    app = make(folder)

    @drive(app, keys="1 slash n o i s e enter")
    async def _(pilot):
        assert app.current.name == "digits-noise"
        assert text_of(app).startswith(" digits-noise")
        await pilot.press("escape")
        await pilot.pause()
        assert app.current.name == "digits-noise"
        assert app.query_one(DataTable).cursor_row == 2
        await pilot.press("slash", *"digits-m", "enter")
        await pilot.pause()
        assert app.current.name == "digits-mask"


def test_a_reason_with_brackets_is_text(folder):
    path = write_run(
        folder, "odd", events=({"event": "failed", "time": NOW, "why": "RuntimeError: bad [/usr/lib/x.so]"},)
    )
    assert path.exists()
    app = make(folder, pattern="odd")

    @drive(app, keys="1 p 4 x f f 1 slash [ a ]")
    async def _(pilot):
        assert "[/usr/lib/x.so]" in next(iter(app._notifications)).message


def test_a_run_that_stumbles_does_not_take_the_others_along(folder, monkeypatch):
    app = make(folder)

    @drive(app)
    async def _(pilot):
        def stumble():
            raise RuntimeError("of a kind nobody thought of")

        monkeypatch.setattr(app.watched[folder / "digits-blur"], "_check_times", stumble)
        await looked(pilot, app)
        assert "nobody thought" in " ".join(text_of(app).split())
        monkeypatch.undo()


def test_a_gone_run_does_not_show_anothers_picture(folder):
    import shutil

    app = make(folder)

    @drive(app, keys="3")
    async def _(pilot):
        assert "step 600" in text_of(app)
        shutil.rmtree(folder / "digits-mask")
        await pilot.press("1", "down", "3")
        await looked(pilot, app)
        assert app.current.name == "digits-mask"
        assert "RMSE" not in text_of(app)


def test_a_sheet_is_drawn_once(folder):
    app = make(folder)
    (folder / "digits-blur" / "samples" / "step-000600.json").unlink()

    @drive(app, keys="3")
    async def _(pilot):
        (image,) = app.pictures_pane.query(HalfcellImage)
        for _ in range(3):
            await looked(pilot, app)
        assert list(app.pictures_pane.query(HalfcellImage)) == [image]


def test_smoothing_does_not_hang_on_the_zoom(folder):
    app = make(folder)

    @drive(app, keys="2 s s")
    async def _(pilot):
        pane = app.curves_pane
        pane.point_at(500)
        whole = str(app.query_one("#legend", Static).render())
        await pilot.press("plus", "plus", "plus")
        assert pane.window is not None
        assert str(app.query_one("#legend", Static).render()).split()[:5] == whole.split()[:5]


def test_a_cursor_and_a_window_of_another_place_do_no_harm(folder):
    write_run(folder, "short", step=50)
    app = make(folder)

    @drive(app, keys="2 plus plus")
    async def _(pilot):
        pane = app.curves_pane
        pane.point_at(20)  # left of what is in view
        first, last = pane.window
        await pilot.press("plus")
        assert first <= pane.window[0] <= pane.window[1] <= last
        app.current = app.watched[folder / "short"]
        app._show()
        assert pane.window is None
        pane.point_at(pane.view.last)
        assert "│" in pane.query_one(Plot).text.plain.split("\n")[0][10:]
        app.runs_pane.marked = {str(folder / "digits-blur")}
        app._show()
        pane.point_at(400)
        legend = str(app.query_one("#legend", Static).render())
        assert "1 short -" in legend


def test_curves_zoom_pan_and_tell_values(folder):
    app = make(folder)

    @drive(app, keys="2 plus plus")
    async def _(pilot):
        pane = app.query_one(CurvesPane)
        first, last = pane.window
        assert last == 600
        assert first == pytest.approx(600 - 590 / 4)
        await pilot.press("left")
        assert pane.window == pytest.approx((first - 590 / 16, last - 590 / 16))
        for _ in range(30):
            await pilot.press("left")
        assert pane.window[0] == 10
        await pilot.press("minus", "minus")
        assert pane.window is None
        await pilot.press("left_square_bracket")
        assert pane.cursor == pytest.approx(600 - 590 / (app.query_one(Plot).size.width - 8))
        legend = str(app.query_one("#legend", Static).render())
        assert "step 590" in legend or "step 600" in legend
        await pilot.press("escape")
        assert pane.cursor is None


def test_the_mouse_points_zooms_and_chooses(folder):
    app = make(folder)

    @drive(app)
    async def _(pilot):
        pane, plot = app.query_one(CurvesPane), app.query_one(Plot)
        await pilot.hover(plot, offset=(8 + (plot.size.width - 8) // 2, 5))
        await pilot.pause()
        assert pane.cursor == pytest.approx(305, abs=6)
        step = round(pane.cursor, -1)
        value = metrics(int(step), sum(b"digits-blur"))["loss"]
        assert f"{value:.4g}" in str(app.query_one("#legend", Static).render())
        await pilot.click(DataTable, offset=(5, 2))
        await pilot.pause()
        assert app.current.name == "digits-noise"
        await pilot.click(PicturesPane)
        assert app.pane == "pictures"
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        await pilot.click("#tabs", offset=(36, 0))
        await pilot.pause()
        assert app.pane == "status"
        assert "4 Status ─" in text_of(app)


def test_quantities_scales_and_smoothing_go_round(folder):
    app = make(folder)

    @drive(app, keys="2")
    async def _(pilot):
        pane = app.query_one(CurvesPane)
        seen = []
        for _ in range(5):
            seen.append(pane.quantity)
            await pilot.press("m")
        assert seen == ["loss", "loss_by_severity", "grad_norm", "images_per_second", "lr"]
        assert pane.quantity == "loss"
        await pilot.press("M")
        assert pane.quantity == "lr"
        await pilot.press("l", "s")
        assert (pane.is_log, pane.weight) == (False, 0.6)
        await pilot.press("s", "s", "s")
        assert pane.weight == 0


def test_sheets_are_walked_and_played_and_the_newest_is_followed(folder, monkeypatch):
    monkeypatch.setattr("colddiff_cli.monitor.panes.pictures.FRAME", 1000)
    app = make(folder)

    @drive(app, keys="3")
    async def _(pilot):
        pane = app.query_one(PicturesPane)
        assert pane.place == 2
        await pilot.press("left", "left", "left")
        assert pane.place == 0
        assert "step 200" in text_of(app)
        await pilot.press("right")
        assert pane.place == 1
        write_sheet(folder / "digits-blur", 800)
        await looked(pilot, app)
        assert (pane.place, len(pane._names)) == (1, 4)  # it stays where its user went
        await pilot.press("end")
        await pilot.pause()
        assert "step 800" in text_of(app)
        write_sheet(folder / "digits-blur", 1000)
        await looked(pilot, app)
        assert "step 1,000" in text_of(app)
        await pilot.press("space")
        assert pane.place == 0
        for place in (1, 2, 3, 4, 4):
            pane._advance()
            assert pane.place == place
        assert pane._film is None
        await pilot.press("home")
        assert pane.place == 0


@pytest.mark.parametrize("widget", [SixelImage, TGPImage])
def test_terminals_with_pixels_are_given_pixels(folder, widget):
    app = make(folder, drawing=terminal_images.Drawing(widget, terminal_images.CELL))

    @drive(app, keys="3 left right f f")
    async def _(pilot):
        (image,) = app.pictures_pane.query(widget)
        assert image.image.width > 500
        assert image.image.height % terminal_images.CELL[1] == 0
        assert image.styles.width.value == -(-image.image.width // terminal_images.CELL[0])


def test_half_a_sheet_leaves_the_one_before_until_it_is_whole(folder):
    app = make(folder)

    @drive(app, keys="3")
    async def _(pilot):
        write_sheet(folder / "digits-blur", 800)
        path = folder / "digits-blur" / "samples" / "step-000800.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:300])
        await looked(pilot, app)
        assert "step 600" in text_of(app)
        assert "step-000800.png cannot be read" in text_of(app)
        path.write_bytes(whole)
        await looked(pilot, app)
        assert "step 800" in text_of(app)
        assert "cannot be read" not in text_of(app)


def answer(path, **event):
    with (path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": NOW} | event) + "\n")


def test_a_pause_is_shown_once_the_trainer_says_so(folder):
    app, path = make(folder), folder / "digits-blur"

    @drive(app, keys="p")
    async def _(pilot):
        (request,) = (path / "control").iterdir()
        assert request.name.startswith("pause.")
        await looked(pilot, app)
        assert app.current.state == "live"
        assert "asked the trainer: pause" in text_of(app)
        request.unlink()
        answer(path, event="paused", step=601, answers=[request.name])
        await looked(pilot, app)
        assert app.current.state == "paused"
        assert "digits-blur: paused at step 601" in text_of(app)
        assert "asked the trainer" not in text_of(app)
        await pilot.press("p")
        (request,) = (path / "control").iterdir()
        assert request.name.startswith("resume.")
        answer(path, event="resumed", step=601, answers=[request.name])
        await looked(pilot, app)
        assert app.current.state == "live"


def test_a_second_press_before_the_answer_asks_nothing(folder):
    app, path = make(folder), folder / "digits-blur"

    @drive(app, keys="p p p t t")
    async def _(pilot):
        assert sorted(name.name.partition(".")[0] for name in (path / "control").iterdir()) == ["pause", "sample"]
        assert any("already asked for pause" in told.message for told in app._notifications)


def test_escape_sequences_stay_text_on_every_pane(folder):
    path = write_run(folder, "odd\x1b[31m", events=({"event": "failed", "time": NOW, "why": "\x1b[2J\x1b]0;x\x07"},))
    assert path.exists()
    app = make(folder, pattern="odd*")

    @drive(app, keys="1 p 4 f f x")
    async def _(pilot):
        assert "\x1b" not in text_of(app)
        assert "\x07" not in text_of(app)


@pytest.mark.parametrize(
    ("keys", "asked"), [("t", "sample"), ("c", "checkpoint"), ("x y", "stop"), ("x n", None), ("x escape", None)]
)
def test_keys_ask_the_trainer(folder, keys, asked):
    app, path = make(folder), folder / "digits-blur"

    @drive(app, keys=keys)
    async def _(pilot):
        names = [name.name.partition(".")[0] for name in (path / "control").iterdir()]
        assert names == ([asked] if asked else [])


def test_a_look_that_comes_while_the_dashboard_closes_is_harmless(folder):
    app = make(folder)

    async def run():
        async with opened(app, keys="t"):
            pass
        app._await()  # as the timer does that the question to the trainer has set

    asyncio.run(run())
    assert app.desk.is_waiting


@pytest.mark.parametrize("name", ["digits-noise", "mnist-blur", "mnist-snow", "faces"])
@pytest.mark.parametrize("keys", ["p", "t", "x"])
def test_a_run_without_a_trainer_is_not_asked(folder, name, keys):
    app = make(folder, pattern=name)

    @drive(app, keys=keys)
    async def _(pilot):
        assert list((folder / name / "control").iterdir()) == []
        assert "No trainer to ask" in text_of(app)
        assert not isinstance(app.screen, ConfirmDialog)


def test_a_folder_that_cannot_be_written_to_is_told_of(folder, monkeypatch):
    app = make(folder)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)

    @drive(app, keys="p")
    async def _(pilot):
        (told,) = app._notifications
        assert "Permission denied" in told.message


def test_a_run_that_vanishes_and_one_that_comes(folder):
    import shutil

    app = make(folder)

    @drive(app)
    async def _(pilot):
        shutil.rmtree(folder / "digits-blur")
        write_run(folder, "newcomer", step=20)
        for _ in range(4):
            await looked(pilot, app)
        text = text_of(app)
        assert "∅ gone" in text
        assert "newcomer" in text
        assert "step 600" in text  # what was read before
        await pilot.press("p")
        await pilot.pause(0.1)
        assert "No trainer to ask" in text_of(app)


def test_damage_is_told_on_the_screen(folder):
    app, path = make(folder), folder / "digits-blur"

    @drive(app, keys="4")
    async def _(pilot):
        with (path / "metrics.jsonl").open("a") as file:
            file.write('garbage\n{"step": 610, "lo')
        answer(path, event="checkpoint", step=601, time=NOW - 7200)
        await looked(pilot, app)
        await looked(pilot, app)
        text = text_of(app)
        assert "1 line that cannot be" in text
        assert "clock was set back" in text


def test_an_empty_folder_waits_for_its_first_run(tmp_path):
    app = make(tmp_path / "runs")

    @drive(app, keys="p t x 1 space 2 plus s 3 space left")
    async def _(pilot):
        await pilot.press("escape")
        assert "no runs in" in text_of(app)
        write_run(tmp_path / "runs", "first")
        for _ in range(4):
            await looked(pilot, app)
        assert "first" in text_of(app).split("\n")[0]


@pytest.mark.parametrize("size", [(80, 24), (300, 80), (111, 31), (40, 10), (20, 5)])
def test_it_takes_any_size_and_every_change_of_it(folder, size):
    app = make(folder)

    @drive(app)
    async def _(pilot):
        for pane in "1234":
            await pilot.press(pane)
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert len(text_of(app).split("\n")) == size[1]
            await pilot.resize_terminal(160, 48)
            await pilot.pause()
        assert "4 Status" in text_of(app)


def test_no_color_is_respected(folder, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = make(folder)

    @drive(app)
    async def _(pilot):
        colors = set(re.findall(r"#([0-9a-f]{6})", app.export_screenshot()))
        frame = {"ff5f57", "febc2e", "28c840", "c5c8c6"}  # of the window that is drawn around a screenshot
        assert [c for c in colors - frame if not c[:2] == c[2:4] == c[4:]] == []


def test_help_names_every_key(folder):
    app = make(folder)

    @drive(app, keys="question_mark")
    async def _(pilot):
        assert isinstance(app.screen, HelpDialog)
        await pilot.press("escape")
        assert not isinstance(app.screen, HelpDialog)
        told = HelpDialog._text().plain
        bound = [*Monitor.BINDINGS, *RunsPane.BINDINGS, *CurvesPane.BINDINGS, *PicturesPane.BINDINGS]
        names = {
            "slash": "/",
            "left": "←",
            "right": "→",
            "space": "Space",
            "minus": "-",
            "escape": "Esc",
            "home": "Home",
        }
        names |= {"left_square_bracket": "[", "right_square_bracket": "]", "end": "End"}
        for binding in bound:
            key = binding.key_display or binding.key.split(",")[0]
            assert re.search(rf"(^|\s){re.escape(names.get(key, key))}\s", told), binding


def test_a_named_run_is_watched_alone(folder):
    app = make(folder, names=[folder / "faces"])

    @drive(app)
    async def _(pilot):
        assert [watched.name for watched in app.watched.values()] == ["faces"]
