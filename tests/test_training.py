"""Training: that it learns, that nothing is lost, that a run resumed is the run."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import finish, left_behind, make_trainer
from safetensors.torch import load_file

from colddiff_core import experiment, presets, runs
from colddiff_core.errors import ColddiffError, MachineError, UsageError

WEIGHTS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def assert_same_checkpoint(a, b):
    for name in WEIGHTS:
        first, second = load_file(a / name), load_file(b / name)
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), f"{name}: {key}"


@pytest.mark.parametrize("preset", ["digits-blur", "digits-noise"])
@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, preset, stop_at):
    changes = ("train.ema_every=2", "train.accumulate=2", "data.flip=true")
    whole = finish(make_trainer(tmp_path / "whole", *changes, preset=preset))
    first = make_trainer(tmp_path / "parts", *changes, preset=preset)
    for tick in first.steps():
        if tick.step == stop_at:
            first.stop()
    first.run.close()
    assert [event["event"] for event in first.run.events()][-1] == "stopped"
    assert first.run.newest_checkpoint().name == f"step-{stop_at:06d}"
    second = make_trainer(tmp_path / "parts")
    second.resume()
    finish(second)
    assert_same_checkpoint(whole.run.newest_checkpoint(), second.run.newest_checkpoint())
    steps = [line["step"] for line in second.run.metrics()]
    assert steps == sorted(set(steps)) == [2, 4, 6]


def test_what_was_logged_after_the_checkpoint_is_written_again(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.checkpoint_every=3", "train.log_every=1")
    for tick in trainer.steps():
        if tick.step == 5:
            break  # as a kill would: two logged steps beyond the checkpoint
    trainer.run.close()
    again = make_trainer(tmp_path / "run")
    again.resume()
    assert again.step == 3
    finish(again)
    assert [line["step"] for line in again.run.metrics()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("preset", [name for name in presets.names() if name.startswith("digits-")])
def test_every_digits_preset_trains_and_restores(tmp_path, preset):
    steps = "degradation.steps=2" if preset == "digits-pixelate" else "degradation.steps=5"
    trainer = finish(make_trainer(tmp_path / "run", "train.steps=2", steps, preset=preset))
    restored, _ = experiment.open_run(trainer.run, torch.device("cpu"))
    x0 = trainer.test_set.images(slice(0, 3))
    x_t, frozen = restored.degrade(x0, restored.operator.steps, seed=0)
    alone, _ = restored.degrade(x0[2:], restored.operator.steps, seed=0, first=2)
    assert torch.allclose(x_t[2:], alone, atol=1e-6)
    assert restored.restorer(x_t, restored.operator.steps, frozen).isfinite().all()


def test_it_learns(tmp_path):
    trainer = finish(make_trainer(tmp_path / "run", "train.steps=150", "train.batch_size=32", "train.log_every=10"))
    losses = [line["loss"] for line in trainer.run.metrics()]
    assert losses[-1] < 0.7 * losses[0]
    _, figures = trainer.restore_tests()
    assert figures["direct"]["rmse"] < 0.75 * figures["degraded"]["rmse"]


def test_the_run_folder_says_everything(tiny_run):
    run = runs.Run(tiny_run)
    assert [event["event"] for event in run.events()] == ["started", "checkpoint", "checkpoint", "sample", "finished"]
    line = run.metrics()[-1]
    assert set(line) == {"step", "loss", "loss_by_severity", "lr", "grad_norm", "images_per_second", "elapsed"}
    assert math.isfinite(line["loss"])
    assert [path.name for path in run.checkpoints()] == ["step-000003", "step-000006"]
    assert left_behind(run.checkpoints()[-1]) == sorted([*WEIGHTS, "state.json"])
    assert left_behind(run.samples) == ["step-000006.json", "step-000006.png"]
    note = json.loads((run.samples / "step-000006.json").read_text())
    assert note["metrics"]["degraded"]["rmse"] > 0
    restored, step = experiment.open_run(run, torch.device("cpu"))
    assert step == 6
    averaged = load_file(run.newest_checkpoint() / "ema.safetensors")
    assert all(torch.equal(value, averaged[key]) for key, value in restored.restorer.unet.state_dict().items())


def test_old_checkpoints_go_and_drafts_do_not_stay(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.checkpoint_every=1", "train.keep=2")
    (tmp_path / "run" / "checkpoints" / ".draft-dead").mkdir()
    finish(trainer)
    assert left_behind(tmp_path / "run" / "checkpoints") == ["step-000005", "step-000006"]


def test_a_draft_is_no_checkpoint(tmp_path):
    run = make_trainer(tmp_path / "run").run
    (tmp_path / "run" / "checkpoints" / ".draft-1234").mkdir()
    assert run.checkpoints() == []
    with pytest.raises(UsageError, match="no checkpoint yet"):
        run.newest_checkpoint()


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.log_every=1")
    steps = trainer.steps()
    for _ in range(4):
        next(steps)
    next(trainer.parts.network.parameters()).data.fill_(math.nan)
    with pytest.raises(MachineError, match="lower rate"):
        next(steps)
    assert trainer.run.newest_checkpoint().name == "step-000003"
    last = trainer.run.events()[-1]
    assert last["event"] == "failed"
    assert "loss is nan" in last["why"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.log_every=1000")
    steps = trainer.steps()
    next(steps)
    next(trainer.parts.network.parameters()).data.fill_(math.nan)
    with pytest.raises(MachineError, match="not finite"):
        list(steps)
    assert trainer.run.checkpoints() == []


def test_one_trainer_a_run(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    with pytest.raises(MachineError, match="another process"):
        runs.RunWriter(tmp_path / "run")
    trainer.run.close()
    runs.RunWriter(tmp_path / "run").close()


@pytest.mark.parametrize("name", [*WEIGHTS, "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    finish(make_trainer(tmp_path / "run"))
    path = runs.Run(tmp_path / "run").newest_checkpoint() / name
    path.write_bytes(path.read_bytes()[:40])
    trainer = make_trainer(tmp_path / "run")
    with pytest.raises(ColddiffError) as refusal:
        trainer.resume()
    assert str(path) in str(refusal.value)


def test_another_networks_weights_are_refused(tmp_path, tiny_run):
    trainer = make_trainer(tmp_path / "run", "model.width=12")
    (tmp_path / "run" / "checkpoints" / "step-000006").symlink_to(runs.Run(tiny_run).newest_checkpoint())
    with pytest.raises(UsageError, match="another network"):
        trainer.resume()


def test_every_image_is_seen_once_an_epoch(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.batch_size=100")
    seen = []
    for step in range(15):
        trainer.step = step
        seen.append(trainer._indices())
    order = torch.cat(seen)
    count = len(trainer.train_set)
    assert order[:count].sort().values.equal(torch.arange(count))
    assert len(order) == 1500


def test_a_run_is_made_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file" / "run"
    path.parent.write_text("in the way")
    config = presets.from_table({"name": "x"}, "here")
    with pytest.raises(MachineError, match="Cannot write"):
        runs.create(path, config, {})
    assert left_behind(tmp_path) == ["file"]
