"""Concurrent access: many readers of a live run, and an image folder that changes during training."""

from __future__ import annotations

import functools
import os
import shutil
import time
from pathlib import Path

import processes
import pytest
import reader
import tally
import trainings
from conftest import finish, make_trainer
from PIL import Image

from colddiff_core import runs
from colddiff_core.errors import UsageError

PICTURES = 16
FROM_FOLDER = ("data.dataset=folder", "model.inputs=plain", "model.consistent=false", "train.checkpoint_every=2")


def crowd(run: Path, length: trainings.Length, files: int, weights: int, pause: float, *more: str) -> None:
    """Train a run while readers read its files and weights; it goes on when each has looked once."""
    process = trainings.start(run, length, *more, fault=("hold", 2))
    with trainings.held(process):
        kinds = ["files"] * files + ["weights"] * weights
        readers = [processes.fork(functools.partial(reader.follow, runs.Run(run), kind, pause)) for kind in kinds]
        while not all(each.out.exists() and each.out.read_text() for each in readers):
            assert all(each.poll() is None for each in readers)
            time.sleep(0.005)
    code, output = trainings.end(process, 5 * trainings.TIMEOUT_SECONDS)  # twenty readers share the processors
    assert code == 0, output
    looks = 0
    for process in readers:
        output, errors = process.communicate(timeout=trainings.TIMEOUT_SECONDS)
        assert process.returncode == 0, errors
        looks += int(output.split()[-1])
    assert looks > 2 * len(readers)
    tally.add("readers on a live run", readers=len(readers), looks=looks, broken=0)


def test_readers_see_a_valid_run_and_change_nothing(tmp_path, undisturbed):
    crowd(tmp_path / "run", undisturbed.length, 2, 1, 0.02)
    trainings.check_result("  their run", tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_twenty_readers_on_a_run_that_keeps_one_checkpoint(tmp_path):
    often = ("--set", "train.checkpoint_every=5", "--set", "train.keep=1")
    crowd(tmp_path / "run", trainings.LONG, 17, 3, 0.5, *often)  # twice as often as the dashboard reads


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for number in range(PICTURES):
        turned = Image.radial_gradient("L").convert("RGB").resize((24, 20)).rotate(9 * number)
        turned.save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder of pictures that does not change, and the checkpoint that a training on it ends with."""
    folder = tmp_path_factory.mktemp("whole")
    kept = pictures(folder / "kept")
    trainer = finish(make_trainer(folder / "run", *FROM_FOLDER, f"data.directory={kept}"))
    return kept, trainer.run.newest_checkpoint()


@pytest.mark.parametrize(
    "change",
    [
        shutil.rmtree,
        lambda folder: (folder / "007.png").write_bytes(b"no picture any more"),
        lambda folder: os.truncate(folder / "008.png", 40),
        lambda folder: Image.new("RGB", (9, 9), "red").save(folder / "new.png"),
        lambda folder: Image.new("RGB", (24, 20), "red").save(folder / "009.png"),
    ],
    ids=["gone", "overwritten", "cut", "one more", "another"],
)
def test_a_folder_that_changes_under_a_training_does_not_change_it(whole, tmp_path, change):
    kept, expected_end = whole
    changed = shutil.copytree(kept, tmp_path / "changed")
    first = make_trainer(tmp_path / "run", *FROM_FOLDER, f"data.directory={changed}")
    for tick in first.steps():
        if tick.step == 1:
            change(changed)
        if tick.step == 3:
            break  # as a kill would
    first.run.close()
    expected = "No such folder" if not changed.exists() else r"(?s)training images.*--allow-change"
    refused = runs.RunWriter(tmp_path / "run")
    with pytest.raises(UsageError, match=expected):
        make_trainer(tmp_path / "run", run=refused).resume()
    refused.close()
    again = make_trainer(tmp_path / "run", f"data.directory={kept}")  # the same images from another folder
    again.resume()
    finish(again)
    for name in runs.TENSOR_FILES:
        assert trainings.digest(again.run.newest_checkpoint() / name) == trainings.digest(expected_end / name)
    tally.add("folder changing", tried=1, survived=1)
