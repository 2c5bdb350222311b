"""Validation while training: what is held out, the best checkpoint, stopping early, and that nothing of it is lost."""

from __future__ import annotations

import json
import math
import shutil
import warnings

import pytest
import torch
from checkpoints import assert_same_checkpoint
from conftest import TINY, finish, left_behind, make_trainer

from colddiff_cli.__main__ import run as colddiff
from colddiff_core import runs
from colddiff_core.errors import ColddiffWarning, MachineError
from colddiff_core.inference import open_run
from colddiff_core.runs import checkpoint
from colddiff_core.training import start, validation
from colddiff_core.training.validation import ValidationRecord, Validator

pytestmark = pytest.mark.usefixtures("small_sheets")
VALIDATED = (
    "train.validate_every=2",
    "train.steps=12",
    "train.checkpoint_every=3",
    "train.keep=1",
    "train.log_every=1",
)
VALUES = (0.5, 0.3, 0.4, 0.2, 0.25, 0.26)  # by step: 2, 4, ... 12


def measuring(monkeypatch, values=VALUES, every=2):
    """Have validation find these values, by step."""
    trainers = []

    def rmse(self, network, at_batch):
        at_batch()
        return values[trainers[-1].step // every - 1]

    monkeypatch.setattr(Validator, "rmse", rmse)
    return trainers


def made(trainers, path, *changes):
    trainer = make_trainer(path, *changes)
    trainers.append(trainer)
    return trainer


def validated(run):
    return [event for event in run.events() if event["event"] == "validated"]


def steps_of(run):
    return [runs.path_step(path) for path in run.checkpoints()]


def test_the_figure_is_the_error_on_held_out_images_at_all_severities(tmp_path):
    trainer = make_trainer(tmp_path / "run", *VALIDATED)
    validator = trainer.validator
    assert len(validator.images) == 75
    assert len(trainer.train_set) == 1497 - 75
    counts = torch.bincount(validator.t, minlength=6)[1:]
    assert counts.min() >= 14
    assert counts.max() <= 16
    first = validator.rmse(trainer.parts.average.module, lambda: None)
    assert validator.rmse(trainer.parts.average.module, lambda: None) == first
    assert 0 < first < 1
    finish(trainer)
    events = validated(trainer.run)
    assert [event["step"] for event in events] == [2, 4, 6, 8, 10, 12]
    assert events[-1]["rmse"] < events[0]["rmse"]
    trained = validator.rmse(trainer.parts.average.module, lambda: None)
    assert trained == events[-1]["rmse"]

    class Perfect(torch.nn.Module):
        def forward(self, x_t, t, frozen, labels=None):
            return next(originals)

        def with_network(self, unet):
            return self

    size = trainer.settings.batch_size
    originals = (validator.images.images(slice(at, at + size)) for at in range(0, 75, size))
    object.__setattr__(trainer.experiment, "restorer", Perfect())
    assert validator.rmse(None, lambda: None) == 0


def test_no_image_is_both_trained_and_validated_on(tmp_path):
    trainer = make_trainer(tmp_path / "run", *VALIDATED)
    seen = torch.cat([trainer.stepper.indices(step) for step in range(200)])
    pixels = {trainer.train_set.rows(seen[at : at + 1]).numpy().tobytes() for at in range(len(seen))}
    held = {trainer.validator.images.pixels[at].numpy().tobytes() for at in range(75)}
    assert not pixels & held
    tested = {trainer.test_set.pixels[at].numpy().tobytes() for at in range(len(trainer.test_set))}
    assert not tested & held


def test_the_best_checkpoint_is_kept_and_used(tmp_path, monkeypatch):
    trainer = finish(made(measuring(monkeypatch), tmp_path / "run", *VALIDATED))
    assert steps_of(trainer.run) == [8, 12]
    with pytest.warns(ColddiffWarning, match="using step 8, the best of .* by validation, not step 12"):
        assert open_run.open_run(trainer.run, device="cpu").step == 8
    assert validated(trainer.run)[-1] | {"time": 0} == {
        "event": "validated",
        "time": 0,
        "step": 12,
        "rmse": 0.26,
        "best_step": 8,
        "failures": 2,
    }
    (trainer.run.checkpoint(8) / "ema.safetensors").write_bytes(b"damaged")
    with pytest.warns(ColddiffWarning, match="using step 12, not the best one"):
        assert open_run.open_run(trainer.run, device="cpu").step == 12
    shutil.rmtree(trainer.run.checkpoint(8))
    with pytest.warns(ColddiffWarning, match="using step 12, not the best one"):
        assert open_run.open_run(trainer.run, device="cpu").step == 12


def test_without_keep_best_the_newest_is_used(tmp_path, monkeypatch):
    trainer = finish(made(measuring(monkeypatch), tmp_path / "run", *VALIDATED, "train.keep_best=false"))
    assert steps_of(trainer.run) == [12]
    with warnings.catch_warnings(action="error", category=ColddiffWarning):
        assert open_run.open_run(trainer.run, device="cpu").step == 12


def test_a_newest_checkpoint_that_is_the_best_is_used_without_a_word(tmp_path, monkeypatch):
    falling = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
    trainer = finish(made(measuring(monkeypatch, falling), tmp_path / "run", *VALIDATED))
    assert steps_of(trainer.run) == [12]
    with warnings.catch_warnings(action="error", category=ColddiffWarning):
        assert open_run.open_run(trainer.run, device="cpu").step == 12


@pytest.mark.parametrize(("patience", "last"), [(1, 6), (2, 12), (3, 12)])
def test_training_stops_early_when_nothing_gets_better(tmp_path, monkeypatch, patience, last):
    trainer = finish(made(measuring(monkeypatch), tmp_path / "run", *VALIDATED, f"train.patience={patience}"))
    assert trainer.step == last
    assert trainer.is_finished
    event = trainer.run.events()[-1]
    assert (event["event"], event["step"], event.get("early", False)) == ("finished", last, last < 12)
    assert steps_of(trainer.run)[-1] == last
    assert (trainer.run.samples / f"step-{last:06d}.png").exists()
    assert trainer.last_sheet is not None


@pytest.mark.parametrize("patience", [0, 2])
@pytest.mark.parametrize("stop_at", [1, 5, 6, 10])
def test_a_stopped_run_resumes_to_the_same_bits_and_the_same_end(tmp_path, monkeypatch, patience, stop_at):
    trainers = measuring(monkeypatch)
    changes = (*VALIDATED, f"train.patience={patience}")
    whole = finish(made(trainers, tmp_path / "whole", *changes))
    parts = made(trainers, tmp_path / "parts", *changes)
    for tick in parts.steps():
        if tick.step == stop_at:
            parts.stop()
    parts.run.close()
    again = made(trainers, tmp_path / "parts")
    again.resume()
    finish(again)
    assert again.step == whole.step
    assert again.checkpoints.validation == whole.checkpoints.validation
    assert steps_of(again.run) == steps_of(whole.run)
    for one, other in zip(whole.run.checkpoints(), again.run.checkpoints(), strict=True):
        assert_same_checkpoint(one, other)
    assert left_behind(again.run.samples) == left_behind(whole.run.samples)


@pytest.mark.parametrize("killed_at", [3, 5, 7, 9])
def test_a_killed_run_finds_the_same_best(tmp_path, monkeypatch, killed_at):
    trainers = measuring(monkeypatch)
    whole = finish(made(trainers, tmp_path / "whole", *VALIDATED))
    killed = made(trainers, tmp_path / "killed", *VALIDATED)
    for tick in killed.steps():
        if tick.step == killed_at:
            break
    killed.run.close()
    again = made(trainers, tmp_path / "killed")
    again.resume()
    assert again.step <= killed_at
    finish(again)
    assert again.checkpoints.validation == whole.checkpoints.validation
    assert steps_of(again.run) == steps_of(whole.run)
    assert_same_checkpoint(whole.run.newest_checkpoint(), again.run.newest_checkpoint())


def test_a_run_killed_between_its_early_stop_and_its_last_line_only_finishes(tmp_path, monkeypatch):
    trainers = measuring(monkeypatch)
    trainer = finish(made(trainers, tmp_path / "run", *VALIDATED, "train.patience=1"))
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "events.jsonl").write_text("".join(lines[:-1]))
    (sheet,) = trainer.run.samples.glob("*.png")
    sheet.unlink()
    assert start.finished(trainer.run, trainer.run.config()) is None
    again = made(trainers, tmp_path / "run")
    again.resume()
    finish(again)
    assert again.step == 6
    assert sheet.exists()
    assert start.finished(again.run, again.run.config()) == 6


def test_what_is_not_finite_is_no_improvement(tmp_path, monkeypatch):
    values = (0.5, None, None, 0.4, None, None)
    trainer = finish(made(measuring(monkeypatch, values), tmp_path / "run", *VALIDATED))
    assert trainer.checkpoints.validation == ValidationRecord(8, 0.4, 2)
    assert validated(trainer.run)[1]["rmse"] is None
    meant = make_trainer(tmp_path / "other", *VALIDATED)
    monkeypatch.undo()
    with torch.no_grad():
        meant.parts.network.head.bias.fill_(math.nan)
    assert meant.validator.rmse(meant.parts.network, lambda: None) is None


def test_a_disk_that_refuses_the_best_checkpoint_leaves_the_one_before_the_best(tmp_path, monkeypatch):
    trainers, save = measuring(monkeypatch), checkpoint.save

    def refuse(folder, step, *rest, **options):
        if step == 8:
            raise MachineError("Cannot write: no space.")
        return save(folder, step, *rest, **options)

    monkeypatch.setattr(checkpoint, "save", refuse)
    trainer = made(trainers, tmp_path / "run", *VALIDATED)
    with pytest.warns(ColddiffWarning, match="no checkpoint at step 8"):
        finish(trainer)
    assert trainer.checkpoints.validation.best_step == 10  # .25, the next better than .3
    assert steps_of(trainer.run) == [10, 12]


def test_validation_changes_neither_the_draws_nor_the_network(tmp_path):
    often = finish(make_trainer(tmp_path / "often", *VALIDATED))
    once = finish(make_trainer(tmp_path / "once", *VALIDATED, "train.validate_every=12"))
    assert_same_checkpoint(often.run.newest_checkpoint(), once.run.newest_checkpoint())


@pytest.mark.parametrize(
    "saved",
    [None, 7, [], {}, {"best_step": "1", "rmse": 0.1, "failures": 0}, {"best_step": 10**30, "rmse": 0.1, "failures": 0}]
    + [{"best_step": 1, "rmse": value, "failures": 0} for value in (-1, 2, "x", math.nan, True)]
    + [{"best_step": 1, "rmse": 0.1, "failures": -1}],
)
def test_a_damaged_record_is_an_empty_one(saved):
    assert ValidationRecord.from_state(saved).rmse is None
    assert ValidationRecord.from_state(saved).failures == 0


def test_a_record_survives_a_checkpoint():
    for record in (ValidationRecord(), ValidationRecord(8, 0.1 + 0.2, 3), ValidationRecord(failures=2)):
        assert ValidationRecord.from_state(json.loads(json.dumps(record.to_state()))) == record


COMMAND = ["train", "--preset", "digits-blur", "--out", "run", "--device", "cpu"]


def with_settings(*changes):
    return [word for change in (*TINY, *changes) for word in ("--set", change)]


def test_the_command_says_what_it_found_and_goes_on_with_more_patience(in_folder, capfd, monkeypatch):
    worse = iter([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    monkeypatch.setattr(validation.Validator, "rmse", lambda self, network, at_batch: next(worse))
    assert colddiff([*COMMAND, *with_settings(*VALIDATED, "train.patience=2")]) == 0
    said = capfd.readouterr()
    text = said.out + said.err
    assert "step 2: validated, best so far: RMSE 0.2000" in text
    assert "step 6: validated, best so far: RMSE 0.2000 at step 2, 2 checks ago" in text
    assert "stopped early" in text
    assert colddiff(["train", "--resume", "run", "--device", "cpu"]) == 2
    error = capfd.readouterr().err
    assert "stopped early, at step 6" in error
    assert "--set train.patience=4" in error
    assert colddiff([*COMMAND, "--continue", *with_settings(*VALIDATED, "train.patience=2")]) == 0
    assert "is finished: step 6" in capfd.readouterr().out
    assert colddiff(["train", "--resume", "run", "--device", "cpu", "--set", "train.patience=4"]) == 0
    assert runs.Run(in_folder / "run").events()[-1]["step"] == 10
    capfd.readouterr()
    assert colddiff(["eval", "run", "--n", "4", "--features", "none", "--json", "--device", "cpu"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["step"] == 2
    assert "using step 2, the best of run by validation" in said.err
    assert colddiff(["monitor", "run", "--once"]) == 0
    assert "validated" in capfd.readouterr().out


def test_settings_that_change_what_is_trained_on_cannot_change_on_resume(own_run, capfd):
    words = ["train", "--resume", str(own_run), "--device", "cpu", "--set", "train.steps=9"]
    assert colddiff([*words, "--set", "train.validate_every=2"]) == 2
    assert "keeps its configuration" in capfd.readouterr().err


def test_shards_are_refused_before_a_folder_is_made(in_folder, capfd):
    assert colddiff(["data", "pack", "--dataset", "digits", "--out-dir", "shards", "--size", "8"]) == 0
    words = ["--data-dir", "shards", *with_settings(*VALIDATED, "data.dataset=shards", "data.size=8")]
    assert colddiff([*COMMAND, *words]) == 2
    assert "shards are read while training" in capfd.readouterr().err
    assert left_behind(in_folder) == ["shards"]


def test_two_processes_stop_together(in_folder, capfd):
    changes = [*VALIDATED, "train.patience=1", "train.lr=1e-30", "train.weight_decay=0", "train.warmup=0"]
    assert colddiff([*COMMAND, "--nproc", "2", *with_settings(*changes)]) == 0, capfd.readouterr().err
    run = runs.Run(in_folder / "run")
    assert run.events()[-1]["event"] == "finished"
    assert run.events()[-1]["early"] is True
    assert run.events()[-1]["step"] == 4
    assert [event["step"] for event in validated(run)] == [2, 4]


def test_patience_without_validation_is_refused(in_folder, capsys):
    """It would do nothing, without a word."""
    assert colddiff(["train", "--preset", "digits-blur", "--set", "train.patience=3"]) == 2
    assert "train.validate_every=100" in capsys.readouterr().err
    assert not (in_folder / "runs").exists()
