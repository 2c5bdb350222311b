"""Every screen of the dashboard against its golden picture, and what every screen must do: size, color, text."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import textual
from dashboards import WIDE, drive, golden_folder, make_app, poll, screen_text
from golden_runs import NOW, write_run
from rich.console import Console

from colddiff_cli.monitor.app import Monitor
from colddiff_cli.monitor.panes.curves import CurvesPane
from colddiff_cli.monitor.panes.dialogs import HelpDialog
from colddiff_cli.monitor.panes.pictures import PicturesPane
from colddiff_cli.monitor.panes.runs import RunsPane

GOLDEN = Path(__file__).parents[1] / "golden" / "monitor"
SIZES = {"80x24": (80, 24), "160x48": WIDE}
SVG_ID = re.compile(r"terminal-\d+-")
WALK = {  # the keys that lead from each screen to the next one
    "curves": "2",
    "pictures": "3",
    "sheets-back": "left",
    "full": "right f",
    # the rest with a run that has no pictures, whose cells would make the files large
    "runs": "f 1 down",
    "help": "question_mark",
    "stop": "escape x",
    "light": "escape d",
    "filter": "d slash d i g",
    "status": "escape 4",
    "zoomed": "2 plus plus left left_square_bracket left_square_bracket",
    "bands": "escape 0 m l",
    "overlay": "M l 1 space down 2 s s",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with golden_folder(tmp_path, monkeypatch) as path:
        yield path


@pytest.fixture(scope="module", params=SIZES)
def walk(request, tmp_path_factory):
    """The size, and the picture and text of every screen, from one dashboard."""
    screens = {}
    with pytest.MonkeyPatch.context() as patch, golden_folder(tmp_path_factory.mktemp("walk"), patch) as path:
        # Computing a unique id takes half of the time, and ids are removed below anyway.
        patch.setattr(Console, "export_svg", functools.partialmethod(Console.export_svg, unique_id="terminal-0"))
        app = make_app(path)

        @drive(app, SIZES[request.param])
        async def _(pilot):
            for screen, keys in WALK.items():
                await pilot.press(*keys.split())
                await poll(app)
                picture = SVG_ID.sub("terminal-", app.export_screenshot(title="colddiff monitor"))
                screens[screen] = picture, screen_text(app)

    return request.param, screens


@pytest.mark.parametrize("screen", WALK)
def test_every_screen_looks_as_before(walk, screen, pytestconfig):
    size, screens = walk
    picture, text = screens[screen]
    path = GOLDEN / f"{screen}-{size}.svg"
    if pytestconfig.getoption("update_golden"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        path.write_text(picture)
        path.with_suffix(".txt").write_text(text)
        (GOLDEN / "TEXTUAL").write_text(f"{textual.__version__}\n")
    assert text == path.with_suffix(".txt").read_text(), "look at it, then: pytest --update-golden"
    if (GOLDEN / "TEXTUAL").read_text().strip() == textual.__version__:  # versions draw colors differently
        assert picture == path.read_text()


LARGE = (300, 80)
# From one pane to all of them and back.
RESIZES = [
    ((20, 5), (111, 31)),
    *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in (((20, 5), LARGE), ((40, 10), WIDE, (80, 24), WIDE))),
]


@pytest.mark.parametrize("sizes", RESIZES)
def test_it_takes_any_size_and_resize(folder, sizes):
    app = make_app(folder)

    @drive(app)
    async def _(pilot):
        for pane in "1234":
            await pilot.press(pane)
            for size in sizes:
                await pilot.resize_terminal(*size)
                assert len(screen_text(app).split("\n")) == size[1]
        await pilot.resize_terminal(*LARGE)  # all panes, whichever is chosen
        assert len(screen_text(app).split("\n")) == LARGE[1]
        assert "4 Status" in screen_text(app)


def test_no_color_is_respected(folder, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(folder)

    @drive(app)
    async def _(pilot):
        colors = set(re.findall(r"#([0-9a-f]{6})", app.export_screenshot()))
        window = {"ff5f57", "febc2e", "28c840", "c5c8c6"}  # the frame that Textual draws around a screenshot
        assert [c for c in colors - window if not c[:2] == c[2:4] == c[4:]] == []


def test_help_names_every_key(folder):
    app = make_app(folder)

    @drive(app, keys="question_mark")
    async def _(pilot):
        assert isinstance(app.screen, HelpDialog)
        await pilot.press("escape")
        assert not isinstance(app.screen, HelpDialog)
        text = HelpDialog._text().plain
        names = {
            "slash": "/",
            "left": "←",
            "right": "→",
            "space": "Space",
            "minus": "-",
            "escape": "Esc",
            "home": "Home",
            "left_square_bracket": "[",
            "right_square_bracket": "]",
            "end": "End",
        }
        for binding in (*Monitor.BINDINGS, *RunsPane.BINDINGS, *CurvesPane.BINDINGS, *PicturesPane.BINDINGS):
            key = binding.key_display or binding.key.split(",")[0]
            assert re.search(rf"(^|\s){re.escape(names.get(key, key))}\s", text), binding


def test_brackets_and_escape_sequences_stay_text_on_every_pane(folder):
    why = "RuntimeError: bad [/usr/lib/x.so] \x1b[2J\x1b]0;x\x07"
    write_run(folder, "odd\x1b[31m", events=({"event": "failed", "time": NOW, "why": why},))
    app = make_app(folder, pattern="odd*")

    @drive(app, keys="1 p 4 f f x")
    async def _(pilot):
        assert "[/usr/lib/x.so]" in next(iter(app._notifications)).message
        assert "\x1b" not in screen_text(app)
        assert "\x07" not in screen_text(app)
        await pilot.press("1", "slash", "[", "a", "]")
        assert app.runs_pane.pattern == "[a]"
