"""The run directory: one writer, many readers, no torch.

runs/<name>/ holds run.toml (the resolved configuration), metrics.jsonl, events.jsonl, samples/ and
checkpoints/. Anyone may read it while it is written; one trainer holds its lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from colddiff_core.config.presets import from_table, withheld
from colddiff_core.config.schema import Config
from colddiff_core.config.toml import dump, read_toml
from colddiff_core.errors import ColddiffWarning, MachineError, UsageError
from colddiff_core.files import beside, drafted, flush, parse_json, read_ordinary, refusals, sweep, whole
from colddiff_core.runs import control
from colddiff_core.text import counted, nearest

ROOT = Path("runs")
LOGS = ("metrics.jsonl", "events.jsonl")
OWN = ("lock", "run.toml", *LOGS, "samples", "checkpoints", control.FOLDER)  # what a trainer writes to
TENSOR_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
BEGINNINGS = frozenset({"started", "resumed"})  # events of a trainer that has just taken the run
LARGEST_PID = 2**31
LARGEST_STATE, LARGEST_HEADER = 1 << 20, 100_000_000  # bytes; the latter is the format's own limit
LATEST = 1e11  # seconds: three thousand years
STALE = 60.0  # seconds after which the draft of a run is nobody's
BEAT = 1.0  # seconds between signs of life of a trainer, at the most often
_CHECKPOINT = re.compile(r"step-(\d{6,})")


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that trains a run, or did last: its number on its machine, and its last sign of life.

    `beat` is the modification time of the run's lock, in seconds since 1970 by the clock of the file system.
    """

    pid: int
    host: str
    beat: float

    @property
    def is_here(self) -> bool:
        """Tell whether the process is, or was, one of this machine."""
        return self.pid > 0 and self.host == socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Tell whether the process has ended; False where that cannot be known from this machine."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            return False
        with contextlib.suppress(OSError, IndexError):  # where there is no /proc, nothing more is known
            # Ended, and not yet waited for by whoever started it.
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return False


class Run:
    """An existing run directory, for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config_file(self) -> Path:
        return self.path / "run.toml"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def table(self) -> dict[str, Any]:
        """Return run.toml as plain tables; raises UsageError where it cannot be read."""
        return read_toml(self.config_file)

    def config(self, overrides: tuple[str, ...] = ()) -> Config:
        """Return the run's resolved configuration; raises UsageError where run.toml is damaged.

        A run may be someone else's: nothing is downloaded into a folder that run.toml names and the overrides do not.
        """
        table = {key: value for key, value in self.table().items() if key != "versions"}
        config = from_table(table, str(self.config_file), overrides)
        return withheld(config, overrides)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged lines, oldest first; one still being written is left out, and what no trainer writes."""
        return [line for line in _lines(self.path / "metrics.jsonl") if _is_logged(line)]

    def events(self) -> list[dict[str, Any]]:
        """Return the events, oldest first."""
        return [line for line in _lines(self.path / "events.jsonl") if isinstance(line.get("event"), str)]

    def is_finished(self, step: int) -> bool:
        """Tell whether a trainer said its last word after so many steps; one may be killed just before that."""
        return any(event.get("event") == "finished" and event.get("step") == step for event in self.events())

    def holder(self) -> Holder | None:
        """Return the process that trains the run, or did last; None where none ever held it."""
        if not (self.path / "lock").is_file():
            return None
        try:
            with (self.path / "lock").open(encoding="utf-8", errors="replace") as file:
                text, beat = file.read(1000), os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        try:
            told = parse_json(text)
            pid = int(told["pid"])
            return Holder(pid if 0 < pid < LARGEST_PID else 0, str(told["host"]), beat)
        except (ValueError, KeyError, TypeError, OverflowError):
            return Holder(0, "", beat)

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first; one that is cut short is left out."""
        return [path for path in list_checkpoints(self.path / "checkpoints") if is_whole(path)]

    def damaged_checkpoints(self) -> list[Path]:
        """Return the checkpoints that are cut short or lack a file, oldest first."""
        return [path for path in list_checkpoints(self.path / "checkpoints") if not is_whole(path)]

    def newest_checkpoint(self) -> Path:
        """Return the newest complete checkpoint; raises UsageError where there is none."""
        found = self.checkpoints()
        if found:
            return found[-1]
        damaged = self.damaged_checkpoints()
        if damaged:
            raise UsageError(f"{damaged[-1]} is damaged, and no other checkpoint is whole.", "Train the run anew.")
        raise self.untrained()

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step, whether it is there or not."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def untrained(self) -> UsageError:
        """Return the error of a run without a checkpoint."""
        return UsageError(f"{self.path} has no checkpoint yet.", f"Train it on: colddiff train --resume {self.path}")


class RunWriter(Run):
    """A run directory held by the one process that trains it.

    Lines that the disk refuses are kept and written with the next that it takes, so that a disk that is full for a
    while ends no training and leaves no hole in the log.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for name in OWN:
            if (path / name).is_symlink():
                raise UsageError(f"{path / name} is a link.", "A run has its files in its own folder: link to that.")
        self._lock = _hold(path)
        self._beaten = 0.0
        self._unwritten: dict[str, list[bytes]] = {}
        self._is_refused = False
        try:
            control.take(path)  # asked of an earlier trainer
            for name in LOGS:
                _drop_torn_line(path / name)
            for folder in (path, self.samples):
                sweep(folder)  # what an earlier one was killed over
        except BaseException:
            os.close(self._lock)
            raise

    def log(self, **values: Any) -> None:
        """Append a line to metrics.jsonl."""
        self._append("metrics.jsonl", values)

    def event(self, name: str, **details: Any) -> None:
        """Append a line to events.jsonl, with the time in seconds since 1970."""
        self._append("events.jsonl", {"event": name, "time": round(time.time(), 3)} | details)

    def beat(self) -> None:
        """Give a sign of life, which tells readers a run that goes on from one whose trainer is gone or stuck."""
        now = time.monotonic()
        if self._lock >= 0 and now - self._beaten >= BEAT:
            self._beaten = now
            with contextlib.suppress(OSError):
                os.utime(self._lock)

    def requests(self) -> list[str]:
        """Take what readers ask of the trainer: the names of the files in control/."""
        return control.take(self.path)

    def forget_after(self, step: int) -> None:
        """Drop the metrics beyond `step`: a resumed run writes those steps again."""
        lines = [*self.metrics(), *map(json.loads, self._unwritten.get("metrics.jsonl", []))]
        kept = [line for line in lines if isinstance(line.get("step"), int) and line["step"] <= step]
        with whole(self.path / "metrics.jsonl") as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._unwritten["metrics.jsonl"] = []

    def flush(self) -> None:
        """Have the disk hold what was logged; what it refuses will be tried again."""
        for name in LOGS:
            if self._unwritten.get(name):
                self._write(name)
            with contextlib.suppress(OSError):
                flush(self.path / name)

    def close(self) -> None:
        """Let go of the run; raises MachineError where lines could not be written."""
        try:
            for name in LOGS:
                if self._unwritten.get(name) and not self._write(name):
                    what = f"{self.path / name} lacks {counted(len(self._unwritten[name]), 'line')}"
                    raise MachineError(f"{what}: the disk would not take them.", "The checkpoints are whole.")
        finally:
            os.close(self._lock)
            self._lock = -1  # the number may soon be another file's

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        self._unwritten.setdefault(name, []).append(json.dumps(values).encode() + b"\n")
        self._write(name)

    def _write(self, name: str) -> bool:
        """Append the lines that wait to a file, in one write: a reader sees them whole or sees no newline yet."""
        lines = b"".join(self._unwritten[name])
        try:
            with (self.path / name).open("ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    if file.write(lines) < len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(size)  # a torn line would take the next one with it
                    raise
        except OSError as error:
            if not self._is_refused:
                message = f"Cannot write {self.path / name}: {error.strerror}; trying again with every line."
                warnings.warn(ColddiffWarning(message), stacklevel=3)
            self._is_refused = True
            return False
        self._unwritten[name] = []
        self._is_refused = False
        return True


class Onlooker(Run):
    """A run directory as a process sees it that trains along with the one that holds it: it has nothing to write."""

    def log(self, **values: Any) -> None:
        """Leave a line to the process that holds the run."""

    def event(self, name: str, **details: Any) -> None:
        """Leave an event to it."""

    def beat(self) -> None:
        """Leave the signs of life to it."""

    def requests(self) -> list[str]:
        """Leave what readers ask to it."""
        return []

    def forget_after(self, step: int) -> None:
        """Leave the log to it."""

    def flush(self) -> None:
        """Leave the disk to it."""

    def close(self) -> None:
        """Let go of what was never held."""


def create(path: Path, config: Config, versions: Mapping[str, str]) -> RunWriter:
    """Make a run directory, whole or not at all, and hold it.

    Raises UsageError where something of that name exists, MachineError where the disk refuses.
    """
    if path.exists():
        raise taken(path)
    for entry in path.parent.glob(f".{path.stem}-*"):
        # Of a training that was killed over it; one that is at it now is done in a moment.
        if drafted(entry.name) == path.name and entry.is_dir() and time.time() - last_written(entry) > STALE:
            shutil.rmtree(entry, ignore_errors=True)
    draft = beside(path)
    try:
        with refusals(path):
            (draft / "samples").mkdir(parents=True)
            (draft / "checkpoints").mkdir()
            (draft / control.FOLDER).mkdir()
            text = dump(config.to_table() | {"versions": dict(versions)})
            (draft / "run.toml").write_text(text, encoding="utf-8")
            flush(draft / "run.toml")
            flush(draft)
            try:
                draft.rename(path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another training was quicker
                    raise taken(path) from None
                raise
            flush(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return RunWriter(path)


def taken(path: Path) -> UsageError:
    """Return the error of a new run whose place is taken."""
    is_run = (path / "run.toml").is_file()
    remedy = f"Go on with: colddiff train --resume {path}, or give another --out." if is_run else "Give another --out."
    return UsageError(f"{path} exists already.", remedy)


def rewrite_config(run: Run, config: Config) -> None:
    """Replace the configuration of a run that goes on under changed settings."""
    before = run.table()
    table = config.to_table() | {"versions": before.get("versions", {})}
    # What `Run.config` withholds is not the run's own setting.
    table["data"]["download"] = from_table({"data": before.get("data", {})}, str(run.config_file)).data.download
    with whole(run.config_file) as draft:
        draft.write_text(dump(table), encoding="utf-8")


def free_name(preset: str, root: Path = ROOT) -> Path:
    """Return runs/<preset>, or the first of runs/<preset>-2, -3, ... that is not taken."""
    path, count = root / preset, 1
    while path.exists():
        count += 1
        path = root / f"{preset}-{count}"
    return path


def find(name: str | None, root: Path = ROOT) -> Run:
    """Return the run at a path or of a name under `root`; None means the one written to last.

    Raises UsageError where there is none.
    """
    known = {path.name: path for path in listed(root)}
    if name is None:
        if not known:
            raise UsageError(f"No runs in {root}/.", "Start one: colddiff train --preset digits-blur")
        return Run(max(known.values(), key=last_written))
    for path in (Path(name), root / name):
        if (path / "run.toml").is_file():
            return Run(path)
    if Path(name).is_dir():
        raise UsageError(f"{name} is not a run: it has no run.toml.", "A run is a folder that `colddiff train` made.")
    remedy = nearest(name, known) if known else "Start one: colddiff train --preset digits-blur"
    raise UsageError(f"No such run: {name}.", remedy)


def listed(root: Path = ROOT) -> list[Path]:
    """Return the runs under a folder, by name; drafts of runs are left out."""
    return sorted(path.parent for path in root.glob("*/run.toml") if not path.parent.name.startswith("."))


def last_written(path: Path) -> float:
    """Return when a run was last written to, in seconds since 1970; 0 where it is not there."""
    times = [0.0]
    for name in ("run.toml", "events.jsonl", "metrics.jsonl"):
        with contextlib.suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders named like checkpoints, oldest first: a draft has another name until it is whole."""
    found = [path for path in folder.glob("step-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=path_step)


def path_step(checkpoint: Path) -> int:
    """Return the step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint has all its files at the length that they themselves declare."""
    try:
        state = parse_json(read_ordinary(checkpoint / "state.json", LARGEST_STATE))
        return path_step(checkpoint) == state["step"] and all(
            _is_tensor_file(checkpoint / name) for name in TENSOR_FILES
        )
    except PermissionError:  # whose it is will say more, when it is read
        return True
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False


def _is_tensor_file(path: Path) -> bool:
    """Tell whether a safetensors file is as long as its header says: 8 bytes, the header, the data."""
    if not path.is_file():  # opening a pipe would wait for ever
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, LARGEST_HEADER):
            return False
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(path.stat().st_size == 8 + length + max(ends, default=0))


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed writer left behind the last newline, so that the next line begins as one."""
    if path.exists():
        with refusals(path):
            kept = read_ordinary(path).rfind(b"\n") + 1
            os.truncate(path, kept)


def check_free(path: Path) -> None:
    """Raise MachineError where a process trains the run now, or where this one may not."""
    if not (path / "lock").exists():
        return
    with refusals(path):
        descriptor = os.open(path / "lock", os.O_RDWR)
    try:
        _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _held(path: Path) -> MachineError:
    return MachineError(f"{path} is being trained by another process.", "Wait for it, or stop it first.")


def _hold(path: Path) -> int:
    """Lock the run for this process; the lock goes with the process, however it ends."""
    with refusals(path):
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        _lock(descriptor, path)
        with refusals(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held(path) from None
    except OSError:
        pass  # a file system without locks: there is nothing to tell a second trainer by


def _is_logged(line: dict[str, Any]) -> bool:
    """Tell whether a line of metrics has a step, and a time that can be one where it has one."""
    elapsed = line.get("elapsed", 0)
    return type(line.get("step")) is int and type(elapsed) in (int, float) and 0 <= elapsed < LATEST


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError):
        for line in read_ordinary(path).split(b"\n")[:-1]:  # what follows the last newline is not whole yet
            with contextlib.suppress(ValueError):
                entry = parse_json(line)
                if isinstance(entry, dict):
                    yield entry
