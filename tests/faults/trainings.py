"""Real trainings in processes of their own, to be killed, and what must be left of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import tally

from colddiff_core import runs

STEPS, SAVED, SAMPLED = 120, 7, 20
SETTINGS = (
    "data.size=12",
    "model.width=8",
    "model.multipliers=[1,2]",
    "degradation.steps=5",
    "train.batch_size=8",
    f"train.steps={STEPS}",
    f"train.checkpoint_every={SAVED}",
    f"train.sample_every={SAMPLED}",
    "train.log_every=1",
)
TIMED = ("images_per_second", "elapsed")  # of a line, which no two trainings share
PATIENCE = 120  # seconds for a training that is to end by itself
MORTAL = Path(__file__).with_name("mortal.py")
ROOT = Path(__file__).parents[2]


def arguments(run: Path, *more: str) -> list[str]:
    """Return the arguments that train a run: a new one, or the one that is there."""
    if (run / "run.toml").exists():
        return ["train", "--resume", str(run), *more]
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["train", "--preset", "digits-blur", "--out", str(run), *sets, *more]


def start(run: Path, *more: str, fault: tuple[str, int] = ("none", 0), **options: object) -> subprocess.Popen[str]:
    """Start a training of a run, under a fault of mortal.py, and return its process."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    words = [sys.executable, str(MORTAL), fault[0], str(fault[1]), str(run), *arguments(run, *more)]
    return subprocess.Popen(words, text=True, env=environment, **options)


def end(process: subprocess.Popen[str], patience: float = PATIENCE) -> tuple[int, str]:
    """Wait for a training to end; returns its exit code and what it said."""
    said, _ = process.communicate(timeout=patience)
    return process.returncode, said


def finish(run: Path) -> None:
    """Train a run to its end; what it said is the failure where it does not get there."""
    code, said = end(start(run))
    assert code == 0, said


def beginnings(run: Path) -> int:
    """Return how many trainers have begun with a run so far."""
    return sum(event.get("event") in runs.BEGINNINGS for event in runs.Run(run).events())


def await_beginning(run: Path, process: subprocess.Popen[str], before: int) -> None:
    """Wait until one more trainer than `before` has begun with a run, or its process has ended."""
    deadline = time.monotonic() + PATIENCE
    while beginnings(run) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@dataclasses.dataclass(frozen=True)
class Left:
    """What a training left: of weights and sheets the digests and sizes, of the log the lines."""

    files: dict[str, tuple[str, int]]
    lines: list[dict[str, object]]

    def lost_by(self, other: Left) -> int:
        """Return how many bytes of this are not what `other` left: files that differ, and lines that are not there."""
        files = [size for name, (digest, size) in self.files.items() if other.files.get(name) != (digest, size)]
        lines = [json.dumps(line) for line in self.lines if line not in other.lines]
        return sum(files) + sum(map(len, lines))


def left_by(run: Path) -> Left:
    """Return what a finished training left; fails where there is more than that."""
    found = runs.Run(run)
    newest = found.newest_checkpoint()
    assert newest.name == f"step-{STEPS:06d}"
    hidden = [str(path) for path in run.rglob(".*")]
    assert hidden == [], "drafts were left behind"
    assert found.events()[-1]["event"] == "finished"
    lines = [{key: value for key, value in line.items() if key not in TIMED} for line in found.metrics()]
    kept = [newest / name for name in runs.TENSOR_FILES] + sorted(found.samples.iterdir())
    return Left({path.name: (digest(path), path.stat().st_size) for path in kept}, lines)


def hold(scenario: str, run: Path, undisturbed: Left, *, has_sheets: bool = True, **counts: int) -> None:
    """Count what became of a finished training, and fail where it is not what an undisturbed one left.

    has_sheets: whether it must have every sheet, which a full disk may refuse.
    """
    left = left_by(run)
    if not has_sheets:
        files = {name: found for name, found in undisturbed.files.items() if not name.startswith("step-")}
        undisturbed = dataclasses.replace(undisturbed, files=files)
    lost = undisturbed.lost_by(left)
    tally.add(scenario, **({"tried": 1, "survived": int(not lost)} | counts), bytes_lost=lost)
    assert lost == 0, f"{run}: lost {lost} bytes"
    assert left.lines == undisturbed.lines, f"{run}: another log"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclasses.dataclass
class Losses:
    """What was lost over the kills of one run: nothing, where the promise is kept."""

    checkpoints: int = 0  # announced and not there
    lines: int = 0  # of the log, up to the newest checkpoint, and not there
    steps_again: int = 0  # that were taken again, which is no loss
    states: dict[str, int] = dataclasses.field(default_factory=dict)  # in which the kills found it

    def look(self, run: Path) -> None:
        """Look at what a killed training left."""
        if not (run / "run.toml").exists():
            self._count("before the run was there")
            return
        found = runs.Run(run)
        announced = [event["step"] for event in found.events() if event["event"] == "checkpoint"]
        saved = [runs.path_step(path) for path in found.checkpoints()]
        newest = saved[-1] if saved else 0
        self.checkpoints += bool(announced) and announced[-1] > newest
        logged = [line["step"] for line in found.metrics()]
        self.lines += len(set(range(1, newest + 1)) - set(logged))
        assert len(logged) == len(set(logged)), "a step was logged twice"
        self.steps_again += max([*logged, newest]) - newest
        self._count(_state(run))

    def _count(self, state: str) -> None:
        self.states[state] = self.states.get(state, 0) + 1


def _state(run: Path) -> str:
    """Return what a killed training was at, by what it left."""
    if any((run / "checkpoints").glob(".draft-*")):
        return "in a checkpoint"
    if any((run / "checkpoints").glob(".old-*")):
        return "in the removal of a checkpoint"
    if any((run / "samples").glob(".*")):
        return "in a sheet"
    for name in runs.LOGS:
        log = run / name
        if log.exists() and not log.read_bytes().endswith(b"\n") and log.stat().st_size:
            return "in a line of a log"
    if any(run.glob(".*")):
        return "in another file"
    return "between files"


def read_json(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))
