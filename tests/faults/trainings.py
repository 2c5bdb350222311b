"""Real trainings in their own processes, to be killed, and checks of the files they leave."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import mortal
import processes
import psutil
import tally

from colddiff_core import runs

Training = subprocess.Popen[str] | processes.CommandProcess


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a training is."""

    steps: int
    checkpoint_every: int
    sample_every: int

    @property
    def share(self) -> float:
        """Return its length relative to LONG; lines, file operations and seconds are about in proportion."""
        return self.steps / LONG.steps

    def up_to(self, most: int) -> int:
        """Return a number meant for LONG, scaled down to this length."""
        return round(self.share * most)


SHORT, LONG = Length(30, 7, 15), Length(120, 7, 20)  # LONG is what docs/reliability.md describes
SETTINGS = (
    "data.size=12",
    "model.width=8",
    "model.multipliers=[1]",
    "model.attention=none",
    "degradation.steps=5",
    "train.precision=float32",
    "train.batch_size=8",
    "train.log_every=1",
)
TIMING_KEYS = ("images_per_second", "elapsed")  # differ between any two trainings
TIMEOUT_SECONDS = 120  # for a training that ends on its own
ROOT = Path(__file__).parents[2]


def arguments(run: Path, length: Length, *more: str) -> list[str]:
    """Return the arguments that start a run, or resume it if it exists."""
    if (run / "run.toml").exists():
        return ["train", "--resume", str(run), *more]
    numbers = [f"train.{key}={number}" for key, number in dataclasses.asdict(length).items()]
    sets = [word for setting in (*SETTINGS, *numbers) for word in ("--set", setting)]
    return ["train", "--preset", "digits-blur", "--out", str(run), *sets, *more]


def start(
    run: Path,
    length: Length,
    *more: str,
    fault: tuple[str, int] = ("none", 0),
    lasting: int = 0,
    streams: Mapping[int, str] | None = None,
    is_leader: bool = False,
) -> processes.CommandProcess:
    """Start a training with a fault of mortal.py, whose LASTING is `lasting`.

    `streams` are files to open as standard input, output or error, by number. With `is_leader`, the process leads a
    session, whose terminal is the first one that it opens.
    """
    prepare = functools.partial(_prepare, fault, str(run), lasting, streams or {}, is_leader)
    return processes.start(arguments(run, length, *more), run.parent, prepare=prepare)


def _prepare(fault: tuple[str, int], run: str, lasting: int, streams: Mapping[int, str], is_leader: bool) -> None:
    if is_leader:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would make it ignored
    for number, path in streams.items():
        os.dup2(os.open(path, os.O_RDWR), number)
    processes.open_streams()
    mortal.arm(*fault, run, lasting)


def start_fresh(run: Path, length: Length, **options: object) -> subprocess.Popen[str]:
    """Start a training in a fresh Python, which takes seconds, for tests of how it starts."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    words = [sys.executable, "-m", "colddiff_cli", *arguments(run, length)]
    return subprocess.Popen(words, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


def end(process: Training, timeout: float = TIMEOUT_SECONDS) -> tuple[int | None, str]:
    """Wait for a training to end; return its exit code and output."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + (err or "")


@contextlib.contextmanager
def held(process: processes.CommandProcess) -> Iterator[None]:
    """Wait until the fault "hold" or "moment" has stopped a training; continue it after the block."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            assert process.poll() is None, "it ended before it was to stop"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def finish(run: Path, length: Length) -> None:
    """Train a run to its end."""
    code, output = end(start(run, length))
    assert code == 0, output


def beginnings(run: Path) -> int:
    """Return how many trainers have started on a run so far."""
    return sum(event.get("event") in runs.BEGINNINGS for event in runs.Run(run).events())


def await_beginning(run: Path, process: Training, before: int) -> None:
    """Wait until one more trainer than `before` has started on a run, or its process has ended."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while beginnings(run) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The files of a training: its length, digests and sizes of weights and sheets, and the lines of the log."""

    length: Length
    files: dict[str, tuple[str, int]]
    lines: list[dict[str, object]]

    def lost_by(self, other: RunFiles) -> int:
        """Return how many bytes `other` lacks: files that differ, and missing lines."""
        files = [size for name, (digest, size) in self.files.items() if other.files.get(name) != (digest, size)]
        lines = [json.dumps(line) for line in self.lines if line not in other.lines]
        return sum(files) + sum(map(len, lines))


def read_files(run: Path, length: Length) -> RunFiles:
    """Return the files of a finished training; fail on leftover drafts."""
    found = runs.Run(run)
    newest = found.newest_checkpoint()
    assert newest.name == f"step-{length.steps:06d}"
    hidden = [str(path) for path in run.rglob(".*")]
    assert hidden == [], "drafts were left behind"
    assert found.events()[-1]["event"] == "finished"
    lines = [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in found.metrics()]
    kept = [newest / name for name in runs.TENSOR_FILES] + sorted(found.samples.iterdir())
    return RunFiles(length, {path.name: (digest(path), path.stat().st_size) for path in kept}, lines)


def check_result(scenario: str, run: Path, undisturbed: RunFiles, *, has_sheets: bool = True, **counts: int) -> None:
    """Compare a finished training with an undisturbed one, and add it to the tally.

    Pass `has_sheets` false if sheets may be missing, because the disk was full.
    """
    files = read_files(run, undisturbed.length)
    if not has_sheets:
        required = {name: entry for name, entry in undisturbed.files.items() if not name.startswith("step-")}
        undisturbed = dataclasses.replace(undisturbed, files=required)
    lost = undisturbed.lost_by(files)
    tally.add(scenario, **({"tried": 1, "survived": int(not lost)} | counts), bytes_lost=lost)
    assert lost == 0, f"{run}: lost {lost} bytes"
    assert files.lines == undisturbed.lines, f"{run}: another log"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclasses.dataclass
class Losses:
    """What the kills of one run lost."""

    checkpoints: int = 0  # announced but missing
    lines: int = 0  # missing from the log up to the newest checkpoint
    steps_again: int = 0  # repeated, which is not a loss
    states: dict[str, int] = dataclasses.field(default_factory=dict)  # of the run when it was killed

    def update(self, run: Path) -> None:
        """Add the losses of one kill."""
        if not (run / "run.toml").exists():
            self._count("before the run existed")
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
    """Return what a killed training was doing, judging by its files."""
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
