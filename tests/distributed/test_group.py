"""Several processes at work together: the same run as one process makes, and what becomes of it when one is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks_job
import torch
import torch.distributed as dist
from conftest import make_trainer
from safetensors.torch import load_file

from colddiff_cli import __main__
from colddiff_cli.__main__ import run as colddiff
from colddiff_cli.jobs import launch
from colddiff_core import devices, runs, seeds
from colddiff_core.degradations.base import draw_integers, draw_normal, draw_uniform
from colddiff_core.distributed import environment as job
from colddiff_core.distributed import group
from colddiff_core.errors import LostError, MachineError, UsageError
from colddiff_core.runs import checkpoint
from colddiff_core.training import start

STEPS = 6
TOLERANCE = 1e-5  # relative, of losses in float32: sums are made in another order
WEIGHTS = 1e-4  # absolute, of weights after some steps of Adam, which divides by what may be small
HERE = Path(__file__).parents[1]


def environment():
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE, HERE / "faults"))),
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes over Gloo that do what tests/ranks_job.py says, and one process that does the same."""
    alone, both = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("both")
    for folder in (alone, both):  # begun by one process
        trainer = ranks_job.build(folder / "resumed", "digits-mask")
        for tick in trainer.steps():
            if tick.step == 3:
                trainer.stop()
        trainer.run.close()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    log = (both / "log").open("w+")
    job = subprocess.Popen(
        [*launcher, str(HERE / "ranks_job.py"), str(both)], env=environment(), stdout=log, stderr=log
    )
    try:
        for name, (preset, overrides) in ranks_job.CASES.items():
            ranks_job.finish(ranks_job.build(alone / name, preset, *overrides))
        ranks_job.finish(ranks_job.build(alone / "resumed", "digits-mask"))
        assert job.wait(timeout=180) == 0, (both / "log").read_text()
    finally:
        job.kill()
        log.close()
        torch.set_num_threads(threads)
    return alone, both


def told(folder):
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


def weights(folder, name=checkpoint.MODEL):
    return load_file(runs.Run(folder).newest_checkpoint() / name)


@pytest.mark.parametrize("case", [*ranks_job.CASES, "resumed"])
def test_two_processes_make_the_run_that_one_makes(together, case):
    one, two = (folder / case for folder in together)
    lines = [runs.Run(path).metrics() for path in (one, two)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == list(range(1, STEPS + 1))
    for alone, both in zip(*lines, strict=True):
        pairs = [(alone[key], both[key]) for key in ("loss", "grad_norm", "lr")]
        pairs += zip(alone["loss_by_severity"], both["loss_by_severity"], strict=True)
        for wanted, found in pairs:
            assert found == (wanted if wanted is None else pytest.approx(wanted, rel=TOLERANCE))
    for name in (checkpoint.MODEL, checkpoint.AVERAGE):
        found, wanted = weights(two, name), weights(one, name)
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=WEIGHTS)


def test_bit_for_bit_where_each_process_takes_a_pass_that_one_would_take(together):
    one, two = (weights(folder / "passes") for folder in together)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_one_process_goes_on_with_what_two_have_begun(together, tmp_path):
    trainer = ranks_job.build(together[1] / "asked", "digits-mask", "train.steps=500", "sample.stride=1")
    assert 1 <= trainer.step < 500
    assert sum(event["event"] == "resumed" for event in trainer.run.events()) == 2  # once from a pause
    trainer.run.close()


def test_what_one_process_meets_alone_all_of_them_skip(together):
    run = runs.Run(together[1] / "spoiled")
    warned = [event["message"] for event in run.events() if event["event"] == "warning"]
    assert warned == ["step 2 skipped: the loss was nan"]
    assert [line["loss"] is None for line in run.metrics()].count(True) == 0
    first, second = told(together[1])
    assert first["weights"] == second["weights"]


def test_a_readers_requests_reach_all_processes(together):
    events = [event["event"] for event in runs.Run(together[1] / "asked").events()]
    assert events.index("paused") < events.index("resumed") < events.index("sample") < events.index("stopped")
    first, second = told(together[1])
    assert first["asked"] == second["asked"]
    assert first["asked"][1:] == [False, True]


def test_events_name_the_number_of_processes(together):
    started = [event for event in runs.Run(together[1] / "mask").events() if event["event"] == "started"]
    assert [event["processes"] for event in started] == [2]
    assert "processes" not in runs.Run(together[0] / "mask").events()[0]


def test_what_processes_tell_each_other(together):
    first, second = (one["words"] for one in told(together[1]))
    assert first["highest"] == second["highest"] == [1, 0, 0]
    assert first["heard"] == second["heard"] == {"from": 0}
    assert first["bytes"] == second["bytes"] == ""
    assert (first["collected"], second["collected"]) == ([[0], [1, 1]], [])
    assert (first["tensors"], second["tensors"]) == ([[], [0]], [])
    assert first["sum"] == second["sum"] == [2, 1]
    assert first["share"] == [[0, 1, 2], []]
    assert second["share"] == [[3, 4, 5, 6], [0]]
    assert first["turn"] < second["turn"]
    assert [one + other for one, other in zip(first["news"], second["news"], strict=True)] == [1, 1]
    assert sorted(first["dealt"] + second["dealt"]) == list(range(5))


def test_a_process_by_itself_is_the_first_of_one():
    alone = group.current()
    assert alone.is_first
    assert alone.is_alone
    assert list(alone.slice_of(3)) == [0, 1, 2]
    assert alone.all_max(3, True) == (3, 1)
    assert alone.gather(b"x") == [b"x"]
    assert list(alone.next_tasks(3)) == [0, 1, 2]
    network = torch.nn.Linear(2, 2)
    assert alone.wrap_ddp(network, torch.device("cpu")) is network


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_every_number_is_of_one_share(count):
    shares = [group.Group(job.ProcessInfo(rank, count)).slice_of(40) for rank in range(count)]
    assert [number for share in shares for number in share] == list(range(40))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("first", [0, 1, 15, 16, 31])
@pytest.mark.parametrize("count", [1, 5, 33])
def test_a_part_of_a_batch_draws_what_all_of_it_draws(first, count):
    whole, part = (seeds.SlotGenerators((1, "x"), slots) for slots in (range(80), range(first, first + count)))
    some = slice(first, first + count)
    for _ in range(2):  # the second time from where the first has left the generators
        for draw, shape in ((draw_normal, (3, 2)), (draw_uniform, ()), (draw_integers, 9)):
            every = draw(torch.zeros(80, 1, 4, 4), whole, shape)
            assert torch.equal(draw(torch.zeros(count, 1, 4, 4), part, shape), every[some])
    assert not torch.equal(every, draw_integers(torch.zeros(80, 1, 4, 4), seeds.SlotGenerators((2, "x"), range(80)), 9))


def test_the_environment_tells_the_place():
    full = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
    }
    assert job.process_info(full) == job.ProcessInfo(3, 4, 1, 1)
    assert job.process_info(full | {"TORCHELASTIC_RESTART_COUNT": "2"}).restarts == 2
    for missing in ("RANK", "MASTER_ADDR"):
        assert job.process_info({key: value for key, value in full.items() if key != missing}).is_alone
    assert job.process_info(full | {"RANK": "many"}).is_alone


@pytest.mark.parametrize("text", ["0", "-1", "soon", "", "1e3"])
def test_a_timeout_that_is_none_is_told(monkeypatch, text):
    monkeypatch.setenv(group.TIMEOUT_VARIABLE, text)
    with pytest.raises(UsageError, match="no number of seconds"):
        group._timeout()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--preset digits-blur --max-restarts 1", "--max-restarts is of --nproc"),
        ("--preset digits-blur --continue", "--continue goes on with the run at --out"),
        ("--resume x --continue", "--continue does not go with --resume"),
        ("--preset digits-blur --nproc 0", "nproc"),
        ("--preset digits-blur --nproc 100000", "--nproc 100000: this machine has"),
        ("--preset digits-blur --nproc 2 --device cuda:1", "--device cuda:1 is one device"),
        ("--preset digits-blur --nproc 2 --set train.stepz=1", "train.stepz"),
        ("--preset digits-blur --nproc 2 --set sample.stride=99", "stride"),
        ("--resume absent --nproc 2", "absent"),
    ],
)
def test_options_that_do_not_go_together_are_told(capsys, monkeypatch, words, what):
    monkeypatch.setattr(launch, "launch", lambda *_: pytest.fail("processes were started for it"))
    assert colddiff(["train", *words.split()]) == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "more", "what"),
    [
        ("--preset digits-blur --nproc 2", {}, "this is a process of it"),
        ("--preset digits-blur", {"TORCHELASTIC_MAX_RESTARTS": "1"}, "must know that it may go on"),
        ("--preset digits-blur --out x", {"TORCHELASTIC_MAX_RESTARTS": "1"}, "must know that it may go on"),
    ],
)
def test_what_a_process_of_a_job_refuses_is_told(capsys, monkeypatch, words, more, what):
    monkeypatch.setattr(__main__, "PATIENCE", 0)  # in which the first one, which has told it, takes the others along
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"} | more
    for rank in range(2):
        for key, value in (place | {"RANK": str(rank)}).items():
            monkeypatch.setenv(key, value)
        assert colddiff(["train", *words.split()]) == 2
        told = capsys.readouterr().err
        assert what in told
        assert told.startswith("colddiff: " if rank == 0 else "colddiff (process 1 of 2): ")


def test_what_launched_processes_have_told_is_not_told_again(monkeypatch, capsys):
    words = ["train", "--preset", "digits-blur", "--nproc", "2", "--max-restarts=1", "--out", "x", "--debug"]
    given = []
    monkeypatch.setattr(launch, "launch", lambda words, *_: given.append(words) or 3)
    assert colddiff(words) == 3
    assert capsys.readouterr().err == ""
    assert given == [["train", "--preset", "digits-blur", "--out", "x", "--debug", "--continue"]]


@pytest.mark.parametrize(("count", "is_refused"), [(0, True), (1, True), (2, False)])
def test_a_gpu_takes_one_process(monkeypatch, count, is_refused):
    monkeypatch.setattr(devices, "choose", lambda _: None)
    monkeypatch.setattr(devices, "units", lambda _: (count, "GPU"))
    with pytest.raises(UsageError, match="this machine has") if is_refused else contextlib.nullcontext():
        launch.check_machine(2, "cuda")


def test_a_gpu_that_is_not_there_is_told_as_such(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="There is no CUDA device"):
        launch.check_machine(2, "cuda")


NCCL = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, {}, NCCL version 2.27.5
{}: an explanation.
Last error:
{}"""


@pytest.mark.parametrize(
    ("error", "kind", "what"),
    [
        (RuntimeError("[/a/gloo/pair.cc:5] Connection closed by peer [1.2.3.4]:5. GLHF!"), LostError, "closed by peer"),
        (RuntimeError("[/a/gloo/buffer.cc:7] Timed out waiting 9ms for recv"), LostError, ": Timed out waiting 9ms"),
        (RuntimeError("Broken pipe"), LostError, ": Broken pipe."),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), LostError, "failed to recv"),
        (dist.DistBackendError(NCCL.format("remote process exited", "ncclRemoteError", "peer")), LostError, "peer"),
        (
            dist.DistBackendError(NCCL.format("invalid usage", "ncclInvalidUsage", "Duplicate GPU")),
            MachineError,
            "Dupl",
        ),
        (RuntimeError("Given groups=1, weight of a Socket"), RuntimeError, "groups"),
    ],
)
def test_what_torch_says_of_others_is_told_apart_from_what_went_wrong_here(monkeypatch, error, kind, what):
    monkeypatch.setattr(group, "place", lambda: job.ProcessInfo(0, 2))
    with pytest.raises(kind) as found, group.guarded():
        raise error
    assert type(found.value) is kind
    assert what in str(found.value)


@pytest.mark.parametrize("key", ["training images", "torch", "precision"])
def test_a_process_that_would_train_otherwise_than_the_first_is_told(tmp_path, monkeypatch, key):
    class Second(group.Group):
        def broadcast_json(self, value):
            return value | {key: "other"}

    trainer = make_trainer(tmp_path / "run")
    trainer.run.close()
    start.check_alike(trainer)
    monkeypatch.setattr(group, "_joined", Second(job.ProcessInfo(1, 2)))
    with pytest.raises(UsageError, match=f"Process 1 differs from the first one in {key}: .*, not other"):
        start.check_alike(trainer)


TRAIN = ["train", "--preset", "digits-mask", *(word for key in ranks_job.TINY for word in ("--set", key))]


def test_continue_begins_a_run_and_goes_on_with_it(tmp_path, capsys):
    out = tmp_path / "run"
    words = [*TRAIN, "--out", str(out), "--continue"]
    assert colddiff(words) == 0
    assert colddiff([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"run": str(out), "step": STEPS, "finished": True}
    assert colddiff([*words, "--set", "train.lr=0.5"]) == 2
    assert "begun with other settings: train.lr" in capsys.readouterr().err
    (out / "events.jsonl").write_text("")
    for path in runs.Run(out).checkpoints()[1:]:
        checkpoint.set_aside(path)
    assert colddiff(words) == 0
    assert runs.Run(out).checkpoints()[-1].name == f"step-{STEPS:06d}"


def process_of(launcher, rank):
    """Return the number of the process of a job that has a rank, None before it is there."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    for child in children.read_text().split():
        try:
            content = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in content:
            return int(child)
    return None


NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
ENDLESS = ["--set", "train.steps=1000000", "--set", "train.checkpoint_every=1000000"]


@contextlib.contextmanager
def launched(out, *words, **more):
    """A training of two processes into a folder, once its first step is logged; none of it is left at the end."""
    command = [sys.executable, "-m", "colddiff_cli", *TRAIN, *words, "--out", str(out), "--nproc", "2"]
    log = out.with_suffix(".log").open("w+")
    launcher = subprocess.Popen(command, env=environment(), stderr=log, stdout=log, **more)
    try:
        wait_for(lambda: out.is_dir() and runs.Run(out).metrics())
        workers = [process_of(launcher.pid, rank) for rank in range(2)]
        yield launcher, workers
        launcher.wait(timeout=60)
        wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    finally:
        launcher.kill()
        log.close()


def wait_for(is_so, patience=120):
    until = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


@NEEDS_PROC
def test_a_stop_that_cannot_be_saved_ends_all_processes_with_the_reason(tmp_path):
    out = tmp_path / "run"
    # As nohup has it: a terminal that goes away is not its business.
    with launched(out, *ENDLESS, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as (launcher, _):
        os.kill(launcher.pid, signal.SIGHUP)
        step = runs.Run(out).metrics()[-1]["step"]
        wait_for(lambda: runs.Run(out).metrics()[-1]["step"] > step + 20)
        (out / "checkpoints").rmdir()
        (out / "checkpoints").touch()  # in the way of a folder
        launcher.terminate()
    assert launcher.returncode == 1
    events = [event["event"] for event in runs.Run(out).events()]
    assert events == ["started", "failed"]
    assert "Cannot write" in out.with_suffix(".log").read_text()


@NEEDS_PROC
def test_processes_whose_agent_was_killed_save_and_end(tmp_path):
    out = tmp_path / "run"
    with launched(out, *ENDLESS) as (launcher, _):
        launcher.kill()
    run = runs.Run(out)
    assert [event["event"] for event in run.events()] == ["started", "checkpoint", "stopped"]
    assert run.checkpoints()


@NEEDS_PROC
def test_a_job_of_which_a_process_is_killed_starts_again_and_finishes(tmp_path):
    out, steps = tmp_path / "run", 150
    longer = ["--set", f"train.steps={steps}", "--set", "train.checkpoint_every=10", "--set", "train.precision=float32"]
    words = [*TRAIN, *longer, "--out", str(out)]
    command = [sys.executable, "-m", "colddiff_cli", *words, "--nproc", "2", "--max-restarts", "1"]
    launcher = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while not (out.is_dir() and len(runs.Run(out).checkpoints()) >= 2) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(process_of(launcher.pid, 1), signal.SIGKILL)
        _, errors = launcher.communicate(timeout=120)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, errors
    assert errors.count("Process 0 of 2 has lost the others") == 1
    assert "Traceback" not in errors
    events = runs.Run(out).events()
    names = [event["event"] for event in events]
    assert names.count("failed") == names.count("resumed") == names.count("finished") == 1
    resumed = next(event["step"] for event in events if event["event"] == "resumed")
    assert resumed >= 20  # none of the work before the last checkpoint is done again
    assert colddiff([*words[:-1], str(tmp_path / "alone")]) == 0
    alone, both = (runs.Run(path).metrics()[-1] for path in (tmp_path / "alone", out))
    assert both["loss"] == pytest.approx(alone["loss"], rel=0.01)  # 150 steps of Adam let rounding grow
