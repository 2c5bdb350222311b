"""The moving average of the weights: never much worse than the weights themselves, however short the training."""

from __future__ import annotations

import pytest
import torch
from checkpoints import assert_same_checkpoint, read_tensors
from conftest import finish, make_trainer

from colddiff_core import runs, seeds
from colddiff_core.training.step import WARM_UPDATES, warm_decay

pytestmark = pytest.mark.usefixtures("small_sheets")
LEARNING = ("train.steps=110", "train.batch_size=16", "train.lr=3e-3", "train.ema_decay=0.995", "train.warmup=0")
LEARNING += ("model.inputs=plain", "model.consistent=false", "train.checkpoint_every=110")
MEASURED = (1, 3, 9, 10, 11, 15, 19, 25, 29, 39, 49, 75, 99, 109, 110)  # steps: right before and after an update, too
MOST = 1.05  # times the RMSE of the weights


def rmse(trainer, network):
    x0 = trainer.test_set.images(slice(0, 100))
    x_t, frozen = trainer.experiment.degrade(x0, 3, seeds.image_generators(0, range(100)))
    with torch.no_grad():
        return float((trainer.experiment.with_network(network).restorer(x_t, 3, frozen) - x0).square().mean().sqrt())


@pytest.mark.parametrize("every", [1, 7, 10, 1000])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_average_is_never_much_worse_than_the_weights(tmp_path, every, schedule):
    trainer = make_trainer(tmp_path / "run", *LEARNING, f"train.ema_every={every}", f"train.schedule={schedule}")
    ratios = {}
    for tick in trainer.steps():
        if tick.step in MEASURED:
            ratios[tick.step] = rmse(trainer, trainer.parts.average.module) / rmse(trainer, trainer.parts.network)
    trainer.run.close()
    assert list(ratios) == list(MEASURED)
    assert max(ratios.values()) <= MOST, ratios


@pytest.mark.parametrize("steps", [1, 5, 9])
def test_a_run_that_ends_before_the_first_update_uses_its_trained_weights(tmp_path, steps):
    finish(make_trainer(tmp_path / "run", f"train.steps={steps}", "train.ema_every=10"))
    path = runs.Run(tmp_path / "run").newest_checkpoint()
    raw, averaged = (read_tensors(path / name) for name in ("model.safetensors", "ema.safetensors"))
    assert all(torch.equal(averaged[key], value) for key, value in raw.items())
    first = make_trainer(tmp_path / "untrained").parts.network.state_dict()
    assert not all(torch.equal(first[key], value) for key, value in raw.items())


@pytest.mark.parametrize("stop_at", [3, 14, 31, 34])  # before the first update, in the warm-up, and after it
def test_a_run_stopped_while_the_average_warms_up_resumes_to_the_same_bits(tmp_path, stop_at):
    changes = ("train.steps=36", "train.ema_every=3")
    whole = finish(make_trainer(tmp_path / "whole", *changes))
    parts = make_trainer(tmp_path / "parts", *changes)
    for tick in parts.steps():
        if tick.step == stop_at:
            parts.stop()
    parts.run.close()
    again = make_trainer(tmp_path / "parts")
    again.resume()
    finish(again)
    assert_same_checkpoint(whole.run.newest_checkpoint(), again.run.newest_checkpoint())
    averaged, raw = again.parts.average, again.parts.network
    assert averaged.n_averaged == 12 > WARM_UPDATES
    assert not torch.equal(averaged.module.head.weight, raw.head.weight)


def test_after_some_thousand_updates_the_decay_is_the_one_configured():
    for decay, updates in ((0.99, 891), (0.995, 1791), (0.999, 8991)):
        assert warm_decay(decay, updates) == decay > warm_decay(decay, updates - 2)
    assert (warm_decay(0.995, 0), warm_decay(0.995, 1)) == (0, 2 / 11)
    assert warm_decay(0.1, 50) == 0.1
    assert warm_decay(0.0, 50) == 0
