"""Checkpoints written while training goes on: contents, what waits for them, a disk that refuses, too little memory."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from checkpoints import assert_same_checkpoint
from conftest import finish, make_trainer

from colddiff_core import files
from colddiff_core.errors import ColddiffWarning, MachineError
from colddiff_core.runs import checkpoint, control
from colddiff_core.training import saving

pytestmark = pytest.mark.usefixtures("small_sheets")
OFTEN = ("train.checkpoint_every=2", "train.log_every=1", "train.keep=9")
CPU = torch.device("cpu")


def announced(trainer):
    return [event["step"] for event in trainer.run.events() if event["event"] == "checkpoint"]


def until(steps, number):
    return next(tick for tick in steps if tick.step == number)


def cloned(trainer):
    return {
        file: {name: tensor.clone() for name, tensor in some.items()} for file, some in trainer.parts.tensors().items()
    }


def test_a_checkpoint_holds_the_weights_of_its_step_though_training_went_on(tmp_path, disk):
    trainer = make_trainer(tmp_path / "run", *OFTEN, "train.ema_every=1")
    steps = trainer.steps()
    until(steps, 2)
    then = cloned(trainer)
    until(steps, 3)
    assert announced(trainer) == []
    assert trainer.run.checkpoints() == []
    assert trainer.checkpoints.saved_step == 0
    disk.release()
    until(steps, 4)  # the next one waits for this one
    assert announced(trainer) == [2]
    saved = checkpoint.read(trainer.run.checkpoint(2))
    assert saved.state["averaged"] == 2
    for file, some in then.items():
        assert saved.tensors[file].keys() == some.keys()
        assert all(torch.equal(saved.tensors[file][name], tensor) for name, tensor in some.items()), file
    now, before = cloned(trainer)[checkpoint.MODEL], then[checkpoint.MODEL]
    assert not all(torch.equal(now[name], tensor) for name, tensor in before.items())


def test_checkpoints_change_no_bit(tmp_path):
    often = finish(make_trainer(tmp_path / "often", "train.checkpoint_every=1"))
    once = finish(make_trainer(tmp_path / "once", "train.checkpoint_every=6"))
    assert announced(often) == [1, 2, 3, 4, 5, 6]
    assert announced(once) == [6]
    assert_same_checkpoint(often.run.newest_checkpoint(), once.run.newest_checkpoint())


def test_a_second_checkpoint_and_the_last_wait_for_the_one_before(tmp_path, disk):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps = trainer.steps()
    until(steps, 3)
    disk.await_log("begin 2")
    disk.release()
    list(steps)
    assert disk.log == [f"{word} {step}" for step in (2, 4, 6) for word in ("begin", "end")]
    assert [event["event"] for event in trainer.run.events()][-3:] == ["checkpoint", "sample", "finished"]
    assert announced(trainer) == [2, 4, 6]


def test_a_requested_checkpoint_is_on_the_disk_when_it_is_answered(tmp_path, disk):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps = trainer.steps()
    until(steps, 3)
    name = control.ask(tmp_path / "run", "checkpoint")
    disk.release()
    until(steps, 4)
    assert disk.log[:4] == ["begin 2", "end 2", "begin 3", "end 3"]
    events = [event for event in trainer.run.events() if event["event"] == "checkpoint"]
    assert [(event["step"], event.get("answers")) for event in events] == [(2, None), (3, [name])]


def test_a_checkpoint_is_logged_during_a_pause(tmp_path, disk):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps = trainer.steps()
    until(steps, 2)
    control.ask(tmp_path / "run", "pause")
    assert next(steps).is_paused
    disk.release(0)
    threading.Timer(0.5, control.ask, (tmp_path / "run", "resume")).start()
    next(steps)
    assert [event["event"] for event in trainer.run.events()] == ["started", "paused", "checkpoint", "resumed"]


@pytest.mark.parametrize("ending", ["stop", "break", "error"])
def test_the_end_of_a_training_waits_for_the_pending_checkpoint(tmp_path, disk, ending):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    disk.release()
    try:
        for tick in trainer.steps():
            if tick.step == 3 and ending == "stop":
                trainer.stop()
            if tick.step == 2 and ending == "break":
                break
            if tick.step == 2 and ending == "error":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert disk.log[:2] == ["begin 2", "end 2"]
    assert announced(trainer)[:1] == [2]
    trainer.run.close()
    again = make_trainer(tmp_path / "run")
    again.resume()
    assert again.step == (3 if ending == "stop" else 2)


def test_an_error_of_a_step_comes_after_the_pending_checkpoint(tmp_path, disk, monkeypatch):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps = trainer.steps()
    until(steps, 2)

    def fail(*_arguments):
        raise RuntimeError("the network is on fire")

    monkeypatch.setattr(trainer.stepper, "take", fail)
    disk.release()
    with pytest.raises(RuntimeError, match="on fire"):
        next(steps)
    assert [event["event"] for event in trainer.run.events()] == ["started", "checkpoint", "failed"]


def test_going_back_waits_for_the_pending_checkpoint(tmp_path, disk):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps = trainer.steps()
    until(steps, 3)
    then = trainer._trouble
    trainer._trouble = lambda is_saved: "of the test"
    disk.release()
    with pytest.warns(ColddiffWarning, match="step 4: of the test; went back to step 2"):
        next(steps)
    trainer._trouble = then
    assert trainer.step == 2
    list(steps)
    assert announced(trainer) == [2, 4, 6]


def test_a_refused_checkpoint_is_reported_when_training_has_gone_on(tmp_path, disk):
    disk.refused = {2: MachineError("Cannot write it: No space left on device.")}
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps = trainer.steps()
    until(steps, 3)
    disk.release()
    with pytest.warns(ColddiffWarning, match="no checkpoint at step 2: Cannot write it: No space left"):
        until(steps, 4)
    list(steps)
    assert announced(trainer) == [4, 6]
    (event,) = [event for event in trainer.run.events() if event["event"] == "warning"]
    assert event["step"] > 2


def test_the_last_checkpoint_raises_what_the_disk_refused(tmp_path, disk):
    disk.open.set()
    disk.refused = {6: MachineError("Cannot write it: No space left on device.")}
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    with pytest.raises(MachineError, match="No space left"):
        list(trainer.steps())
    assert trainer.run.events()[-1]["event"] == "failed"
    assert announced(trainer) == [2, 4]


def test_another_error_of_the_thread_ends_the_training(tmp_path, disk):
    disk.open.set()
    disk.refused = {2: RuntimeError("a bug")}
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    with pytest.raises(RuntimeError, match="a bug"):
        list(trainer.steps())
    assert trainer.run.events()[-1] | {"time": 0, "step": 0} == {
        "event": "failed",
        "time": 0,
        "step": 0,
        "why": "RuntimeError: a bug",
    }


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_without_memory_for_a_copy_training_waits_for_the_disk(tmp_path, monkeypatch, error):
    def refuse(*_arguments, **_options):
        raise error

    monkeypatch.setattr(saving, "_allocated", refuse)
    whole = finish(make_trainer(tmp_path / "whole", *OFTEN))
    assert [event.get("message") for event in whole.run.events() if event["event"] == "warning"] == [saving.NO_ROOM]
    assert announced(whole) == [2, 4, 6]
    monkeypatch.undo()
    copied = finish(make_trainer(tmp_path / "copied", *OFTEN))
    for one, other in zip(whole.run.checkpoints(), copied.run.checkpoints(), strict=True):
        assert_same_checkpoint(one, other)


def test_without_memory_a_refused_checkpoint_is_reported_too(tmp_path, monkeypatch, disk):
    monkeypatch.setattr(saving, "_allocated", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    disk.open.set()
    disk.refused = {2: MachineError("Cannot write it: No space left on device.")}
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    with pytest.warns(ColddiffWarning, match="no checkpoint at step 2"):
        finish(trainer)
    assert announced(trainer) == [4, 6]


def test_an_error_that_is_not_about_memory_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_allocated", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        finish(make_trainer(tmp_path / "run", *OFTEN))


def some_tensors():
    return {
        "a": {"x": torch.rand(3, 5), "none": torch.zeros(0, 2), "step": torch.tensor(7)},
        "b": {"y": torch.rand(2, 8, 3, 3).to(memory_format=torch.channels_last), "mask": torch.rand(9) > 0.5},
        "c": {"z": torch.rand(40).bfloat16(), "large": torch.rand(300)},
    }


@pytest.mark.parametrize("piece_bytes", [256, 1 << 26])
def test_a_copy_is_contiguous_and_its_memory_is_used_again(monkeypatch, piece_bytes):
    monkeypatch.setattr(saving, "PIECE_BYTES", piece_bytes)
    memory, tensors = saving.SnapshotMemory(CPU), some_tensors()
    first = memory.copy(tensors)
    places = [t.data_ptr() for some in first.tensors.values() for t in some.values()]
    tensors["a"]["x"].add_(1)
    second = memory.copy(tensors)
    assert places == [t.data_ptr() for some in second.tensors.values() for t in some.values()]
    assert {file: list(some) for file, some in second.tensors.items()} == {f: list(some) for f, some in tensors.items()}
    for file, some in tensors.items():
        for name, tensor in some.items():
            copy = second.tensors[file][name]
            assert copy.is_contiguous()
            assert copy.dtype == tensor.dtype
            assert copy.data_ptr() % saving.ALIGNMENT == 0
            assert torch.equal(copy, tensor)
            tensor.zero_()
            assert copy.numel() == 0 or copy.any()


def test_a_copy_takes_hardly_more_memory_than_a_checkpoint():
    tensors = {"a": {str(i): torch.rand(1000 + i) for i in range(50)}}
    copy = saving.SnapshotMemory(CPU).copy(tensors).tensors["a"]
    (piece,) = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in copy.values()}.values()
    assert piece.nbytes() <= sum(t.nbytes + saving.ALIGNMENT for t in tensors["a"].values())


def test_tensors_of_other_shapes_get_new_memory():
    memory, tensors = saving.SnapshotMemory(CPU), some_tensors()
    memory.copy(tensors)
    tensors["a"]["x"] = torch.rand(6, 5)
    assert torch.equal(memory.copy(tensors).tensors["a"]["x"], tensors["a"]["x"])


def test_a_large_copy_is_refused_when_memory_is_short(monkeypatch):
    tensors = some_tensors()
    monkeypatch.setattr(files, "free_bytes", lambda: 5000)
    saving.SnapshotMemory(CPU).copy(tensors)  # small, so free memory is not checked
    monkeypatch.setattr(files, "LARGE_BYTES", 1000)
    with pytest.raises(MemoryError):
        saving.SnapshotMemory(CPU).copy({"a": {"x": torch.zeros(1000)}})
    monkeypatch.setattr(files, "free_bytes", lambda: 10_000)
    saving.SnapshotMemory(CPU).copy({"a": {"x": torch.zeros(1000)}})


def test_the_best_checkpoint_is_pending_too_and_its_refusal_is_known_before_the_next_validation(
    tmp_path, monkeypatch, disk
):
    values = iter([0.5, 0.4, 0.6])
    trainer = make_trainer(
        tmp_path / "run", "train.checkpoint_every=6", "train.validate_every=2", "train.keep_best=true"
    )
    monkeypatch.setattr(trainer.validator, "rmse", lambda *_: next(values))
    disk.refused = {4: MachineError("Cannot write it: No space left on device.")}
    steps = trainer.steps()
    until(steps, 3)
    disk.await_log("begin 2")
    disk.release()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        list(steps)
    assert [str(w.message).split(":")[0] for w in seen] == ["no checkpoint at step 4"]
    assert trainer.checkpoints.validation.best_step == 2
    assert trainer.checkpoints.validation.failures == 1
    assert checkpoint.read_state(trainer.run.checkpoint(6))["validation"]["best_step"] == 2
