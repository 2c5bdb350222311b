"""Training on two hosts: short and long network cuts, and a host that goes down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hosts
import pytest
import tally

from colddiff_core import runs

pytestmark = pytest.mark.slow

STEPS, CHECKPOINT_EVERY, CUT_STEP = 200, 40, 100
SETTINGS = (
    "data.size=12",
    "model.width=8",
    "model.multipliers=[1,2]",
    "degradation.steps=5",
    "train.precision=float32",
    "train.batch_size=8",
    "train.accumulate=2",
    f"train.steps={STEPS}",
    f"train.checkpoint_every={CHECKPOINT_EVERY}",
    "train.sample_every=0",
    "train.log_every=1",
)
TIMEOUT_SECONDS = 120  # for what should take twenty
TIMING_KEYS = ("images_per_second", "elapsed")  # differ between any two trainings


@pytest.fixture
def pair() -> Iterator[hosts.Hosts]:
    if why := hosts.missing():
        pytest.skip(why)
    with hosts.two_hosts() as found:
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the log of the same training on one process."""
    if why := hosts.missing():
        pytest.skip(why)
    run = tmp_path_factory.mktemp("alone") / "run"
    environment = os.environ | {"PYTHONPATH": str(hosts.ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "colddiff_cli", *words(run)], capture_output=True, check=True, env=environment
    )
    return lines(run)


def words(run: Path) -> list[str]:
    """Return the command line of every host, for the first start and after a failure."""
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["train", "--preset", "digits-mask", "--out", str(run), "--continue", "--device", "cpu", *sets]


def lines(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in runs.Run(run).metrics()]


def step_of(run: Path) -> int:
    found = runs.Run(run).metrics() if (run / "metrics.jsonl").exists() else []
    return found[-1]["step"] if found else 0


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in runs.Run(run).events() if event["event"] == name]


class HostsJob:
    """One training on both hosts, in one folder."""

    def __init__(self, pair: hosts.Hosts, folder: Path, timeout: int, conf: str = hosts.RENDEZVOUS_CONF) -> None:
        self.pair, self.run, self._folder = pair, folder / "run", folder
        self._timeout, self._conf = timeout, conf
        self.agents = [self.start(host) for host in range(2)]

    def start(self, host: int) -> subprocess.Popen[bytes]:
        more = {"COLDDIFF_TIMEOUT": str(self._timeout)}
        return self.pair.torchrun(host, words(self.run), self._folder / f"log-{host}", self._conf, **more)

    def output(self) -> str:
        return "\n".join((self._folder / f"log-{host}").read_text(errors="replace") for host in range(2))

    def until(self, is_true: Callable[[], bool], timeout: float = TIMEOUT_SECONDS) -> float:
        """Wait for a condition; return how many seconds it took."""
        began = time.monotonic()
        while not is_true():
            assert time.monotonic() - began < timeout, self.output()[-4000:]
            time.sleep(0.05)
        return time.monotonic() - began

    def pull(self, seconds: float) -> int:
        """Cut the network in the middle of the training; return the step at the cut."""
        self.until(lambda: step_of(self.run) >= CUT_STEP)
        self.pair.pull()
        time.sleep(0.5)  # for packets in flight
        step = step_of(self.run)
        time.sleep(seconds - 0.5)
        assert step_of(self.run) == step, "a step was taken without the other host"
        self.pair.plug()
        return step

    def end(self) -> list[int]:
        return hosts.end(*self.agents, timeout=TIMEOUT_SECONDS)

    def check_result(self, alone: list[dict[str, Any]]) -> None:
        """Check that the training ended as the one on a single process."""
        assert self.end() == [0, 0], self.output()[-4000:]
        assert [line["step"] for line in lines(self.run)] == list(range(1, STEPS + 1))
        assert json.dumps(lines(self.run)) == json.dumps(alone)
        assert len(events(self.run, "finished")) == 1


def count(scenario: str, **seconds: float) -> None:
    tally.add(scenario, tried=1, survived=1, **{name: round(value, 1) for name, value in seconds.items()})


def test_two_hosts_train_as_one_process(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=30)
    job.check_result(alone)
    assert events(job.run, "started")[0]["processes"] == 2
    count("two hosts")


def test_a_short_network_cut_is_waited_out(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=30)
    step = job.pull(5)
    waited = job.until(lambda: step_of(job.run) > step)
    job.check_result(alone)
    assert not events(job.run, "failed")
    assert not events(job.run, "resumed")
    count("network cut for 5 s of 30", seconds_until_it_went_on=waited)


def test_agents_do_not_end_a_training_that_waits_out_a_cut(pair, tmp_path, alone):
    """After 15 s the rendezvous considers the other agent dead; the training must not end."""
    job = HostsJob(pair, tmp_path, timeout=60)
    step = job.pull(20)
    waited = job.until(lambda: step_of(job.run) > step)
    job.check_result(alone)
    assert not events(job.run, "resumed")
    count("network cut for 20 s of 60", seconds_until_it_went_on=waited)


def test_after_a_long_cut_the_job_resumes_from_its_last_checkpoint(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=10)
    step = job.pull(20)
    waited = job.until(lambda: bool(events(job.run, "resumed")))
    again = job.until(lambda: step_of(job.run) > step)
    job.check_result(alone)
    assert "has lost the others" in job.output()
    (resumed,) = events(job.run, "resumed")
    assert resumed["step"] == step // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    count("network cut for 20 s of 10", seconds_until_resumed=waited, seconds_until_where_it_was=waited + again)


def test_agents_that_gave_up_can_be_restarted_by_hand(pair, tmp_path, alone):
    """An agent that waits longer than its read_timeout for the other's store ends, and so does the job there."""
    job = HostsJob(pair, tmp_path, timeout=8, conf="read_timeout=10")
    job.pull(30)
    assert all(job.end())
    job.agents = [job.start(host) for host in range(2)]
    waited = job.until(lambda: bool(events(job.run, "resumed")))
    job.check_result(alone)
    count("network cut for longer than the agents wait", seconds_until_resumed=waited)


def test_a_job_waits_for_a_host_that_went_down(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=30)
    job.until(lambda: step_of(job.run) >= CUT_STEP)
    pair.switch_off(1)
    noticed = job.until(lambda: bool(events(job.run, "failed")))
    job.agents[1].wait()
    job.agents[1] = job.start(1)
    waited = job.until(lambda: bool(events(job.run, "resumed")))
    job.check_result(alone)
    count("the second host gone", seconds_until_noticed=noticed, seconds_until_resumed=waited)


def test_the_next_job_resumes_after_a_scheduler_ends_both_hosts(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=30)
    job.until(lambda: step_of(job.run) >= CUT_STEP)
    for agent in job.agents:
        agent.terminate()
    ended = job.until(lambda: all(agent.poll() is not None for agent in job.agents))
    assert all(agent.returncode for agent in job.agents)
    (stopped,) = events(job.run, "stopped")
    assert stopped["by"] == "SIGTERM"
    job.agents = [job.start(host) for host in range(2)]
    job.check_result(alone)
    (resumed,) = events(job.run, "resumed")
    assert resumed["step"] == stopped["step"]
    count("SIGTERM to both agents", seconds_until_ended=ended)
