"""The dashboard under test: golden runs, a fixed clock and machine, and keys to press."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time

from golden_runs import NOW, write_runs
from textual._context import active_app

from colddiff_cli.console import terminal_images
from colddiff_cli.monitor.app import MIN_HEIGHT, MIN_WIDTH, Monitor
from colddiff_cli.monitor.data.run_state import RunState, WallClock
from colddiff_core import runs

READINGS = [("CPU", "150 % of 2 cores"), ("memory", "3.1 of 25.3 GB"), ("GPU", "97 %, 11.2 of 80.0 GB")]
ALL_PANES = (MIN_WIDTH, MIN_HEIGHT)  # the fewest cells that show all panes
WIDE = (160, 48)


class SteadyMachine:
    """A machine whose readings never change."""

    def read(self, holder):
        return READINGS


class FakeClock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.wall, self.monotonic = NOW, 1000.0

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def open_state(path, clock=None):
    """Return the state of a run, polled once."""
    clock = clock or FakeClock()
    run = RunState(runs.Run(path), WallClock(lambda: clock.wall, lambda: clock.monotonic))
    run.poll()
    return run


@contextlib.contextmanager
def golden_folder(tmp_path, monkeypatch):
    """Yield a folder of golden runs, in UTC, with polls only when the test asks for one."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("colddiff_cli.monitor.app.POLL_SECONDS", 3600)
    for module in ("app", "pilot"):  # which wait after each key and each pause
        monkeypatch.setattr(f"textual.{module}.wait_for_idle", settled)
    written = tmp_path.parent / "golden-runs"  # written once; a copy takes a fifth of the time
    if not written.exists():
        write_runs(written)
    yield shutil.copytree(written, tmp_path / "runs")
    monkeypatch.undo()
    time.tzset()


async def settled(*_seconds):
    """Wait until every message is handled and the screen drawn, where Textual would watch the CPU for 40 ms."""
    loop, app = asyncio.get_running_loop(), active_app.get()
    while True:
        if loop._ready:
            await asyncio.sleep(0)
        elif app._resize_timer is not None or app._is_reading:
            await asyncio.sleep(0.005)
        else:
            app.screen._on_timer_update()
            if not loop._ready:
                return


def make_app(folder, **options):
    """Return a dashboard over a folder of runs."""
    clock = WallClock(lambda: NOW, lambda: 1000.0)
    settings = {"image_backend": terminal_images.half_blocks(), "machine": SteadyMachine(), "clock": clock}
    return Monitor(folder, **(settings | options))


@contextlib.asynccontextmanager
async def opened(app, size=ALL_PANES, keys=""):
    """Open the dashboard and press keys."""
    async with app.run_test(size=size, notifications=True) as pilot:
        await settled()
        await pilot.press(*keys.split())
        yield pilot


def drive(app, size=ALL_PANES, keys=""):
    """Return a decorator that runs a coroutine on the opened dashboard."""

    def decorate(body):
        async def run():
            async with opened(app, size, keys) as pilot:
                await body(pilot)

        asyncio.run(run())

    return decorate


@contextlib.contextmanager
def shared(app):
    """Open one dashboard for several tests; yield a `drive` that resets it first."""
    with asyncio.Runner() as runner:
        opening = opened(app)
        pilot = runner.run(opening.__aenter__())
        first_run, curves = app.current, vars(app.curves_pane).copy()

        async def start_over():
            if app.size != ALL_PANES:
                await pilot.resize_terminal(*ALL_PANES)
            if app.runs_pane.pattern != "*":
                app.runs_pane.action_unfilter()
                await settled()  # it may choose another run
            app.current, app.is_solo = first_run, False
            app.runs_pane.marked.clear()
            app.runs_pane._shown = {}  # so that the cursor moves to the run
            for name in ("quantity", "is_log", "weight", "cursor", "window"):
                setattr(app.curves_pane, name, curves[name])
            app.curves_pane.runs = []  # so that it is redrawn
            app.action_pane("curves")
            app._show()
            await settled()

        def drive_again(keys=""):
            def decorate(body):
                async def run():
                    await start_over()
                    await pilot.press(*keys.split())
                    await body(pilot)

                runner.run(run())

            return decorate

        yield drive_again
        runner.run(opening.__aexit__(None, None, None))


def screen_text(app):
    """Return the text on the screen, line by line."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


async def poll(app):
    """Poll the files now."""
    app._poll()
    await settled()


def append_event(path, **event):
    """Write an event as the trainer of a run would."""
    with (path / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": NOW} | event) + "\n")
