"""Several processes write one series of images: the same files and messages as one process."""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import launches
import mortal
import numpy as np
import processes
import pytest
from conftest import finish, left_behind, make_trainer, pictures_in
from PIL import Image

from colddiff_cli import __main__
from colddiff_cli.__main__ import run
from colddiff_cli.jobs import launch
from colddiff_cli.picture_series import series
from colddiff_core import images
from colddiff_core.errors import UsageError

ROOT = Path(__file__).parents[2]
MANY = 40


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and some images, one of them broken."""
    workspace = tmp_path_factory.mktemp("together")
    finish(make_trainer(workspace / "own"))
    (workspace / "in").mkdir()
    shades = np.random.default_rng(0).integers(0, 256, (7, 14, 12, 3), dtype=np.uint8)
    for number, pixels in enumerate(shades):
        Image.fromarray(pixels).save(workspace / "in" / f"{number}.png")
    (workspace / "in" / "3.png").write_bytes(b"broken")
    return workspace


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in left_behind(folder)}


SERIES = {
    "generate": ["generate", "own", "--noise", "0.002", "--n", str(MANY), "--out", "whole.gif", "--animate"],
    "generate --diversity": ["generate", "own", "--noise", "0.002", "--n", "20", "--diversity", "--out", "whole.png"],
    "interpolate": ["generate", "own", "--interpolate", "20", "--prior", "degraded", "--out", "whole.png"],
    "sample": ["sample", "own", "--n", str(MANY), "--out", "whole.gif", "--animate"],
    "sample pictures": ["sample", "own", "in", "in/1.png", "--out", "whole.png"],
    "sample --degraded": ["sample", "own", "in", "--degraded", "--t", "3", "--compare"],
    "degrade": ["degrade", "in", "--op", "animorph+snow", "--second", "in/0.png", "--t", "40", "--seed", "3"],
}


@pytest.fixture
def finished(workspace, monkeypatch, capsys):
    """Return a function that runs a command line in this process or as several, and returns what it prints."""
    monkeypatch.chdir(workspace)

    def finish(arguments: list[str], count: int) -> tuple[str, str]:
        if count > 1:
            return launches.finish(arguments, workspace, count)
        capsys.readouterr()
        assert run(arguments) == 0
        return capsys.readouterr()

    return finish


@pytest.mark.parametrize("name", SERIES)
def test_several_processes_write_and_print_the_same_as_one(name, workspace, finished):
    command, out = [*SERIES[name], "--out-dir", "out", "--json"], workspace / "out"

    def call(count: int, *more: str) -> tuple[object, str, dict[str, bytes]]:
        summary, warnings = finished([*command, *more], count)
        beside = {path.name: path.read_bytes() for path in workspace.glob("whole*")}
        return json.loads(summary), warnings, contents(out) | beside

    def clear() -> None:
        for path in (out, *workspace.glob("whole*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    clear()
    alone = call(1)
    clear()
    assert call(2) == alone
    assert len(alone[2]) > 6
    if name == "generate --diversity":
        return
    for picture in pictures_in(out):
        if int(picture.partition("-")[0].removesuffix(".png")) % 3:
            (out / picture).unlink()
    summary, _, files = call(3, "--resume")
    assert files == alone[2]
    assert summary["kept"] > 0
    if "--degraded" not in command:
        assert summary["files"] == alone[0]["files"]


def test_other_processes_resume_after_a_kill(workspace, finished):
    command = ["generate", "own", "--noise", "0.002", "--n", "72", "--seed", "2", "--out", "grid.png"]
    finished([*command, "--out-dir", "whole"], 1)
    (workspace / "grid.png").unlink()
    # Batches have 16 images: this process has two, of 16 and 8, and is killed before it has written the last four.
    kills = {1: functools.partial(mortal.arm, "picture", 21, "", 1)}
    job = launches.start([*command, "--out-dir", "parts"], workspace, 3, prepares=kills)
    assert job.wait()[1] == -9
    assert 20 <= len(pictures_in(workspace / "parts")) < 72
    out, _ = launches.finish([*command, "--out-dir", "parts", "--resume", "--json"], workspace, 2)
    assert json.loads(out)["kept"] >= 20
    assert contents(workspace / "parts") == contents(workspace / "whole")


def test_ctrl_c_reaches_a_waiting_process_and_prints_once_how_to_resume(workspace):
    (workspace / "uneven").mkdir()
    for number, side in enumerate((8, 2500)):
        Image.new("L", (side, side), 99).save(workspace / "uneven" / f"{number}.png")
    job = launches.start(["degrade", "uneven", "--op", "noise", "--out-dir", "long"], workspace, 2)
    while not (workspace / "long").is_dir() or not pictures_in(workspace / "long"):
        time.sleep(0.005)
    time.sleep(0.2)  # until the first process has finished its share
    job.interrupt()
    assert job.wait() == [130, 130]
    problem, remedy = job.output("err").splitlines()
    assert problem == "colddiff: Interrupted: 1 of 2 images is in long."
    assert "--resume" in remedy


def test_a_broken_named_picture_ends_all_processes(workspace):
    for command in (
        ["degrade", "--op", "noise", "in/0.png", "in/3.png", "in/1.png"],
        ["sample", "own", "--degraded", "--t", "3", "in/0.png", "in/3.png", "in/1.png"],
    ):
        job = launches.start([*command, "--out-dir", "named"], workspace, 2)
        assert 2 in job.wait()
        lines = job.output("err").splitlines()
        reports = list(zip(lines[::2], lines[1::2], strict=True))
        # The first process may also report that it lost the others before it is terminated.
        ((problem, remedy),) = [report for report in reports if "Process 0 of 2 has lost the others" not in report[0]]
        assert len(reports) <= 2
        assert "in/3.png is not an image that can be read" in problem
        assert remedy.startswith("  ")


def test_a_refusal_is_reported_once_and_writes_nothing(workspace):
    (workspace / "taken").mkdir()
    (workspace / "taken" / "000001.png").write_bytes(b"mine")
    for command, words in (
        (["generate", "own", "--out-dir", "taken"], "exists already"),
        (["generate", "own", "--out-dir", "fresh", "--noise", "7"], "out of range"),
        (["generate", "own", "--out-dir", "fresh", "--resume"], "nothing to resume"),
        (["sample", "own", "in/3.png", "--t", "9", "--out-dir", "fresh"], "out of range"),
    ):
        job = launches.start(command, workspace, 2)
        assert 2 in job.wait()
        assert len(job.output("err").splitlines()) == 2, job.output("err")
        assert words in job.output("err")
    assert left_behind(workspace / "taken") == ["000001.png"]
    assert not (workspace / "fresh").exists()


def test_nproc_starts_the_same_command_line_as_processes(workspace, finished):
    words = ["degrade", "in", "--op", "noise", "--t", "7", "--json", "--out-dir", "launched"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    out, _ = finished(words, 1)
    whole = contents(workspace / "launched")
    assert len(pictures_in(workspace / "launched")) == 6
    shutil.rmtree(workspace / "launched")
    (workspace / "typer.py").write_text("raise RuntimeError('a file of the user')")
    agent = processes.start([*words, "--nproc", "2"], workspace, environment)  # it starts two fresh Pythons
    printed, errors = agent.communicate()
    (workspace / "typer.py").unlink()
    assert agent.returncode == 0, errors
    assert json.loads(printed) == json.loads(out)
    assert contents(workspace / "launched") == whole


def test_processes_get_the_command_line_without_nproc():
    words = ["generate", "--nproc", "2", "own", "--debug", "--nproc=4", "--n", "3", "--", "--nproc"]
    assert launch.remove_options(words, launch.OPTION) == ["generate", "own", "--debug", "--n", "3", "--", "--nproc"]


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this process look like one of a job that has not met the others."""

    def become(rank: int, **more: str) -> None:
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        for name, value in (variables | more).items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(__main__, "PATIENCE_SECONDS", 0)
    return become


@pytest.mark.parametrize(
    "command",
    [["compare", "own"], ["reproduce"], ["monitor"], ["presets"], ["train", "--preset", "digits-blur", "--monitor"]],
    ids=" ".join,
)
def test_commands_for_one_process_are_refused_in_a_job(command, in_folder, as_process, capsys):
    as_process(0)
    assert run(command) == 2
    assert "in one process" in capsys.readouterr().err
    assert run(["generate", "own", "--nproc", "2"]) == 2
    assert "is part of a job" in capsys.readouterr().err
    assert left_behind(in_folder) == []


def test_an_error_of_a_later_process_names_the_process(in_folder, as_process, capsys):
    as_process(1)
    assert run(["degrade", "a.png", "--op", "blur", "--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("colddiff (process 1 of 2): Unknown device 'tpu'")


def test_a_restarted_job_keeps_its_images(in_folder, as_process):
    def opened() -> series.Series:
        targets = [in_folder / "a.png", in_folder / "b.png"]
        return series.Series(targets, "paint", {"t": 3}, resume=False, force=False)

    with opened() as pictures:
        images.write(Image.new("L", (2, 2)), pictures.place(0))
    with pytest.raises(UsageError, match="exists already"):
        opened()
    as_process(0, TORCHELASTIC_RESTART_COUNT="1")
    with opened() as pictures:
        assert pictures.kept == {0}
    (in_folder / "a.png").unlink()
    for mark in in_folder.glob(".colddiff-*"):
        mark.unlink()
    with opened() as pictures:
        assert pictures.kept == frozenset()
