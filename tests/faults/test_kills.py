"""SIGKILL at any instant: every run goes on, loses nothing that was saved, and ends with the same bits."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import tally
import trainings

FAULTS = ("operation", "line", "tensors", "picture")
MOST = {"operation": 260, "line": 90, "tensors": 30, "picture": 4}  # numbers a training gets to, or nearly


def killed_once(run: Path, chance: random.Random, kind: str) -> bool:
    """Train a run until it is killed; returns False where it came to its end before."""
    if kind in FAULTS:
        process = trainings.start(run, fault=(kind, chance.randint(1, MOST[kind])))
        code, said = trainings.end(process)
        assert code in (0, -signal.SIGKILL), said
        return code != 0
    process, before = trainings.start(run), trainings.beginnings(run)
    if kind == "clock":
        trainings.await_beginning(run, process, before)
    time.sleep(chance.uniform(0, 1.0 if kind == "clock" else 3.0))
    process.kill()
    code, said = trainings.end(process)
    assert code in (0, -signal.SIGKILL), said
    return code != 0


def is_finished(run: Path) -> bool:
    return any(event["event"] == "finished" for event in trainings.runs.Run(run).events())


def survive(folder: Path, kinds: list[str], seed: int, undisturbed: trainings.Left) -> None:
    """Kill trainings once for each kind, over as many runs as that takes, and hold each run to the undisturbed one."""
    chance = random.Random(seed)
    wanted, number = list(kinds), 0
    while wanted:
        number += 1
        run, kills, losses = folder / f"run-{number}", 0, trainings.Losses()
        while wanted and not is_finished(run):
            if killed_once(run, chance, wanted[-1]):
                wanted.pop()
                kills += 1
                losses.look(run)
        if not is_finished(run):
            trainings.finish(run)
        assert (losses.checkpoints, losses.lines) == (0, 0), f"{run}: lost {losses}"
        trainings.hold(
            "SIGKILL", run, undisturbed, tried=kills, survived=kills, runs=1, steps_taken_again=losses.steps_again
        )
        tally.add("  found", **losses.states)


def mixed(chance: random.Random, count: int) -> list[str]:
    """Return kinds of kills: four tenths by the clock, some of them before the training begins, the rest at files."""
    shares = ["clock"] * 3 + ["start"] + ["operation"] * 3 + ["line", "tensors", "picture"]
    kinds = [shares[i % len(shares)] for i in range(count)]
    chance.shuffle(kinds)
    return kinds


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, undisturbed):
    survive(tmp_path, ["picture", "operation", "clock", "tensors", "line"], 1, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_kills(tmp_path, undisturbed, seed):
    survive(tmp_path, mixed(random.Random(seed), 30), seed, undisturbed)
