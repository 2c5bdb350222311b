"""The learning rate: its schedule, and that a run resumed with another length gets there without a jump."""

from __future__ import annotations

import itertools
import warnings

import pytest
from checkpoints import assert_same_checkpoint
from conftest import make_trainer

from colddiff_core import runs
from colddiff_core.config.schema import TrainConfig
from colddiff_core.errors import ColddiffWarning
from colddiff_core.training import schedule

pytestmark = pytest.mark.usefixtures("small_sheets")
COSINE = ("train.steps=20", "train.warmup=0", "train.schedule=cosine", "train.lr=1e-3", "train.checkpoint_every=5")


def rates(settings, joint, first=0):
    return [schedule.scale(settings, step, joint) for step in range(first, settings.steps + 1)]


@pytest.mark.parametrize("warmup", [0, 50])
@pytest.mark.parametrize("new", [110, 150, 200, 400, 4000])
@pytest.mark.parametrize("at", [1, 20, 60, 99, 100, 105])
def test_a_cosine_of_another_length_is_reached_without_a_jump_and_ends_at_zero(at, new, warmup):
    settings = TrainConfig(schedule="cosine", warmup=warmup, steps=new)
    for old in (100, 200, 1000):
        if at > old:
            continue
        before = schedule.scale(TrainConfig(schedule="cosine", warmup=warmup, steps=old), at)
        joint = schedule.join(settings, old, at)
        after = rates(settings, joint, at)
        assert after[0] == pytest.approx(before, abs=1e-12)
        assert after[-1] == pytest.approx(0, abs=1e-12)
        assert 0 <= min(after) <= max(after) <= 1
        # Where much is left, no step changes by more than a tenth of the full rate, a warm-up's own steps included.
        if new - at >= 100:
            assert max(abs(b - a) for a, b in itertools.pairwise(after)) <= 0.1


def test_a_run_can_be_lengthened_twice_and_shortened():
    rate = 0.0
    joint, old = None, 100
    for at, new in ((100, 300), (110, 200), (190, 1000)):
        settings = TrainConfig(schedule="cosine", steps=new)
        before = schedule.scale(TrainConfig(schedule="cosine", steps=old), at, joint)
        joint, old = schedule.join(settings, old, at, joint), new
        rate = schedule.scale(settings, at, joint)
        assert rate == pytest.approx(before, abs=1e-12)
    assert rate > 0
    assert schedule.from_state(schedule.to_state(joint)) == joint


@pytest.mark.parametrize("change", [{"schedule": "constant"}, {"steps": 100}])
def test_nothing_is_joined_where_the_rate_stays(change):
    settings = TrainConfig(**({"schedule": "cosine", "steps": 200} | change))
    assert schedule.join(settings, 100, 60) is None


def test_the_announced_rates_are_those_that_are_taken():
    settings = TrainConfig(schedule="cosine", steps=200, lr=0.1)
    joint = schedule.join(settings, 100, 100)
    words = "the schedule now ends at step 200: the learning rate goes from 0 to {} by step 110, then falls to 0"
    reached = 0.1 * schedule.scale(settings, 110)
    assert schedule.announce(settings, joint, 100, 1.0) == words.format(f"{reached:.3g}")
    assert schedule.announce(settings, joint, 100, 0.5) == words.format(f"{reached / 2:.3g}")
    assert schedule.announce(settings, joint, 101, 1.0) == schedule.announce(settings, None, 100, 1.0) == ""


DAMAGED = [7, [], {}, {"step": 1}, {"step": "1", "excess": 0.1, "steps": 2}, {"step": 1, "excess": 9, "steps": 2}]


@pytest.mark.parametrize("saved", [*DAMAGED, {"step": 1, "excess": 0.1, "steps": 0}])
def test_a_damaged_record_is_ignored(saved):
    assert schedule.from_state(saved) is None


def trained(path, *changes, stop_at=None):
    trainer = make_trainer(path, *changes)
    if trainer.run.checkpoints():
        trainer.resume()
    for tick in trainer.steps():
        if tick.step == stop_at:
            trainer.stop()
    trainer.run.close()
    return trainer


@pytest.mark.parametrize("first_stop", [None, 10])
def test_a_resumed_cosine_run_says_its_rates_and_logs_no_jump(tmp_path, first_stop):
    trained(tmp_path / "run", *COSINE, "train.log_every=1", stop_at=first_stop)
    at = first_stop or 20
    with pytest.warns(
        ColddiffWarning, match=rf"ends at step 60: the learning rate goes from .* by step {at + (60 - at) // 10}"
    ):
        longer = trained(tmp_path / "run", "train.steps=60")
    logged = [line["lr"] for line in longer.run.metrics()]
    assert len(logged) == 60
    steepest = max(abs(b - a) for a, b in itertools.pairwise(logged))
    assert steepest <= 0.35e-3 if first_stop is None else steepest <= 0.12e-3
    assert logged[-1] < 1e-5
    assert [event["message"] for event in longer.run.events() if event["event"] == "warning"] != []


def test_a_lengthened_run_stopped_again_resumes_to_the_same_bits(tmp_path):
    with warnings.catch_warnings(action="ignore", category=ColddiffWarning):
        for name in ("whole", "parts"):
            trained(tmp_path / name, *COSINE, stop_at=10)
            lengthen = trained(tmp_path / name, "train.steps=40", stop_at=None if name == "whole" else 12)
    with warnings.catch_warnings(action="error", category=ColddiffWarning):  # it was said once
        again = trained(tmp_path / "parts", "train.steps=40")
    assert lengthen.step == 12
    assert_same_checkpoint(runs.Run(tmp_path / "whole").newest_checkpoint(), again.run.newest_checkpoint())


def test_an_unchanged_run_is_resumed_without_a_word(tmp_path):
    trained(tmp_path / "run", *COSINE, stop_at=10)
    with warnings.catch_warnings(action="error", category=ColddiffWarning):
        resumed = trained(tmp_path / "run")
    assert resumed.stepper.joint is None
