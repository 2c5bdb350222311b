"""An evaluation in portions: the figures of one done in one go, however it was interrupted and whoever measured."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import shutil

import launches
import pytest
from conftest import finish, left_behind, make_trainer
from test_evaluation import PixelFeatures

from colddiff_cli.__main__ import run
from colddiff_cli.commands import evaluate as commands
from colddiff_core import datasets, runs
from colddiff_core.distributed.environment import ProcessInfo
from colddiff_core.errors import MachineError
from colddiff_core.evaluation import distances, evaluate, resumable
from colddiff_core.evaluation.evaluate import EvaluationSettings
from colddiff_core.evaluation.metrics import MetricAccumulator, Reference
from colddiff_core.inference import open_run

COLUMNS = ("degraded", "sampled")
COUNT, SIZE, T = 50, 8, 2
EACH = 2  # batches of a portion


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("measured") / "run"
    finish(make_trainer(path, "train.precision=float32", "train.steps=2"))
    return open_run.open_run(runs.Run(path), device="cpu").experiment


@pytest.fixture(scope="module")
def reference(made):
    test = datasets.load("digits", datasets.DatasetRequest("test", made.config.data.size))
    return Reference(test, lambda: test, target=distances.reference_stats(PixelFeatures(), test))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(resumable, "MIN_CHUNK_IMAGES", EACH * SIZE)
    monkeypatch.setattr(resumable, "MIN_CHUNKS", 1)


def plain(outcomes):
    """Return what does not depend on how long it took."""
    return {
        column: ({key: value for key, value in outcome.figures.items() if key != "milliseconds"}, outcome.intervals)
        for column, outcome in outcomes.items()
    }


def measure(made, reference, folder, **options):
    settings = EvaluationSettings(T, COUNT, batch_size=SIZE)
    return resumable.evaluate(made, reference, folder, settings, COLUMNS, **options)


@pytest.fixture(scope="module")
def wanted(made, reference):
    return plain(evaluate.evaluate(made, reference, EvaluationSettings(T, COUNT, batch_size=SIZE), COLUMNS))


def test_portions_come_to_the_figures_of_one_go_bit_for_bit(made, reference, wanted, tmp_path):
    folder = resumable.PartialResults(tmp_path / "x" / "y")
    counts = []
    found = measure(made, reference, folder, progress=counts.append)
    assert plain(found) == wanted
    assert sum(counts) == COUNT * len(COLUMNS)
    assert found["sampled"].figures["milliseconds"] > 0
    assert "milliseconds" not in found["degraded"].figures
    assert len(left_behind(folder.path)) == len(COLUMNS) * math.ceil(math.ceil(COUNT / SIZE) / EACH)
    folder.close(is_done=True)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(("interrupted_at", "kept", "images"), [(1, 0, 0), (17, 1, 16), (60, 4, 50)])
def test_measured_chunks_are_not_measured_again(
    made, reference, wanted, tmp_path, monkeypatch, interrupted_at, kept, images
):
    folder = resumable.PartialResults(tmp_path / "x")
    done = 0

    def interrupt(images: int) -> None:
        nonlocal done
        done += images
        if done > interrupted_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(made, reference, folder, progress=interrupt)
    folder.close(is_done=False)
    assert len(left_behind(folder.path)) == kept
    counted = []
    true = evaluate.restore_batches
    monkeypatch.setattr(
        evaluate, "restore_batches", lambda *arguments: (counted.append(b.count) or b for b in true(*arguments))
    )
    again = resumable.PartialResults(tmp_path / "x", is_resumed=True)
    assert plain(measure(made, reference, again)) == wanted
    assert sum(counted) == COUNT * len(COLUMNS) - images
    again.close(is_done=False)
    anew = resumable.PartialResults(tmp_path / "x")
    assert left_behind(anew.path) == []
    anew.close(is_done=True)


def test_a_damaged_chunk_is_reported(made, reference, tmp_path):
    folder = resumable.PartialResults(tmp_path / "x")
    measure(made, reference, folder)
    victim = folder.path / left_behind(folder.path)[1]
    victim.write_bytes(victim.read_bytes()[:-3])
    with pytest.raises(MachineError, match="cannot be read") as caught:
        measure(made, reference, folder)
    assert victim.name in caught.value.what


def test_a_folder_is_one_jobs_at_a_time(tmp_path):
    folder = resumable.PartialResults(tmp_path / "x")
    with pytest.raises(MachineError, match="running this evaluation"):
        resumable.PartialResults(tmp_path / "x")
    folder.close(is_done=False)
    resumable.PartialResults(tmp_path / "x").close(is_done=True)


def test_abandoned_partial_results_are_removed(tmp_path):
    old, new = "0" * 16, "1" * 16
    for name, age in ((old, 2 * resumable.STALE_SECONDS), (new, 0)):
        (tmp_path / name).mkdir()
        then = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (then, then))
    resumable.PartialResults(tmp_path / "x")
    assert not (tmp_path / old).exists()
    assert (tmp_path / new).exists()


@pytest.fixture
def own(tiny_run, in_folder):
    """A copy of the tiny run."""
    return shutil.copytree(tiny_run, in_folder / "own")


ASKED = ["eval", "own", "--n", str(COUNT), "--t", str(T), "--batch-size", str(SIZE), "--json"]


def figures_of(out):
    result = json.loads(out)
    for figures in result["metrics"].values():
        figures.pop("milliseconds", None)
    return result


@pytest.fixture(scope="module")
def printed(tiny_run, tmp_path_factory):
    """What an uninterrupted call prints."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.setattr(resumable, "MIN_CHUNK_IMAGES", EACH * SIZE)
        patch.setattr(resumable, "MIN_CHUNKS", 1)
        shutil.copytree(tiny_run, "own")
        assert run(ASKED) == 0
    assert not (folder / "own" / "evaluated").exists()
    return figures_of(out.getvalue())


def test_an_interrupted_call_prints_how_to_resume_and_resumes(own, printed, capsys, monkeypatch):
    look, left = MetricAccumulator.measure, [5]

    def interrupting(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return look(self, *arguments)

    monkeypatch.setattr(MetricAccumulator, "measure", interrupting)
    assert run(ASKED) == 130
    assert "the same command with --resume" in capsys.readouterr().err
    assert len(list((own / "evaluated").glob("*/*.safetensors"))) == 5 // EACH
    monkeypatch.setattr(MetricAccumulator, "measure", look)
    assert run([*ASKED, "--resume", "--seed", "7"]) == 2
    assert "Nothing to resume" in capsys.readouterr().err
    assert run([*ASKED, "--resume"]) == 0
    assert figures_of(capsys.readouterr().out) == printed
    assert not (own / "evaluated").exists()


def test_a_run_whose_folder_takes_nothing_is_measured_in_one_go(own, printed, capsys):
    (own / "evaluated").write_text("in the way")
    assert run(ASKED) == 0
    assert figures_of(capsys.readouterr().out) == printed


def test_two_calls_alike_both_come_to_their_figures(own, printed, capsys, monkeypatch):
    held = []
    true = fcntl.flock

    def refuse(descriptor, how):
        if not held:
            held.append(descriptor)
            raise BlockingIOError
        return true(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert run(ASKED) == 0
    assert held
    assert figures_of(capsys.readouterr().out) == printed


@pytest.mark.usefixtures("printed")  # trains the classifier first, which is slow with two threads on busy processors
def test_two_processes_of_one_thread_come_to_the_json_of_one_of_two(own):
    """Where batches are of 16 images; the last one of 50 is not, and is filled up."""
    (own / "evaluated").write_text("in the way")  # as a run is that is another user's
    results = []
    for count, threads in ((1, 2), (2, 1)):
        out, _ = launches.finish([*ASKED, "--batch-size", "16"], own.parent, count, threads)
        results.append(figures_of(out))
    assert results[0] == results[1]
    assert results[0]["metrics"]["sampled"]["fd"] is not None


def test_a_job_that_torchrun_starts_again_keeps_what_is_measured(own, capsys, monkeypatch):
    look, left = MetricAccumulator.measure, [5]

    def failing(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise MachineError("a process of it was lost")
        return look(self, *arguments)

    monkeypatch.setattr(MetricAccumulator, "measure", failing)
    assert run(ASKED) == 1
    monkeypatch.setattr(commands, "process_info", lambda: ProcessInfo(restarts=1))
    left[0] = 4 * math.ceil(COUNT / SIZE) - 5 // EACH * EACH
    assert run(ASKED) == 0
    assert left[0] == 0
