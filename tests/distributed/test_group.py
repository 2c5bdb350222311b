"""Several processes train the same run as one process, and exchange values."""

from __future__ import annotations

import functools
import json

import launches
import processes
import pytest
import ranks_job
import torch
import torch.distributed as dist
from conftest import make_trainer
from safetensors.torch import load_file

from colddiff_core import runs, seeds
from colddiff_core.degradations.draws import draw_integers, draw_normal, draw_uniform
from colddiff_core.distributed import environment, group, rendezvous
from colddiff_core.errors import LostError, MachineError, UsageError
from colddiff_core.runs import checkpoint
from colddiff_core.training import start

TOLERANCE = 1e-5  # relative, of float32 losses summed in another order
WEIGHTS = 1e-4  # absolute, of weights after some steps of Adam, which divides by small numbers


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run ranks_job.main as two processes over Gloo, and the same trainings as one process."""
    alone, both = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("both")
    for folder in (alone, both):  # begun by one process
        trainer = ranks_job.build(folder / "resumed", "digits-mask")
        for tick in trainer.steps():
            if tick.step == 3:
                trainer.stop()
        trainer.run.close()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    acts = [functools.partial(ranks_job.main, both, own) for own in launches.environments(2)]
    job = launches.LaunchedJob([processes.fork(act) for act in acts])
    try:
        for name, (preset, overrides) in ranks_job.CASES.items():
            ranks_job.finish(ranks_job.build(alone / name, preset, *overrides))
        ranks_job.finish(ranks_job.build(alone / "resumed", "digits-mask"))
    finally:
        codes = job.wait()
        torch.set_num_threads(threads)
    assert codes == [0, 0], job.output("err")
    return alone, both


def results(folder):
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(2)]


def weights(folder, name=checkpoint.MODEL):
    return load_file(runs.Run(folder).newest_checkpoint() / name)


@pytest.mark.parametrize("case", [*ranks_job.CASES, "resumed"])
def test_two_processes_make_the_run_that_one_makes(folders, case):
    one, two = (folder / case for folder in folders)
    lines = [runs.Run(path).metrics() for path in (one, two)]
    assert (
        [line["step"] for line in lines[0]]
        == [line["step"] for line in lines[1]]
        == list(range(1, ranks_job.STEPS + 1))
    )
    for alone, both in zip(*lines, strict=True):
        pairs = [(alone[key], both[key]) for key in ("loss", "grad_norm", "lr")]
        pairs += zip(alone["loss_by_severity"], both["loss_by_severity"], strict=True)
        for expected, actual in pairs:
            assert actual == (expected if expected is None else pytest.approx(expected, rel=TOLERANCE))
    for name in (checkpoint.MODEL, checkpoint.AVERAGE):
        actual, expected = weights(two, name), weights(one, name)
        for key, tensor in expected.items():
            torch.testing.assert_close(actual[key], tensor, rtol=0, atol=WEIGHTS)


def test_bit_for_bit_if_each_process_takes_one_forward_pass(folders):
    one, two = (weights(folder / "passes") for folder in folders)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_one_process_resumes_a_run_of_two(folders, tmp_path):
    trainer = ranks_job.build(folders[1] / "asked", "digits-mask", "train.steps=500", "sample.stride=1")
    assert 1 <= trainer.step < 500
    assert sum(event["event"] == "resumed" for event in trainer.run.events()) == 2  # one of them from a pause
    trainer.run.close()


def test_a_bad_step_of_one_process_is_skipped_by_all(folders):
    run = runs.Run(folders[1] / "spoiled")
    warned = [event["message"] for event in run.events() if event["event"] == "warning"]
    assert warned == ["step 2 skipped: the loss was nan"]
    assert [line["loss"] is None for line in run.metrics()].count(True) == 0
    first, second = results(folders[1])
    assert first["weights"] == second["weights"]


def test_requests_reach_all_processes(folders):
    events = [event["event"] for event in runs.Run(folders[1] / "asked").events()]
    assert events.index("paused") < events.index("resumed") < events.index("sample") < events.index("stopped")
    first, second = results(folders[1])
    assert first["asked"] == second["asked"]
    assert first["asked"][1:] == [False, True]


def test_events_name_the_number_of_processes(folders):
    started = [event for event in runs.Run(folders[1] / "mask").events() if event["event"] == "started"]
    assert [event["processes"] for event in started] == [2]
    assert "processes" not in runs.Run(folders[0] / "mask").events()[0]


def test_processes_exchange_values(folders):
    first, second = (one["words"] for one in results(folders[1]))
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


def test_a_single_process_is_the_first_of_one():
    alone = group.current()
    assert alone.is_first
    assert alone.is_alone
    assert list(alone.slice_of(3)) == [0, 1, 2]
    assert alone.all_max(3, True) == (3, 1)
    assert alone.gather(b"x") == [b"x"]
    assert list(alone.next_tasks(3)) == [0, 1, 2]
    network = torch.nn.Linear(2, 2)
    assert alone.wrap_ddp(network, torch.device("cpu")) is network


def test_the_group_is_known_without_torch():
    assert environment.joined() is None
    pair = group.Group(environment.ProcessInfo(0, 2))
    group._switch(pair)
    try:
        assert group.current() is environment.joined() is pair
        assert environment.has_met()
        with group.alone():
            assert environment.joined() is None
        assert environment.joined() is pair
    finally:
        group.leave()
    assert not environment.has_met()
    assert group.current() is group.ALONE


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_every_number_is_in_one_share(count):
    shares = [group.Group(environment.ProcessInfo(rank, count)).slice_of(40) for rank in range(count)]
    assert [number for share in shares for number in share] == list(range(40))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("first", [0, 1, 15, 16, 31])
@pytest.mark.parametrize("count", [1, 5, 33])
def test_part_of_a_batch_draws_the_values_of_the_whole(first, count):
    whole, part = (seeds.SlotGenerators((1, "x"), slots) for slots in (range(80), range(first, first + count)))
    selected = slice(first, first + count)
    for _ in range(2):  # the second draw continues where the first ended
        for draw, shape in ((draw_normal, (3, 2)), (draw_uniform, ()), (draw_integers, 9)):
            every = draw(torch.zeros(80, 1, 4, 4), whole, shape)
            assert torch.equal(draw(torch.zeros(count, 1, 4, 4), part, shape), every[selected])
    assert not torch.equal(every, draw_integers(torch.zeros(80, 1, 4, 4), seeds.SlotGenerators((2, "x"), range(80)), 9))


def test_the_environment_gives_the_rank():
    full = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
    }
    assert environment.process_info(full) == environment.ProcessInfo(3, 4, 1, 1)
    assert environment.process_info(full | {"TORCHELASTIC_RESTART_COUNT": "2"}).restarts == 2
    for missing in ("RANK", "MASTER_ADDR"):
        assert environment.process_info({key: value for key, value in full.items() if key != missing}).is_alone
    assert environment.process_info(full | {"RANK": "many"}).is_alone


@pytest.mark.parametrize("text", ["0", "-1", "soon", "", "1e3"])
def test_an_invalid_timeout_is_refused(monkeypatch, text):
    monkeypatch.setenv(rendezvous.TIMEOUT_VARIABLE, text)
    with pytest.raises(UsageError, match="is not a number of seconds"):
        rendezvous.timeout_seconds()


NCCL = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, {}, NCCL version 2.27.5
{}: an explanation.
Last error:
{}"""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
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
def test_lost_processes_are_distinguished_from_local_errors(monkeypatch, error, kind, words):
    monkeypatch.setattr(group, "process_info", lambda: environment.ProcessInfo(0, 2))
    with pytest.raises(kind) as caught, group.guarded():
        raise error
    assert type(caught.value) is kind
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["training images", "torch", "precision"])
def test_a_process_that_differs_from_the_first_is_refused(tmp_path, monkeypatch, key):
    class Second(group.Group):
        def broadcast_json(self, value):
            return value | {key: "other"}

    trainer = make_trainer(tmp_path / "run")
    trainer.run.close()
    start.check_same_everywhere(trainer)
    monkeypatch.setattr(group, "_joined", Second(environment.ProcessInfo(1, 2)))
    with pytest.raises(UsageError, match=f"Process 1 differs from the first one in {key}: .*, not other"):
        start.check_same_everywhere(trainer)
