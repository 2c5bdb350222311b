"""Threads follow the load: fewer while other programs use the processors, all of them afterwards."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator

import pytest
import torch

from colddiff_core import degradations
from colddiff_core.distributed import threads
from colddiff_core.distributed.threads import ProcessorTimes, ThreadShare

PROBE = """
import os, sys
from colddiff_cli import __main__
from colddiff_core.distributed import threads
sys.argv = ["colddiff", "--version"]
try:
    __main__.main()
except SystemExit:
    print(threads._is_allowed)
"""


class Machine:
    """A machine whose processors are shared fairly by this process's threads and the loops of others."""

    def __init__(self, count: int) -> None:
        self.count, self.loops, self.threads, self.spinning = count, 0.0, count, 1.0
        self.clock = self.idle = self.own = 0.0

    def pass_second(self) -> None:
        asked = self.threads * self.spinning
        share = min(1.0, self.count / (asked + self.loops))
        self.clock += 1.0
        self.own += asked * share
        self.idle += self.count - (asked + self.loops) * share

    def measure(self) -> ProcessorTimes:
        return ProcessorTimes(self.clock, self.idle, self.own, self.count)


def followed(machine: Machine, share: ThreadShare, seconds: int) -> Iterator[int]:
    for _ in range(seconds):
        machine.pass_second()
        assert share.is_due(machine.clock)
        machine.threads = share.decide()
        yield machine.threads


@pytest.mark.parametrize("count", [2, 4, 16, 64])
def test_an_idle_machine_is_used_whole(count):
    machine = Machine(count)
    share = ThreadShare(count, machine.measure)
    assert set(followed(machine, share, 10)) == {count}
    machine.spinning = 0.3  # a command that mostly waits for the disk
    assert set(followed(machine, share, 10)) == {count}


@pytest.mark.parametrize(
    ("count", "loops", "left"), [(2, 2, 1), (2, 1, 1), (4, 2, 2), (8, 8, 1), (64, 16, 48), (64, 64, 1)]
)
def test_others_are_made_room_for_within_seconds_and_their_place_is_taken_again(count, loops, left):
    machine = Machine(count)
    share = ThreadShare(count, machine.measure)
    machine.loops = loops
    assert list(followed(machine, share, 5))[1:] == [left] * 4
    assert set(followed(machine, share, 20)) == {left}  # no swinging
    machine.loops = 0
    *_, last = followed(machine, share, 4)
    assert last == count


def test_a_program_of_a_second_changes_nothing_for_long():
    machine = Machine(2)
    share = ThreadShare(2, machine.measure)
    machine.loops = 2
    assert list(followed(machine, share, 1)) == [1]
    machine.loops = 0
    assert list(followed(machine, share, 4)) == [1, 1, 2, 2]


def test_the_real_measure_counts_this_process_and_what_nobody_uses():
    first = threads.measured_times()
    sum(range(3_000_000))
    second = threads.measured_times()
    assert second.own > first.own
    assert second.idle >= first.idle
    assert second.clock > first.clock
    assert second.count >= 1


@pytest.fixture
def torch_threads(monkeypatch) -> list[int]:
    """Return the numbers that torch's threads are set to, on a machine whose load changes the number at every look."""
    given: list[int] = []
    numbers = iter([1, 1, 4])

    def decide(share: ThreadShare) -> int:
        share.current = next(numbers)
        return share.current

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(ThreadShare, "decide", decide)
    monkeypatch.setattr(ThreadShare, "is_due", lambda *_: True)
    for name, value in {"_share": None, "_is_allowed": False, "_has_varied": False}.items():
        monkeypatch.setattr(threads, name, value)
    return given


def test_operators_follow_where_the_number_is_not_set(torch_threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    blur, x0 = degradations.build("blur"), torch.zeros(1, 1, 8, 8)
    blur(x0, 1)
    assert torch_threads == []  # a library leaves the number alone
    threads.follow_load()
    for _ in range(4):
        blur(x0, 1)
    assert torch_threads == [1, 4]
    assert threads.has_varied()


@pytest.mark.parametrize("variables", [{"OMP_NUM_THREADS": "4"}, {"RANK": "0", "WORLD_SIZE": "2"}])
def test_a_number_that_was_set_and_processes_that_share_a_machine_keep_it(torch_threads, monkeypatch, variables):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        threads.environment, "process_info", lambda: types.SimpleNamespace(is_alone="RANK" not in variables)
    )
    threads.follow_load()
    degradations.build("blur")(torch.zeros(1, 1, 8, 8), 1)
    assert torch_threads == []


@pytest.mark.parametrize(("variables", "is_allowed"), [({}, "True"), ({"OMP_NUM_THREADS": "2"}, "False")])
def test_the_command_line_follows_the_load(monkeypatch, variables, is_allowed):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finished = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == is_allowed
