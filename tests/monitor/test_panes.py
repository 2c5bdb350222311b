"""Keys and mouse on the runs, curves and pictures panes."""

from __future__ import annotations

import shutil

import pytest
from dashboards import drive, golden_folder, make_app, poll, screen_text, shared
from golden_runs import metrics, write_run, write_sheet
from textual.widgets import DataTable, Static
from textual_image.widget import HalfcellImage, SixelImage, TGPImage

from colddiff_cli.console import terminal_images
from colddiff_cli.monitor.panes.curves import CurvesPane, Plot
from colddiff_cli.monitor.panes.pictures import PicturesPane
from colddiff_cli.monitor.panes.runs import RunsPane


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with golden_folder(tmp_path, monkeypatch) as path:
        yield path


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """One dashboard for the tests that leave the files as they are, and what opens it for each: `app`, `drive`."""
    with pytest.MonkeyPatch.context() as patch, golden_folder(tmp_path_factory.mktemp("shared"), patch) as path:
        app = make_app(path)
        assert app.current is None
        with shared(app) as drive_again:
            yield app, drive_again


def test_arrow_keys_choose_the_run_for_every_pane(dashboard):
    app, drive = dashboard

    @drive("1")
    async def _(pilot):
        assert app.current.name == "digits-blur"
        for name in ("digits-mask", "digits-noise", "faces"):
            await pilot.press("down")
            assert app.current.name == name
            assert f"{name}  " in screen_text(app).split("\n")[0]
        assert "no sample sheets yet" in screen_text(app)


def test_overlaid_runs_are_numbered_in_the_legend(dashboard):
    app, drive = dashboard

    @drive("1 down space down space up up")
    async def _(pilot):
        legend = str(app.query_one("#legend", Static).render())
        assert [name in legend for name in ("1 digits-blur", "2 digits-mask", "3 digits-noise")] == [True] * 3
        assert len(app.query_one(CurvesPane).runs) == 3
        await pilot.press("down", "space")
        assert "digits-noise" in str(app.query_one("#legend", Static).render())
        assert app.query_one(RunsPane).marked == {str(app.root / "digits-noise")}


def test_the_headline_gives_the_reason_of_a_failure(dashboard):
    app, drive = dashboard

    @drive("1")
    async def _(pilot):
        await pilot.resize_terminal(80, 24)
        assert "The loss is nan" in screen_text(app)


def test_runs_are_filtered_by_glob_or_part_of_the_name(dashboard):
    app, drive = dashboard

    @drive("1 slash")
    async def _(pilot):
        table = app.query_one(DataTable)
        for pattern, count in (("ur", 2), ("d*", 3), ("*", 6), ("q", 0)):
            await pilot.press("ctrl+u", *pattern)
            assert table.row_count == count, pattern
        await pilot.press("enter", "escape")
        assert table.row_count == 6


def test_a_filter_never_leaves_a_hidden_run_current(dashboard):
    app, drive = dashboard

    @drive("1 slash n o enter")
    async def _(pilot):
        assert app.current.name == "digits-noise"
        assert screen_text(app).startswith(" digits-noise")
        await pilot.press("escape")
        assert app.current.name == "digits-noise"
        assert app.query_one(DataTable).cursor_row == 2
        await pilot.press("slash", *"d*k", "enter")
        assert app.current.name == "digits-mask"


def test_smoothing_does_not_depend_on_the_zoom(dashboard):
    app, drive = dashboard

    @drive("2 s s")
    async def _(pilot):
        pane = app.curves_pane
        pane.move_cursor(500)
        whole = str(app.query_one("#legend", Static).render())
        await pilot.press("plus", "plus", "plus")
        assert pane.window is not None
        assert str(app.query_one("#legend", Static).render()).split()[:5] == whole.split()[:5]


def test_a_cursor_or_window_outside_the_run_does_no_harm(folder):
    write_run(folder, "short", step=50)
    app = make_app(folder)

    @drive(app, keys="2 plus plus")
    async def _(pilot):
        pane = app.curves_pane
        pane.move_cursor(20)  # left of what is in view
        first, last = pane.window
        await pilot.press("plus")
        assert first <= pane.window[0] <= pane.window[1] <= last
        app.current = app.runs[folder / "short"]
        app._show()
        assert pane.window is None
        pane.move_cursor(pane.view.last)
        assert "│" in pane.query_one(Plot).text.plain.split("\n")[0][10:]
        app.runs_pane.marked = {str(folder / "digits-blur")}
        app._show()
        pane.move_cursor(400)
        legend = str(app.query_one("#legend", Static).render())
        assert "1 short -" in legend


def test_curves_zoom_pan_and_show_values(dashboard):
    app, drive = dashboard

    @drive("2 plus plus")
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


def test_the_mouse_moves_the_cursor_and_chooses_panes(dashboard):
    app, drive = dashboard

    @drive()
    async def _(pilot):
        pane, plot = app.query_one(CurvesPane), app.query_one(Plot)
        await pilot.hover(plot, offset=(8 + (plot.size.width - 8) // 2, 5))
        assert pane.cursor == pytest.approx(305, abs=6)
        step = round(pane.cursor, -1)
        value = metrics(int(step), sum(b"digits-blur"))["loss"]
        assert f"{value:.4g}" in str(app.query_one("#legend", Static).render())
        await pilot.click(DataTable, offset=(5, 2))
        assert app.current.name == "digits-noise"
        await pilot.click(PicturesPane)
        assert app.pane == "pictures"
        await pilot.resize_terminal(80, 24)
        await pilot.click("#tabs", offset=(36, 0))
        assert app.pane == "status"
        assert "4 Status ─" in screen_text(app)


def test_quantities_scales_and_smoothing_cycle(dashboard):
    app, drive = dashboard

    @drive("2")
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


def test_sheets_can_be_stepped_played_and_followed(folder, monkeypatch):
    monkeypatch.setattr("colddiff_cli.monitor.panes.pictures.FRAME_SECONDS", 1000)
    app = make_app(folder)

    @drive(app, keys="3")
    async def _(pilot):
        pane = app.query_one(PicturesPane)
        assert pane.index == 2
        await pilot.press("left", "left", "left")
        assert pane.index == 0
        assert "step 200" in screen_text(app)
        await pilot.press("right")
        assert pane.index == 1
        write_sheet(folder / "digits-blur", 800)
        await poll(app)
        assert (pane.index, len(pane._names)) == (1, 4)  # it stays where the user went
        await pilot.press("end")
        assert "step 800" in screen_text(app)
        write_sheet(folder / "digits-blur", 1000)
        await poll(app)
        assert "step 1,000" in screen_text(app)
        await pilot.press("space")
        assert pane.index == 0
        for place in (1, 2, 3, 4, 4):
            pane._advance()
            assert pane.index == place
        assert pane._film is None
        await pilot.press("home")
        assert pane.index == 0


@pytest.mark.parametrize("widget", [SixelImage, TGPImage])
def test_pixel_terminals_get_full_resolution(folder, widget):
    app = make_app(folder, image_backend=terminal_images.ImageBackend(widget, terminal_images.CELL))

    @drive(app, size=(110, 36), keys="3 left f f")
    async def _(pilot):
        (image,) = app.pictures_pane.query(widget)
        assert image.image.width > 500
        assert image.image.height % terminal_images.CELL[1] == 0
        assert image.styles.width.value == -(-image.image.width // terminal_images.CELL[0])


def test_a_sheet_is_drawn_once_and_stays_up_while_the_next_one_is_partial(folder):
    app = make_app(folder)
    (folder / "digits-blur" / "samples" / "step-000600.json").unlink()

    @drive(app, keys="3")
    async def _(pilot):
        (image,) = app.pictures_pane.query(HalfcellImage)
        for _ in range(3):
            await poll(app)
        assert list(app.pictures_pane.query(HalfcellImage)) == [image]
        write_sheet(folder / "digits-blur", 800)
        path = folder / "digits-blur" / "samples" / "step-000800.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:300])
        await poll(app)
        assert "step 600" in screen_text(app)
        assert "step-000800.png cannot be read" in screen_text(app)
        path.write_bytes(whole)
        await poll(app)
        assert "step 800" in screen_text(app)
        assert "cannot be read" not in screen_text(app)


def test_a_deleted_run_does_not_show_the_picture_of_another(folder):

    app = make_app(folder)

    @drive(app, keys="3")
    async def _(pilot):
        assert "step 600" in screen_text(app)
        shutil.rmtree(folder / "digits-mask")
        await pilot.press("1", "down", "3")
        await poll(app)
        assert app.current.name == "digits-mask"
        assert "RMSE" not in screen_text(app)
