"""The thread that writes a checkpoint: no thread available, a forked child, exit, and a third Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from conftest import finish, make_trainer

from colddiff_core.errors import ColddiffWarning
from colddiff_core.training import background
from colddiff_core.training.background import BackgroundWork

OFTEN = ("train.checkpoint_every=2", "train.log_every=1", "train.keep=9")
SCRIPT = """
import sys, threading, time
from colddiff_core.training.background import BackgroundWork
def write():
    time.sleep(0.3)
    print("written", flush=True)
def main():
    {}
"""


def events(trainer):
    return [(event["event"], event.get("step")) for event in trainer.run.events()]


def held(trainer):
    """Train to step 2, whose checkpoint the disk does not take yet; return the generator, which must be kept."""
    steps = trainer.steps()
    while next(steps).step < 2:
        pass
    return steps


def test_where_no_thread_can_start_a_checkpoint_is_written_at_once(tmp_path, monkeypatch):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "colddiff-checkpoint":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    trainer = finish(make_trainer(tmp_path / "run", *OFTEN))
    assert [step for name, step in events(trainer) if name == "checkpoint"] == [2, 4, 6]
    assert trainer.run.damaged_checkpoints() == []


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("BackgroundWork(write).start()", "written\n"),
        ("work = BackgroundWork(write); work.start(); work.abandon()", ""),
        ("threading.Thread(target=lambda: (time.sleep(0.2), BackgroundWork(write).start())).start()", "written\n"),
    ],
    ids=["started", "abandoned", "started after the main thread"],
)
def test_python_ends_after_the_work_unless_it_was_abandoned(work, said):
    script = SCRIPT.format(work) + "main()\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (said, "")


def test_a_forked_child_does_not_wait_for_its_parents_thread():
    allowed = threading.Event()
    work = BackgroundWork(allowed.wait)
    work.start()
    child = os.fork()
    if not child:
        os._exit(0 if work.has_ended and work.is_lost and work.wait() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not work.has_ended
    allowed.set()
    assert work.wait(30)


def test_resuming_with_the_same_trainer_waits_for_its_checkpoint(tmp_path, disk):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps = held(trainer)
    disk.release()
    trainer.resume()
    assert trainer.step == 2
    steps.close()


def test_closing_the_run_waits_for_its_checkpoint(tmp_path, disk):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps = held(trainer)
    disk.release()
    trainer.run.close()
    assert events(trainer)[-1] == ("checkpoint", 2)
    steps.close()


def test_a_further_ctrl_c_gives_up_the_checkpoint(tmp_path, disk, monkeypatch):
    trainer = make_trainer(tmp_path / "run", *OFTEN)
    steps, copies = held(trainer), trainer.saving._memory

    def interrupt(work, seconds=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(background.BackgroundWork, "wait", interrupt)
    with (
        pytest.warns(
            ColddiffWarning, match="waiting until the checkpoint of step 2 is on the disk; Ctrl-C gives it up"
        ),
        pytest.raises(KeyboardInterrupt),
    ):
        steps.throw(KeyboardInterrupt)
    assert events(trainer)[-1] == ("failed", 2)
    assert trainer.saving._memory is not copies  # the thread still reads them
    trainer.run.close()  # does not wait
