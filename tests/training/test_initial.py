"""`train --from RUN`: another run's weights to start from, or a refusal before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import assert_same_checkpoint, read_tensors
from conftest import TINY, left_behind

from colddiff_cli.__main__ import run as colddiff
from colddiff_core import runs
from colddiff_core.runs import checkpoint

pytestmark = pytest.mark.usefixtures("small_sheets")
SETTINGS = [word for change in TINY for word in ("--set", change)]
# So small a rate that the weights stay what they were.
STILL = ["--device", "cpu", "--set", "train.lr=1e-12", "--set", "train.steps=1", "--set", "train.weight_decay=0"]


def averaged(run):
    return read_tensors(runs.Run(Path(run)).newest_checkpoint() / "ema.safetensors")


@pytest.fixture
def source(in_folder: Path, tiny_run: Path) -> Path:
    return shutil.copytree(tiny_run, in_folder / "source")


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["data.size=16"],
        ["data.size=7"],
        ["degradation.name=mask", "model.inputs=inverse", "model.consistent=false"],
        ["degradation.steps=9"],
        ["model.consistent=false"],
        ["train.precision=bf16"],
        ["data.margin=4", "data.flip=true"],
    ],
)
def test_it_starts_from_the_averaged_weights(source, capfd, changes):
    words = [word for change in changes for word in ("--set", change)]
    assert colddiff(["train", "--from", "source", "--out", "new", *STILL, *words]) == 0, capfd.readouterr().err
    theirs, ours = averaged("source"), averaged("new")
    assert all(torch.allclose(ours[key], value, atol=1e-9) for key, value in theirs.items())
    event = runs.Run(Path("new")).events()[0]
    assert (event["event"], event["run"], event["from_step"]) == ("initialized", str(source.resolve()), 6)
    assert len(event["sha256"]) == 64


OTHER = [
    (["--set", "model.width=12"], ["model.width is 8 there and 12 here", "--set 'model.width=8'"]),
    (["--set", "model.multipliers=[1,1]"], ["'model.multipliers=[1]'"]),
    (["--set", "model.block=convnext"], ["model.block is resnet there and convnext here"]),
    (["--set", "model.inputs=plain"], ["model.inputs"]),
    (["--set", "model.classes=10"], ["model.classes is 0 there and 10 here"]),
    (["--set", "data.channels=3"], ["1 channel, these have 3", "data.channels=1"]),
    (["--preset", "digits-mask"], ["more", "Or use --from alone"]),
]


@pytest.mark.parametrize(("words", "said"), OTHER)
@pytest.mark.parametrize("more", [[], ["--out", "deep/er/run"], ["--nproc", "2"]])
def test_another_network_is_refused_before_a_folder_is_made(source, capfd, words, said, more):
    before = left_behind(Path())
    assert colddiff(["train", "--from", "source", *STILL, *words, *more]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    if more != ["--nproc", "2"] or "channels" not in words[-1]:  # where processes load the images
        assert len(lines) == 2, lines
    assert all(word in "\n".join(lines) for word in said), lines
    assert left_behind(Path()) == before


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_wrong_combinations_are_refused(source, capfd, more):
    untrained = shutil.copytree(source, Path("untrained"))
    shutil.rmtree(untrained / "checkpoints")
    before = left_behind(Path())
    asked = [
        (["--from", "source", "--resume", "source"], "--from does not go with --resume"),
        (["--preset", "digits-blur", "--resume", "source"], "--preset does not go with --resume"),
        (["--from", "nothing"], "No such run: nothing"),
        (["--from", "source/checkpoints"], "is not a run"),
        (["--from", "source", "--set", "model.width=12"], "another network"),
        (["--preset", "digits-blur", "--set", "train.initial=nothing"], "train.initial, the run to start from"),
    ]
    asked += [] if more else [(["--from", "untrained"], "has no checkpoint yet")]
    for words, said in asked:
        assert colddiff(["train", *words, *more]) == 2
        error = capfd.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 2, error
    assert left_behind(Path()) == before


def test_a_damaged_checkpoint_is_passed_over_and_with_all_damaged_nothing_starts(source, capfd):
    first, last = runs.Run(source).checkpoints()
    (last / "ema.safetensors").write_bytes(b"damaged")
    assert colddiff(["train", "--from", "source", "--out", "new", *STILL]) == 0
    assert "step-000006 is damaged; using the weights of step 3" in capfd.readouterr().err
    assert runs.Run(Path("new")).events()[0]["from_step"] == 3
    (first / "ema.safetensors").write_bytes(b"")
    before = left_behind(Path())
    assert colddiff(["train", "--from", "source", *STILL]) == 2
    assert "no other checkpoint is intact" in capfd.readouterr().err
    assert left_behind(Path()) == before


def test_it_may_be_on_another_path_and_go_away_once_a_checkpoint_is_saved(source, in_folder, monkeypatch, capfd):
    (in_folder / "elsewhere").mkdir()
    monkeypatch.chdir(in_folder / "elsewhere")
    assert colddiff(["train", "--from", "../source", "--out", "new", *STILL]) == 0
    monkeypatch.chdir(in_folder)
    source.rename("moved")
    lengthen = ["train", "--resume", "elsewhere/new", "--device", "cpu", "--set", "train.steps=2"]
    assert colddiff(lengthen) == 0, capfd.readouterr().err
    shutil.rmtree("elsewhere/new/checkpoints")  # as if it had been killed before its first one
    capfd.readouterr()
    assert colddiff(lengthen) == 2
    assert "train.initial, the run to start from: No such run" in capfd.readouterr().err


def test_a_run_that_starts_over_from_changed_weights_says_so(source, capfd):
    words = ["--device", "cpu", "--set", "train.steps=2"]
    assert colddiff(["train", "--from", "source", "--out", "new", *words]) == 0
    shutil.rmtree("new/checkpoints")
    kept = shutil.copytree("new", Path("kept"))
    assert colddiff(["train", "--resume", "kept", "--device", "cpu"]) == 0
    assert "has other weights" not in capfd.readouterr().err
    checkpoint.set_aside(runs.Run(source).checkpoints()[-1])
    assert colddiff(["train", "--resume", "new", "--device", "cpu"]) == 0
    assert "has other weights than when this run began" in capfd.readouterr().err
    assert kept.exists()


def test_two_processes_start_from_the_same_weights(source, capfd):
    assert colddiff(["train", "--from", "source", "--out", "two", "--nproc", "2", *STILL]) == 0, capfd.readouterr().err
    theirs, ours = averaged("source"), averaged("two")
    assert all(torch.allclose(ours[key], value, atol=1e-9) for key, value in theirs.items())


def test_the_result_is_the_same_every_time(source):
    for name in ("one", "two"):
        assert colddiff(["train", "--from", "source", "--out", name, "--device", "cpu"]) == 0
    assert_same_checkpoint(*(runs.Run(Path(name)).newest_checkpoint() for name in ("one", "two")))
