"""Writing a run: its folder is made whole, and one trainer holds its lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colddiff_core.config.presets import from_table
from colddiff_core.config.schema import Config
from colddiff_core.config.toml import dump
from colddiff_core.errors import ColddiffWarning, MachineError, UsageError
from colddiff_core.files import beside, drafted, flush, read_ordinary, refusals, sweep, whole
from colddiff_core.runs import control
from colddiff_core.runs.directory import BEAT, LOGS, OWN, Run, last_written, taken
from colddiff_core.text import counted

STALE = 60.0  # seconds after which the draft of a run is nobody's


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


class FollowerRun(Run):
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


def rewrite_config(run: Run, config: Config) -> None:
    """Replace the configuration of a run that goes on under changed settings."""
    before = run.table()
    table = config.to_table() | {"versions": before.get("versions", {})}
    # An override of data.download holds for one call.
    table["data"]["download"] = from_table({"data": before.get("data", {})}, str(run.config_file)).data.download
    with whole(run.config_file) as draft:
        draft.write_text(dump(table), encoding="utf-8")


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
