"""SIGKILL at any moment: every run resumes, loses nothing that was saved, and ends bit-identical."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import tally
import trainings

FAULTS = ("operation", "line", "tensors", "picture")
MAX_NUMBER = {"operation": 260, "line": 90, "tensors": 30, "picture": 4}  # about as many as a long training has


def killed_once(run: Path, length: trainings.Length, chance: random.Random, kind: str) -> bool:
    """Train a run until it is killed; return False if it finished first."""
    if kind in FAULTS:
        number = chance.randint(1, length.up_to(MAX_NUMBER[kind]))
        process = trainings.start(run, length, fault=(kind, number))
        code, output = trainings.end(process)
        assert code in (0, -signal.SIGKILL), output
        return code != 0
    before = trainings.beginnings(run)
    process = trainings.start(run, length) if kind == "clock" else trainings.start_fresh(run, length)
    if kind == "clock":
        trainings.await_beginning(run, process, before)
    time.sleep(chance.uniform(0, length.share if kind == "clock" else 3.0))
    process.kill()
    code, output = trainings.end(process)
    assert code in (0, -signal.SIGKILL), output
    return code != 0


def is_finished(run: Path) -> bool:
    return any(event["event"] == "finished" for event in trainings.runs.Run(run).events())


def survive(folder: Path, kinds: list[str], seed: int, undisturbed: trainings.RunFiles) -> None:
    """Kill trainings once for each kind, over as many runs as needed, and compare each run with the undisturbed one."""
    chance = random.Random(seed)
    pending, number = list(kinds), 0
    while pending:
        number += 1
        run, kills, losses = folder / f"run-{number}", 0, trainings.Losses()
        while pending and not is_finished(run):
            if killed_once(run, undisturbed.length, chance, pending[-1]):
                pending.pop()
                kills += 1
                losses.update(run)
        if not is_finished(run):
            trainings.finish(run, undisturbed.length)
        assert (losses.checkpoints, losses.lines) == (0, 0), f"{run}: lost {losses}"
        trainings.check_result(
            "SIGKILL", run, undisturbed, tried=kills, survived=kills, runs=1, steps_taken_again=losses.steps_again
        )
        tally.add("  found", **losses.states)


def mixed(chance: random.Random, count: int) -> list[str]:
    """Return kinds of kills: four tenths by the clock, some before training starts, the rest during file operations."""
    shares = ["clock"] * 3 + ["start"] + ["operation"] * 3 + ["line", "tensors", "picture"]
    kinds = [shares[i % len(shares)] for i in range(count)]
    chance.shuffle(kinds)
    return kinds


def test_a_killed_training_ends_bit_identical(tmp_path, undisturbed):
    survive(tmp_path, ["picture", "operation", "clock", "tensors", "line"], 1, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_kills(tmp_path, undisturbed, seed):
    survive(tmp_path, mixed(random.Random(seed), 30), seed, undisturbed)
