"""Requests to the trainer from the keyboard, and runs that come, break or vanish while the dashboard is open."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from dashboards import WIDE, append_event, drive, golden_folder, make_app, opened, poll, screen_text
from golden_runs import NOW, write_run

from colddiff_cli.monitor.panes.dialogs import ConfirmDialog


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with golden_folder(tmp_path, monkeypatch) as path:
        yield path


def test_a_pause_is_shown_once_the_trainer_confirms_it(folder):
    app, path = make_app(folder), folder / "digits-blur"

    @drive(app, WIDE, "p")
    async def _(pilot):
        (request,) = (path / "control").iterdir()
        assert request.name.startswith("pause.")
        await poll(app)
        assert app.current.state == "live"
        assert "waiting for the trainer: pause" in screen_text(app)
        request.unlink()
        append_event(path, event="paused", step=601, answers=[request.name])
        await poll(app)
        assert app.current.state == "paused"
        assert "digits-blur: paused at step 601" in screen_text(app)
        assert "waiting for the trainer" not in screen_text(app)
        await pilot.press("p")
        (request,) = (path / "control").iterdir()
        assert request.name.startswith("resume.")
        append_event(path, event="resumed", step=601, answers=[request.name])
        await poll(app)
        assert app.current.state == "live"


def test_keys_send_requests_but_none_twice_before_the_answer(folder):
    app, path = make_app(folder), folder / "digits-blur"

    def sent():
        return sorted(name.name.partition(".")[0] for name in (path / "control").iterdir())

    @drive(app, keys="p p p t t")
    async def _(pilot):
        assert sent() == ["pause", "sample"]
        assert any("already asked for pause" in note.message for note in app._notifications)
        asked = ["pause", "sample"]
        for keys, word in (("x n", None), ("x escape", None), ("c", "checkpoint"), ("x y", "stop")):
            await pilot.press(*keys.split())
            asked.extend([word] if word else [])
            assert sent() == sorted(asked), keys


def test_a_poll_while_the_dashboard_closes_is_harmless(folder):
    app = make_app(folder)

    async def run():
        async with opened(app, keys="t"):
            pass
        app._poll_for_answer()  # as a timer set by the request does

    asyncio.run(run())
    assert app.requests.is_waiting


def test_nothing_is_sent_to_a_run_without_a_trainer(folder):
    app = make_app(folder)

    @drive(app)
    async def _(pilot):
        # Only the run decides whether there is a trainer: press every key in one run and one in each of the others.
        for name, keys in (("digits-noise", "ptx"), ("mnist-blur", "p"), ("mnist-snow", "t"), ("faces", "x")):
            app.current = app.runs[folder / name]
            for key in keys:
                app.clear_notifications()
                await poll(app)
                assert "No trainer to ask" not in screen_text(app)
                await pilot.press(key)
                assert list((folder / name / "control").iterdir()) == []
                assert "No trainer to ask" in screen_text(app), (name, key)
                assert not isinstance(app.screen, ConfirmDialog)


def test_only_named_runs_are_shown_and_a_read_only_one_is_reported(folder, monkeypatch):
    app = make_app(folder, names=[folder / "digits-blur"])

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)

    @drive(app, keys="p")
    async def _(_pilot):
        assert [run.name for run in app.runs.values()] == ["digits-blur"]
        (note,) = app._notifications
        assert "Permission denied" in note.message


def test_an_error_in_one_run_does_not_stop_the_dashboard(folder, monkeypatch):
    app = make_app(folder)

    @drive(app, WIDE)
    async def _(_pilot):
        def fail():
            raise RuntimeError("unexpected kind")

        monkeypatch.setattr(app.runs[folder / "digits-blur"], "_check_clock", fail)
        await poll(app)
        assert "unexpected kind" in " ".join(screen_text(app).split())
        monkeypatch.undo()


def test_runs_may_vanish_and_appear(folder):

    app = make_app(folder)

    @drive(app)
    async def _(pilot):
        shutil.rmtree(folder / "digits-blur")
        write_run(folder, "newcomer", step=20)
        for _ in range(4):
            await poll(app)
        text = screen_text(app)
        assert "∅ gone" in text
        assert "newcomer" in text
        assert "step 600" in text  # read before it vanished
        await pilot.press("p")
        assert "No trainer to ask" in screen_text(app)


def test_damaged_files_are_reported_on_the_screen(folder):
    app, path = make_app(folder), folder / "digits-blur"

    @drive(app, WIDE, "4")
    async def _(pilot):
        with (path / "metrics.jsonl").open("a") as file:
            file.write('garbage\n{"step": 610, "lo')
        append_event(path, event="checkpoint", step=601, time=NOW - 7200)
        await poll(app)
        await poll(app)
        text = screen_text(app)
        assert "skipped 1 unreadable" in text
        assert "clock was set back" in text


def test_an_empty_folder_waits_for_its_first_run(tmp_path):
    app = make_app(tmp_path / "runs")

    @drive(app, keys="p t x 1 space 2 plus s 3 space left")
    async def _(pilot):
        await pilot.press("escape")
        assert "no runs in" in screen_text(app)
        write_run(tmp_path / "runs", "first")
        for _ in range(4):
            await poll(app)
        assert "first" in screen_text(app).split("\n")[0]
