"""Numbers gone wrong: what is skipped changes nothing, what repeats goes back, what is not finite is never kept."""

from __future__ import annotations

import math
import shutil
import warnings

import pytest
import torch
from conftest import finish, make_trainer
from safetensors.torch import load
from torch import nn

from colddiff_core import runs
from colddiff_core.errors import ColddiffWarning, MachineError
from colddiff_core.runs import checkpoint
from colddiff_core.training import divergence

pytestmark = pytest.mark.usefixtures("small_sheets")


class Spoiled(nn.Module):
    """A network that gives values or gradients of NaN or infinity at some steps."""

    def __init__(self, trainer, steps, what, *, after_falls=math.inf):
        super().__init__()
        self.inner, self.trainer, self.steps = trainer.experiment.restorer, trainer, steps
        self.what, self.after_falls = what, after_falls

    def forward(self, x_t, t, frozen, labels):
        made = self.inner(x_t, t, frozen, labels)
        if self.trainer.step + 1 not in self.steps or self.trainer.stepper.falls >= self.after_falls:
            return made
        if self.what == "gradient":
            made.register_hook(lambda gradient: gradient * math.nan)
            return made
        return made + float(self.what)

    def with_network(self, unet):
        return self.inner.with_network(unet)


def spoil(trainer, steps, what, **options):
    object.__setattr__(trainer.experiment, "restorer", Spoiled(trainer, steps, what, **options))
    return trainer


def contents(path):
    return {name: load((path / name).read_bytes()) for name in runs.TENSOR_FILES}


def warned(run):
    return [event["message"] for event in run.events() if event["event"] == "warning"]


@pytest.mark.parametrize("what", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_changes_no_weight_and_is_recorded(tmp_path, what):
    trainer = spoil(make_trainer(tmp_path / "run", "train.log_every=1", "train.ema_every=1"), [2], what)
    ticks = trainer.steps()
    next(ticks)
    before = [p.detach().clone() for p in trainer.parts.network.parameters()]
    moments = {name: t.clone() for name, t in optimizer_state(trainer).items()}
    next(ticks)
    assert all(torch.equal(p, q) for p, q in zip(trainer.parts.network.parameters(), before, strict=True))
    assert all(torch.equal(t, moments[name]) for name, t in optimizer_state(trainer).items())
    list(ticks)
    trainer.run.close()
    assert not all(torch.equal(p, q) for p, q in zip(trainer.parts.network.parameters(), before, strict=True))
    assert len(warned(trainer.run)) == 1
    assert warned(trainer.run)[0].startswith("step 2 skipped")
    assert trainer.run.events()[-1]["event"] == "finished"
    logged = {line["step"]: line for line in trainer.run.metrics()}
    assert set(logged) == ({1, 2, 3, 4, 5, 6} if what == "gradient" else {1, 3, 4, 5, 6})
    assert all(math.isfinite(line["loss"]) for line in logged.values())


def optimizer_state(trainer):
    state = trainer.parts.optimizer.state
    return {f"{i}/{key}": t for i, entries in enumerate(state.values()) for key, t in entries.items()}


def test_after_several_in_a_row_the_run_goes_back_with_a_lower_rate(tmp_path):
    many = ["train.steps=12", "train.log_every=1", "train.warmup=0", "train.schedule=constant"]
    trainer = spoil(make_trainer(tmp_path / "run", *many), range(5, 12), "nan", after_falls=1)
    with pytest.warns(
        ColddiffWarning, match=r"step 9: 5 steps in a row .* went back to step 3; the learning rate is now 0.5 times"
    ):
        finish(trainer)
    messages = [message.split(":")[0] for message in warned(trainer.run)]
    skipped = [f"step {step} skipped" for step in range(5, 10)]
    assert messages == [*skipped[:2], "no checkpoint at step 6", *skipped[2:], "step 9"]
    lines = trainer.run.metrics()
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["lr"] / trainer.settings.lr for line in lines] == [1, 1, 1, *[0.5] * 9]
    assert trainer.run.events()[-1]["event"] == "finished"


def test_a_checkpoint_whose_very_next_step_is_skipped_is_passed_over(tmp_path):
    trainer = spoil(make_trainer(tmp_path / "run", "train.steps=12"), range(7, 14), "nan", after_falls=1)
    with pytest.warns(ColddiffWarning, match="back to step 3"):
        finish(trainer)  # the first step after that of step 6 is the same at any rate
    aside = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.startswith(".")]
    assert [name.rpartition("-")[0] for name in aside] == [".passed-step-000006"]


KILLED_AFTER = (6, 10, 14, 20)  # ticks
TROUBLE = {"steps": range(5, 15), "what": "nan", "after_falls": 2}


@pytest.fixture(scope="module")
def way_back(tmp_path_factory):
    """A folder with a training that goes back twice, and copies of it as a kill after some ticks would leave it."""
    folder = tmp_path_factory.mktemp("way_back")
    trainer = make_trainer(folder / "whole", "train.steps=12", "train.checkpoint_every=2")
    with warnings.catch_warnings(action="ignore", category=ColddiffWarning):
        for number, _ in enumerate(spoil(trainer, **TROUBLE).steps(), start=1):
            if number in KILLED_AFTER:
                trainer.saving.hear(wait=True)  # otherwise a file could vanish while it is being copied
                shutil.copytree(folder / "whole", folder / f"killed-{number}")
    trainer.run.close()
    assert trainer.stepper.falls == 2
    return folder


@pytest.mark.filterwarnings("ignore::colddiff_core.errors.ColddiffWarning")
@pytest.mark.parametrize("killed_after", KILLED_AFTER)
def test_a_kill_on_the_way_back_changes_no_bit(way_back, killed_after):
    second = spoil(make_trainer(way_back / f"killed-{killed_after}"), **TROUBLE)
    assert second.run.events()[-1]["event"] != "finished"
    second.resume()
    finish(second)
    ends = [contents(run.newest_checkpoint()) for run in (runs.Run(way_back / "whole"), second.run)]
    for name in runs.TENSOR_FILES:
        assert all(torch.equal(tensor, ends[1][name][key]) for key, tensor in ends[0][name].items())


def test_repeated_divergence_ends_the_run_with_the_reason_and_the_checkpoint(tmp_path):
    trainer = spoil(make_trainer(tmp_path / "run", "train.steps=20"), range(8, 21), "inf")
    with pytest.warns(ColddiffWarning), pytest.raises(MachineError, match="lower rate") as failure:
        list(trainer.steps())
    assert f"after lowering the rate {divergence.FALLS} times" in failure.value.what
    last = trainer.run.events()[-1]
    assert last["event"] == "failed"
    assert "the loss was inf" in last["why"]
    for path in trainer.run.checkpoints():
        assert all(t.isfinite().all() for tensors in contents(path).values() for t in tensors.values())


def test_before_the_first_checkpoint_there_is_nowhere_to_go_back_to(tmp_path):
    trainer = spoil(make_trainer(tmp_path / "run", "train.steps=20", "train.checkpoint_every=50"), range(1, 21), "nan")
    with pytest.raises(MachineError, match="there is no earlier checkpoint"):
        list(trainer.steps())
    assert trainer.step == divergence.IN_A_ROW


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = make_trainer(tmp_path / "run", "train.log_every=1000")
    steps = trainer.steps()
    next(steps)
    next(trainer.parts.network.parameters()).data.fill_(math.nan)
    with pytest.raises(MachineError, match="a weight is not finite"):
        list(steps)
    assert trainer.run.checkpoints() == []


def test_a_weight_that_is_not_finite_takes_the_run_back(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    steps = trainer.steps()
    for _ in range(4):
        next(steps)
    next(trainer.parts.network.parameters()).data.fill_(math.nan)
    with pytest.warns(ColddiffWarning, match="step 6: a weight is not finite; went back to step 3"):
        list(steps)
    assert trainer.parts.is_finite()
    assert trainer.run.events()[-1]["event"] == "finished"


def test_moments_that_are_not_finite_count_as_well(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    next(trainer.steps())
    assert trainer.parts.is_finite()
    next(iter(trainer.parts.optimizer.state.values()))["exp_avg"].view(-1)[0] = math.inf
    assert not trainer.parts.is_finite()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_one_number_that_is_not_finite_is_found_anywhere(dtype, value):
    network = nn.Conv2d(8, 5, 3).to(dtype).to(memory_format=torch.channels_last)
    parts = checkpoint.TrainingState(network, None, torch.optim.SGD(network.parameters()))
    assert parts.is_finite()
    for weight in network.parameters():
        for place in (0, weight.numel() // 2, -1):
            sound, spoiled = weight.detach().clone(), weight.detach().flatten().clone()
            spoiled[place] = value
            weight.data.copy_(spoiled.view(weight.shape))
            assert not parts.is_finite()
            weight.data.copy_(sound)
    assert parts.is_finite()


def test_a_watch_counts_across_readings_and_in_between():
    watch = divergence.DivergenceWatch()
    good, bad = torch.tensor(0.5), torch.tensor(math.nan)
    assert float(watch.add(1, good, good)) == 0
    for step in (2, 3, 4):
        assert float(watch.add(step, good, bad)) == 1
    skipped, too_many = watch.read()
    assert ([entry.step for entry in skipped], too_many, watch.in_a_row) == ([2, 3, 4], False, 3)
    assert "gradient" in skipped[0].why
    for step in (5, 6):
        watch.add(step, bad, good)
    watch.add(7, good, good)
    skipped, too_many = watch.read()
    assert ([entry.step for entry in skipped], too_many, watch.in_a_row) == ([5, 6], True, 0)
    assert watch.read() == ([], False)
