"""Two hosts that train together: a network that is cut, shortly and for long, a host that is gone."""

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

STEPS, SAVED, CUT = 200, 40, 100
SETTINGS = (
    "data.size=12",
    "model.width=8",
    "model.multipliers=[1,2]",
    "degradation.steps=5",
    "train.precision=float32",
    "train.batch_size=8",
    "train.accumulate=2",
    f"train.steps={STEPS}",
    f"train.checkpoint_every={SAVED}",
    "train.sample_every=0",
    "train.log_every=1",
)
PATIENCE = 120  # seconds for what should take twenty
TIMED = ("images_per_second", "elapsed")  # of a line, which no two trainings share


@pytest.fixture
def pair() -> Iterator[hosts.Hosts]:
    if why := hosts.missing():
        pytest.skip(why)
    with hosts.two_hosts() as found:
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process logs of the same training."""
    if why := hosts.missing():
        pytest.skip(why)
    run = tmp_path_factory.mktemp("alone") / "run"
    told = os.environ | {"PYTHONPATH": str(hosts.ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "colddiff_cli", *words(run)], capture_output=True, check=True, env=told)
    return lines(run)


def words(run: Path) -> list[str]:
    """Return the command line that every host is given, the first time and after a failure alike."""
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["train", "--preset", "digits-mask", "--out", str(run), "--continue", "--device", "cpu", *sets]


def lines(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMED} for line in runs.Run(run).metrics()]


def step_of(run: Path) -> int:
    found = runs.Run(run).metrics() if (run / "metrics.jsonl").exists() else []
    return found[-1]["step"] if found else 0


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in runs.Run(run).events() if event["event"] == name]


class HostsJob:
    """A training that both hosts share, in one folder."""

    def __init__(self, pair: hosts.Hosts, folder: Path, timeout: int, conf: str = hosts.PATIENCE) -> None:
        self.pair, self.run, self._folder = pair, folder / "run", folder
        self._timeout, self._conf = timeout, conf
        self.agents = [self.start(host) for host in range(2)]

    def start(self, host: int) -> subprocess.Popen[bytes]:
        more = {"COLDDIFF_TIMEOUT": str(self._timeout)}
        return self.pair.torchrun(host, words(self.run), self._folder / f"log-{host}", self._conf, **more)

    def said(self) -> str:
        return "\n".join((self._folder / f"log-{host}").read_text(errors="replace") for host in range(2))

    def until(self, is_so: Callable[[], bool], patience: float = PATIENCE) -> float:
        """Wait for something; returns how many seconds it took."""
        began = time.monotonic()
        while not is_so():
            assert time.monotonic() - began < patience, self.said()[-4000:]
            time.sleep(0.05)
        return time.monotonic() - began

    def pull(self, seconds: float) -> int:
        """Cut the network for a while, in the middle of the training; returns the step that it was cut at."""
        self.until(lambda: step_of(self.run) >= CUT)
        self.pair.pull()
        time.sleep(0.5)  # what was on its way
        step = step_of(self.run)
        time.sleep(seconds - 0.5)
        assert step_of(self.run) == step, "a step was taken without the others"
        self.pair.plug()
        return step

    def end(self) -> list[int]:
        return hosts.end(*self.agents, patience=PATIENCE)

    def hold(self, alone: list[dict[str, Any]]) -> None:
        """Fail where the training did not come to the end that one process comes to."""
        assert self.end() == [0, 0], self.said()[-4000:]
        assert [line["step"] for line in lines(self.run)] == list(range(1, STEPS + 1))
        assert json.dumps(lines(self.run)) == json.dumps(alone)
        assert len(events(self.run, "finished")) == 1


def count(scenario: str, **seconds: float) -> None:
    tally.add(scenario, tried=1, survived=1, **{name: round(value, 1) for name, value in seconds.items()})


def test_two_hosts_train_as_one_process(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=30)
    job.hold(alone)
    assert events(job.run, "started")[0]["processes"] == 2
    count("two hosts")


def test_a_network_that_is_back_in_time_is_waited_for(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=30)
    step = job.pull(5)
    waited = job.until(lambda: step_of(job.run) > step)
    job.hold(alone)
    assert not events(job.run, "failed")
    assert not events(job.run, "resumed")
    count("network cut for 5 s of 30", seconds_until_it_went_on=waited)


def test_agents_that_cannot_see_each_other_for_long_leave_a_waiting_training_alone(pair, tmp_path, alone):
    """After 15 s the rendezvous takes the other agent for dead; that ends nothing."""
    job = HostsJob(pair, tmp_path, timeout=60)
    step = job.pull(20)
    waited = job.until(lambda: step_of(job.run) > step)
    job.hold(alone)
    assert not events(job.run, "resumed")
    count("network cut for 20 s of 60", seconds_until_it_went_on=waited)


def test_after_a_longer_cut_the_job_goes_on_from_its_last_checkpoint(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=10)
    step = job.pull(20)
    waited = job.until(lambda: bool(events(job.run, "resumed")))
    again = job.until(lambda: step_of(job.run) > step)
    job.hold(alone)
    assert "has lost the others" in job.said()
    (resumed,) = events(job.run, "resumed")
    assert resumed["step"] == step // SAVED * SAVED
    count("network cut for 20 s of 10", seconds_until_resumed=waited, seconds_until_where_it_was=waited + again)


def test_agents_that_gave_up_are_started_again_by_hand(pair, tmp_path, alone):
    """An agent that waited for the other's store longer than its read_timeout ends, and so does the other's job."""
    job = HostsJob(pair, tmp_path, timeout=8, conf="read_timeout=10")
    job.pull(30)
    assert all(job.end())
    job.agents = [job.start(host) for host in range(2)]
    waited = job.until(lambda: bool(events(job.run, "resumed")))
    job.hold(alone)
    count("network cut for longer than the agents wait", seconds_until_resumed=waited)


def test_a_host_that_is_gone_is_waited_for(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=30)
    job.until(lambda: step_of(job.run) >= CUT)
    pair.switch_off(1)
    noticed = job.until(lambda: bool(events(job.run, "failed")))
    job.agents[1].wait()
    job.agents[1] = job.start(1)
    waited = job.until(lambda: bool(events(job.run, "resumed")))
    job.hold(alone)
    count("the second host gone", seconds_until_noticed=noticed, seconds_until_resumed=waited)


def test_a_scheduler_ends_both_and_the_next_job_goes_on(pair, tmp_path, alone):
    job = HostsJob(pair, tmp_path, timeout=30)
    job.until(lambda: step_of(job.run) >= CUT)
    for agent in job.agents:
        agent.terminate()
    ended = job.until(lambda: all(agent.poll() is not None for agent in job.agents))
    assert all(agent.returncode for agent in job.agents)
    (stopped,) = events(job.run, "stopped")
    assert stopped["by"] == "SIGTERM"
    job.agents = [job.start(host) for host in range(2)]
    job.hold(alone)
    (resumed,) = events(job.run, "resumed")
    assert resumed["step"] == stopped["step"]
    count("SIGTERM to both agents", seconds_until_ended=ended)
