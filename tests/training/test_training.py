"""Training: that it learns, that nothing is lost, that a run resumed is the run."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import subprocess

import pytest
import torch
from checkpoints import WEIGHTS, assert_same_checkpoint, read_tensors
from conftest import finish, left_behind, make_trainer, seal
from safetensors.torch import save_file

from colddiff_core import runs, seeds
from colddiff_core.config import presets
from colddiff_core.errors import ColddiffWarning, MachineError, UsageError
from colddiff_core.inference import open_run
from colddiff_core.sampling import DegradedImages, Sampling
from colddiff_core.training import sample_sheet

pytestmark = pytest.mark.usefixtures("small_sheets")
CHANGES = ("train.ema_every=2", "train.accumulate=2", "data.flip=true")


@pytest.fixture(scope="module")
def train_whole(tmp_path_factory):
    """Return a function that trains without interruption, once for each run; it also returns what starts another."""

    @functools.cache
    def train(preset, precision):
        start = functools.partial(make_trainer, preset=preset)
        changes = (*CHANGES, f"train.precision={precision}")
        return finish(start(tmp_path_factory.mktemp("whole") / "run", *changes)).run, start, changes

    return train


TRAINED = [("digits-blur", "float32"), ("digits-blur", "bf16"), ("digits-noise", "float32")]


@pytest.mark.parametrize(("preset", "precision"), TRAINED)
@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, train_whole, preset, precision, stop_at):
    undisturbed, start, changes = train_whole(preset, precision)
    first = start(tmp_path / "parts", *changes)
    for tick in first.steps():
        if tick.step == stop_at:
            first.stop()
    first.run.close()
    assert [event["event"] for event in first.run.events()][-1] == "stopped"
    assert first.run.newest_checkpoint().name == f"step-{stop_at:06d}"
    second = make_trainer(tmp_path / "parts")
    second.resume()
    finish(second)
    assert_same_checkpoint(undisturbed.newest_checkpoint(), second.run.newest_checkpoint())
    steps = [line["step"] for line in second.run.metrics()]
    assert steps == sorted(set(steps)) == [2, 4, 6]


def test_log_lines_after_the_checkpoint_are_written_again(tmp_path):
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


def test_it_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_sheet, "IMAGES", 16)
    overrides = ("train.steps=60", "train.batch_size=16", "train.lr=5e-3", "train.log_every=10")
    overrides += ("train.checkpoint_every=60",)
    trainer = finish(make_trainer(tmp_path / "run", *overrides))
    losses = [line["loss"] for line in trainer.run.metrics()]
    assert losses[-1] < 0.7 * losses[0]
    _, figures = trainer.restore_tests()
    assert figures["direct"]["rmse"] < 0.75 * figures["degraded"]["rmse"]


def test_the_run_folder_has_all_settings_metrics_and_weights(tiny_run):
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
    trained = open_run.open_run(run, device="cpu")
    restored, step = trained.experiment, trained.step
    assert step == 6
    averaged = read_tensors(run.newest_checkpoint() / "ema.safetensors")
    weights = restored.restorer.unet.state_dict()  # the body's in the dtype that it runs in
    assert all(torch.equal(value, averaged[key].to(value.dtype)) for key, value in weights.items())


def test_old_checkpoints_go_and_drafts_do_not_stay(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.checkpoint_every=1", "train.keep=2")
    (tmp_path / "run" / "checkpoints" / ".draft-dead").mkdir()
    finish(trainer)
    assert left_behind(tmp_path / "run" / "checkpoints") == ["step-000005", "step-000006"]


def test_what_a_kill_left_after_the_last_checkpoint_is_removed(own_run):
    """The next trainer saves nothing, so saving cannot be what removes it."""
    events = own_run / "events.jsonl"
    events.write_text("".join(events.read_text().splitlines(keepends=True)[:-1]))
    for name in (".draft-dead", ".old-step-000000-dead"):
        (own_run / "checkpoints" / name).mkdir()
        (own_run / "checkpoints" / name / "model.safetensors").touch()
    trainer = make_trainer(own_run)
    trainer.resume()
    finish(trainer)
    assert trainer.run.events()[-1]["event"] == "finished"
    assert left_behind(own_run / "checkpoints") == ["step-000003", "step-000006"]


def test_a_draft_is_no_checkpoint(tmp_path):
    run = make_trainer(tmp_path / "run").run
    (tmp_path / "run" / "checkpoints" / ".draft-1234").mkdir()
    assert run.checkpoints() == []
    with pytest.raises(UsageError, match="no checkpoint yet"):
        run.newest_checkpoint()


def test_one_trainer_a_run(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    with pytest.raises(MachineError, match="another process"):
        runs.RunWriter(tmp_path / "run")
    trainer.run.close()
    runs.RunWriter(tmp_path / "run").close()


TRAINED_ON = {("model.safetensors", 0), ("ema.safetensors", 5), ("optimizer.safetensors", 40)}
TRAINED_ON |= {("state.json", -1), ("model.safetensors", None)}  # every file once or more, and every length


@pytest.mark.parametrize("name", [*WEIGHTS, "state.json"])
@pytest.mark.parametrize("length", [0, 5, 40, -1, None])
def test_the_newest_complete_checkpoint_wins(own_run, tmp_path, name, length):
    newest = runs.Run(own_run).newest_checkpoint()
    wanted = {file: read_tensors(newest / file) for file in WEIGHTS}
    path = newest / name
    content = path.read_bytes()
    if length is None:
        path.unlink()
    else:
        path.write_bytes(content[:length])
    trainer = make_trainer(tmp_path / "run")
    with pytest.warns(ColddiffWarning, match="step-000006 was damaged"):
        trainer.resume()
    assert trainer.step == 3
    assert [event["event"] for event in trainer.run.events()].count("warning") == 1
    if (name, length) not in TRAINED_ON:
        trainer.run.close()
        aside, kept = left_behind(tmp_path / "run" / "checkpoints")
        assert (aside[0], kept) == (".", "step-000003")
        return
    finish(trainer)
    assert [event["event"] for event in trainer.run.events()].count("warning") == 1
    assert left_behind(tmp_path / "run" / "checkpoints")[1:] == ["step-000003", "step-000006"]
    for file, tensors in wanted.items():
        again = read_tensors(trainer.run.newest_checkpoint() / file)
        assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_with_no_complete_checkpoint_nothing_is_thrown_away(tmp_path):
    finish(make_trainer(tmp_path / "run", "train.keep=1"))
    path = runs.Run(tmp_path / "run").newest_checkpoint()
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="is damaged"):
        make_trainer(tmp_path / "run").resume()
    assert left_behind(path.parent) == ["step-000006"]


def test_a_run_ended_before_its_first_checkpoint_begins_again(tiny_run, tmp_path):
    killed = make_trainer(tmp_path / "run", "train.log_every=1")
    steps = killed.steps()
    next(steps)
    next(steps)
    killed.run.close()
    again = make_trainer(tmp_path / "run")
    again.resume()
    assert again.step == 0
    finish(again)
    assert_same_checkpoint(runs.Run(tiny_run).newest_checkpoint(), again.run.newest_checkpoint())


def test_other_files_in_the_folder_do_no_harm(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000002.bak").mkdir()
    (tmp_path / "run" / "events.jsonl").write_text('{"event": "checkp')
    trainer.run.close()
    again = finish(make_trainer(tmp_path / "run"))
    assert [event["event"] for event in again.run.events()][:2] == ["started", "checkpoint"]
    assert "step-000002.bak" in left_behind(tmp_path / "run" / "checkpoints")


def test_another_networks_weights_are_refused(tmp_path, tiny_run):
    trainer = make_trainer(tmp_path / "run", "model.width=12")
    (tmp_path / "run" / "checkpoints" / "step-000006").symlink_to(runs.Run(tiny_run).newest_checkpoint())
    with pytest.raises(UsageError, match=r"(?s)model.width was 8 and is 12.*--allow-change"):
        trainer.resume()
    with pytest.raises(UsageError, match="another network"):
        trainer.resume(may_change=True)


@pytest.mark.parametrize("change", ["shape", "name", "missing"])
def test_another_optimizers_state_is_refused(own_run, tmp_path, change):
    path = runs.Run(tmp_path / "run").newest_checkpoint() / "optimizer.safetensors"
    tensors = read_tensors(path)
    first = sorted(tensors)[0]
    value = tensors.pop(first)
    if change != "missing":
        tensors[first if change == "shape" else "nope"] = value.flatten()[:1] if change == "shape" else value
    save_file(tensors, path)
    seal(path)
    with pytest.raises(UsageError, match="another optimizer"):
        make_trainer(tmp_path / "run").resume()


def test_the_average_forgets_by_its_decay(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.ema_every=1", "train.ema_decay=0.15", "train.steps=4")
    wanted = None
    for _ in trainer.steps():
        weight = trainer.parts.network.head.weight.detach().clone()
        wanted = weight if wanted is None else 0.15 * wanted + 0.85 * weight
        torch.testing.assert_close(trainer.parts.average.module.head.weight, wanted)
    assert trainer.parts.average.n_averaged == 4
    assert not torch.equal(wanted, weight)


def test_every_image_is_seen_once_an_epoch(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.batch_size=100")
    seen = []
    for step in range(15):
        trainer.step = step
        seen.append(trainer.stepper.indices(step))
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


def test_the_networks_input_has_dither_and_its_output_has_none(tmp_path):
    trainer = make_trainer(tmp_path / "run", "degradation.dither=0.05")
    built = trainer.experiment
    x0 = trainer.test_set.images(slice(0, 50))
    x_t, frozen = built.degrade(x0, 3, seeds.image_generators(1, range(50)))
    on_top = x_t - built.operator(x0, 3, frozen)
    assert float(on_top.std()) == pytest.approx(0.05, rel=0.05)
    assert abs(float(on_top.mean())) < 0.005

    class PerfectNetwork(torch.nn.Module):
        def forward(self, x, t, frozen, labels):
            return x0

    perfect = dataclasses.replace(built, restorer=PerfectNetwork())
    steps = list(perfect.restore(DegradedImages(x_t, 3, frozen), Sampling(seed=1)))
    assert torch.equal(steps[-1].x, x0)
    torch.testing.assert_close(steps[0].x - built.operator(x0, 2, frozen), on_top, rtol=0, atol=1e-5)
    plain = make_trainer(tmp_path / "plain").experiment
    assert torch.equal(plain.observe(x0, None), x0)


def test_gradients_are_clipped_to_the_bound(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "run", "train.clip=0.05", "train.steps=2")
    optimizer, lengths = trainer.stepper.parts.optimizer, []
    take = optimizer.step

    def measured_step():
        gradients = [weight.grad for weight in trainer.stepper.parts.network.parameters()]
        lengths.append(float(torch.nn.utils.get_total_norm(gradients)))
        take()

    monkeypatch.setattr(optimizer, "step", measured_step)
    finish(trainer)
    assert min(line["grad_norm"] for line in trainer.run.metrics()) > 0.1  # what is logged is not clipped
    assert lengths == pytest.approx([0.05, 0.05], rel=1e-3)


def test_the_squared_loss_is_squared(tmp_path):
    logged = {}
    for loss in ("l1", "l2"):
        overrides = ["train.steps=1", f"train.loss={loss}", "model.inputs=plain", "model.consistent=false"]
        trainer = make_trainer(tmp_path / loss, *overrides)
        head = trainer.experiment.restorer.unet.head
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, 3.0)  # so the first error is 3 - x0, whatever x_t is
        logged[loss] = finish(trainer).run.metrics()[0]["loss"]
        picked = trainer.train_set.images(trainer.stepper.indices(0))
    assert logged["l1"] == pytest.approx(float((3 - picked).mean()), rel=1e-4)
    assert logged["l2"] == pytest.approx(float((3 - picked).square().mean()), rel=1e-4)


def test_a_conditional_network_also_trains_without_labels(tmp_path):
    trainer = make_trainer(tmp_path / "run", "model.classes=10", "train.steps=2", "train.batch_size=64")
    parts = [part for step in range(16) for part in trainer.stepper.draw(step)]
    seen = torch.cat([trainer.stepper.labels(part) for part in parts])
    labels = torch.cat([trainer.train_set.labels[part.indices] for part in parts])
    hidden = seen == 10
    assert 0.07 < float(hidden.double().mean()) < 0.13
    assert torch.equal(seen[~hidden], labels[~hidden])
    before = trainer.experiment.restorer.unet.label.weight.detach().clone()
    after = finish(trainer).experiment.restorer.unet.label.weight.detach()
    moved = (after - before).abs().amax(1)
    assert (moved[[int(labels[0]), 10]] > 1e-6).all()


def test_a_run_that_begins_with_a_warning_is_started_all_the_same(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.run.event("warning", message="left out 1 training file that could not be read")
    assert [event["event"] for event in finish(trainer).run.events()][:2] == ["warning", "started"]


def test_the_lock_names_the_trainer_and_its_last_sign_of_life(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    holder = runs.Run(tmp_path / "run").holder()
    assert (holder.pid, holder.is_gone) == (os.getpid(), False)
    os.utime(tmp_path / "run" / "lock", (0, 0))
    next(trainer.steps())
    steps = trainer.steps()
    next(steps)
    next(steps)
    assert runs.Run(tmp_path / "run").holder().beat > 1e9
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "run" / "lock").write_text(json.dumps({"pid": dead.pid, "host": holder.host}))
    assert runs.Run(tmp_path / "run").holder().is_gone
    (tmp_path / "run" / "lock").write_text("")
    assert not runs.Run(tmp_path / "run").holder().is_gone
