"""Trainings survive full and read-only disks, truncated files, second trainers, schedulers and lost terminals."""

from __future__ import annotations

import functools
import os
import pty
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tally
import trainings
from conftest import finish, make_trainer

from colddiff_core import runs
from colddiff_core.errors import ColddiffWarning
from colddiff_core.runs import checkpoint

DISK_MEGABYTES = 3  # a run and its checkpoints take less than one


def slow(*values: object) -> list[object]:
    """Return cases for the long form only."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def mount(place: Path, *options: str) -> None:
    words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a separate file system with room for little more than a run."""
    place = tmp_path / "disk"
    place.mkdir()
    mount(place, f"size={DISK_MEGABYTES}m")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk to the last byte; return the file that fills it."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return path


@pytest.mark.parametrize("seed", [1, *slow(*range(2, 8))])
def test_a_temporarily_full_disk_costs_nothing(small_disk, undisturbed, seed):
    run, chance, length = small_disk / "run", random.Random(seed), undisturbed.length
    first, more = chance.randint(2, 8), chance.randint(28, length.up_to(112))  # 28 lines need another page of the disk
    process = trainings.start(run, length, fault=("hold", first), lasting=more)
    with trainings.held(process):
        filler = fill(small_disk)
    with trainings.held(process):  # some lines and a checkpoint later
        filler.unlink()
    code, output = trainings.end(process)
    assert "no checkpoint at step" in output
    if code:
        assert "Traceback" not in output
        assert "Unexpected" not in output
        trainings.finish(run, undisturbed.length)
    trainings.check_result("disk full for a while", run, undisturbed, has_sheets=False, went_on_by_itself=int(not code))


@pytest.mark.parametrize("room", [8, *slow(0, 1, 2, 4, 16, 40, 80, 160)])
def test_a_disk_that_stays_full_ends_training_with_an_error(small_disk, undisturbed, room):
    run, length = small_disk / "run", undisturbed.length
    process = trainings.start(run, length, fault=("hold", 2 * length.checkpoint_every + 4))
    with trainings.held(process):
        assert len(runs.Run(run).checkpoints()) == 2
        filler = fill(small_disk)
        os.truncate(filler, filler.stat().st_size - room * 1024)
    code, output = trainings.end(process)
    assert code == 1, output
    assert "No space left on device" in output
    assert "Traceback" not in output
    assert "Unexpected" not in output
    saved = [runs.path_step(path) for path in runs.Run(run).checkpoints()]
    assert saved, "a checkpoint was lost"
    filler.unlink()
    trainings.finish(run, undisturbed.length)
    trainings.check_result("disk stays full", run, undisturbed, has_sheets=False)


@pytest.mark.parametrize("fault", ["full", *slow("readonly")])
@pytest.mark.parametrize("seed", [1, *slow(*range(2, 12))])
def test_refused_file_operations_lose_nothing(tmp_path, undisturbed, fault, seed):
    run, chance = tmp_path / "run", random.Random(seed)
    length = undisturbed.length
    first, lasting = chance.randint(1, length.up_to(400)), length.up_to(chance.choice([1, 1, 3, 10, 100, 10**6]))
    process = trainings.start(run, length, fault=(fault, first), lasting=max(1, lasting))
    code, output = trainings.end(process)
    assert "Traceback" not in output
    assert "Unexpected" not in output
    assert code in (0, 1), output
    if code:
        trainings.finish(run, undisturbed.length)
    trainings.check_result(f"refused ({fault})", run, undisturbed, has_sheets=False, went_on_by_itself=int(not code))


def test_a_run_on_a_read_only_disk_can_be_used_but_not_trained(tiny_run, small_disk, capsys):
    from colddiff_cli.__main__ import run as command

    path = shutil.copytree(tiny_run, small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = trainings.digest(path / "events.jsonl")
    assert command(["train", "--resume", str(path), "--set", "train.steps=9"]) == 1
    errors = capsys.readouterr().err
    assert "Read-only file system" in errors
    assert len(errors.splitlines()) == 2
    out = small_disk.parent / "picture.png"
    assert command(["generate", "--noise", "0.002", str(path), "--n", "1", "--out", str(out)]) == 0
    assert out.exists()
    assert command(["eval", str(path), "--n", "2", "--features", "none"]) == 0
    assert command(["sample", str(path)]) == 2
    assert "--out" in capsys.readouterr().err
    assert trainings.digest(path / "events.jsonl") == before
    tally.add("read-only run", tried=1, survived=1)


CHECKPOINT_FILES = pytest.mark.parametrize("name", [*runs.TENSOR_FILES, "state.json"])
EVERY_BYTES = pytest.mark.parametrize("every", [8192, *slow(1024)])


@EVERY_BYTES
@CHECKPOINT_FILES
def test_a_truncated_checkpoint_is_replaced_by_the_one_before(own_run, name, every):
    run = runs.Run(own_run)
    newest, older = run.checkpoints()[-1], run.checkpoints()[-2]
    content = (newest / name).read_bytes()
    lengths = [*range(0, len(content), every), len(content) - 1]
    for length in lengths:
        (newest / name).write_bytes(content[:length])
        found = checkpoint.newest(run, checkpoint.read)
        assert found.path == older
        assert list(found.damaged) == [newest]
    tally.add("checkpoint cut", tried=len(lengths), survived=len(lengths))


@EVERY_BYTES
@CHECKPOINT_FILES
def test_a_checkpoint_with_a_flipped_bit_is_replaced_by_the_one_before(own_run, name, every):
    run = runs.Run(own_run)
    newest, older = run.checkpoints()[-1], run.checkpoints()[-2]
    content = (newest / name).read_bytes()
    places = range(0, len(content), every if name.endswith(".safetensors") else every // 146)
    for place in places:
        spoiled = bytearray(content)
        spoiled[place] ^= 1
        (newest / name).write_bytes(spoiled)
        assert checkpoint.newest(run, checkpoint.read).path == older
    tally.add("bit flipped in a checkpoint", tried=len(places), survived=len(places))


def test_a_resumed_run_sets_a_damaged_checkpoint_aside_and_writes_it_again(own_run):
    newest = runs.Run(own_run).newest_checkpoint()
    expected = trainings.digest(newest / "optimizer.safetensors")
    content = (newest / "optimizer.safetensors").read_bytes()
    (newest / "optimizer.safetensors").write_bytes(content[: len(content) // 2])
    trainer = make_trainer(own_run)
    with pytest.warns(ColddiffWarning, match="was damaged; set aside"):
        trainer.resume()
    finish(trainer)
    assert trainings.digest(newest / "optimizer.safetensors") == expected


def test_a_second_trainer_is_refused_without_disturbing_the_first(tmp_path, undisturbed):
    run = tmp_path / "run"
    first = trainings.start(run, undisturbed.length, fault=("hold", 10))
    with trainings.held(first):
        code, output = trainings.end(trainings.start(run, undisturbed.length))
    assert (code, len(output.splitlines())) == (1, 2), output
    assert "is being trained by another process" in output
    assert trainings.end(first)[0] == 0
    trainings.check_result("two trainers", run, undisturbed)


@pytest.mark.slow
def test_of_two_simultaneous_trainings_one_gets_the_folder(tmp_path, undisturbed):
    run = tmp_path / "run"
    ends = [trainings.end(process) for process in [trainings.start(run, trainings.LONG) for _ in range(2)]]
    codes = sorted(code for code, _ in ends)
    assert codes[0] == 0, ends
    assert codes[1] in (1, 2), ends
    assert "exists already" in max(ends)[1] or "another process" in max(ends)[1]
    trainings.check_result("two trainers", run, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, *slow(signal.SIGINT, signal.SIGHUP)])
@pytest.mark.parametrize("seed", [1, *slow(*range(2, 8))])
def test_a_signal_saves_the_current_step_and_stops(tmp_path, undisturbed, number, seed):
    run, chance, length = tmp_path / "run", random.Random(seed), undisturbed.length
    step = chance.randint(1, length.up_to(80))
    process = trainings.start(run, length, fault=("moment", step), lasting=chance.randint(1, 20))
    with trainings.held(process):
        step = runs.Run(run).metrics()[-1]["step"]
        process.send_signal(number)
    code, output = trainings.end(process)
    last = runs.Run(run).events()[-1]
    assert last["step"] <= step + 1, "it went on after the step in which it was asked to stop"
    assert (code, last["event"], last["by"]) == (130, "stopped", signal.Signals(number).name), output
    assert runs.path_step(runs.Run(run).newest_checkpoint()) == last["step"]
    trainings.finish(run, undisturbed.length)
    trainings.check_result(signal.Signals(number).name, run, undisturbed)


@pytest.mark.slow
def test_nohup_survives_a_hangup(tmp_path, undisturbed):
    run = tmp_path / "run"
    ignoring = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    process = trainings.start_fresh(run, undisturbed.length, preexec_fn=ignoring)
    trainings.await_beginning(run, process, 0)
    process.send_signal(signal.SIGHUP)
    assert trainings.end(process)[0] == 0
    trainings.check_result("SIGHUP under nohup", run, undisturbed)


@pytest.mark.parametrize("is_heard", [True, *slow(False)])
def test_a_lost_terminal_costs_nothing(tmp_path, undisturbed, is_heard):
    """With the terminal's SIGHUP, and without it, when only writes to the terminal fail."""
    run = tmp_path / "run"
    ours, theirs = pty.openpty()
    terminal = os.ttyname(theirs)
    streams = dict.fromkeys(range(3), terminal)
    process = trainings.start(run, undisturbed.length, fault=("hold", 10), streams=streams, is_leader=is_heard)
    # Without a reader the training would block on its output.
    reader = subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL)
    with trainings.held(process):
        os.close(theirs)
        reader.kill()
        reader.wait()
        os.close(ours)
    process.wait(timeout=trainings.TIMEOUT_SECONDS)
    last = runs.Run(run).events()[-1]
    if is_heard:
        assert (process.returncode, last["event"], last.get("by")) == (130, "stopped", "SIGHUP")
        assert runs.path_step(runs.Run(run).newest_checkpoint()) == last["step"]
        trainings.finish(run, undisturbed.length)
    else:
        assert (process.returncode, last["event"]) == (0, "finished")
    trainings.check_result("terminal vanished", run, undisturbed)


def test_refused_output_costs_no_work(tmp_path, undisturbed):
    run = tmp_path / "run"
    process = trainings.start(run, undisturbed.length, streams={1: "/dev/full"})
    _, output = process.communicate(timeout=trainings.TIMEOUT_SECONDS)
    assert process.returncode == 1
    assert "The output could not be written: No space left on device." in output
    assert "Traceback" not in output
    assert "Unexpected" not in output
    assert "Exception ignored" not in output
    trainings.check_result("output refused", run, undisturbed)
