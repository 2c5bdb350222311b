"""Write a run: create its folder whole, and let one trainer hold its lock."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from colddiff_core.config.schema import Config
from colddiff_core.config.toml import dump
from colddiff_core.errors import ColddiffWarning, MachineError, UsageError
from colddiff_core.files import FileLock, beside, drafted, flush, read_ordinary, refusals, sweep, whole
from colddiff_core.runs import classes, control
from colddiff_core.runs.directory import HEARTBEAT_SECONDS, LOGS, MOST_LOG_BYTES, OWN, Run, last_written, taken
from colddiff_core.text import counted

STALE_SECONDS = 60.0  # age of a run's draft that no process works on any more


class RunWriter(Run):
    """A run directory held by the one process that trains it.

    Lines that the disk refuses are kept and written with the next line, so a full disk neither
    stops a training nor leaves a gap in the log.
    """

    def __init__(self, path: Path) -> None:
        """Lock the run, clean up after an earlier trainer, and drop its unanswered requests.

        Raises:
            MachineError: another process trains the run, or the disk refused.
            UsageError: one of the run's files is a link.
        """
        super().__init__(path)
        for name in OWN:
            if (path / name).is_symlink():
                raise UsageError(f"{path / name} is a link.", "Replace it with a real file or folder, or link the run.")
        self._lock = _hold(path)
        self._last_beat = 0.0
        self._unwritten: dict[str, list[bytes]] = {}
        self._is_refused = False
        self._closing: list[Callable[[], None]] = []
        try:
            control.take(path)
            for name in LOGS:
                _drop_torn_line(path / name)
            for folder in (path, self.samples):
                sweep(folder)
            remove_abandoned(path / "checkpoints")
        except BaseException:
            self._lock.release()
            raise

    def log(self, **values: Any) -> None:
        """Append a line to metrics.jsonl."""
        self._append("metrics.jsonl", values)

    def event(self, name: str, **details: Any) -> None:
        """Append a line to events.jsonl, with the time in seconds since 1970."""
        self._append("events.jsonl", {"event": name, "time": round(time.time(), 3)} | details)

    def beat(self) -> None:
        """Send a heartbeat, so readers can tell a live trainer from one that is gone or stuck."""
        now = time.monotonic()
        if self._lock.is_held and now - self._last_beat >= HEARTBEAT_SECONDS:
            self._last_beat = now
            with contextlib.suppress(OSError):
                self._lock.touch()

    def requests(self) -> list[str]:
        """Take the requests of readers: the names of the files in control/."""
        return control.take(self.path)

    def forget_after(self, step: int) -> None:
        """Drop the metrics after `step`: a resumed run writes those steps again."""
        lines = [*self.metrics(), *map(json.loads, self._unwritten.get("metrics.jsonl", []))]
        kept = [line for line in lines if isinstance(line.get("step"), int) and line["step"] <= step]
        with whole(self.path / "metrics.jsonl") as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._unwritten["metrics.jsonl"] = []

    def retry(self) -> None:
        """Write the log lines that the disk refused before; those it refuses again wait for the next call."""
        for name in LOGS:
            if self._unwritten.get(name):
                self._write(name)

    def flush(self) -> None:
        """Flush the logs to disk, ignoring refusals; the only method that another thread may call."""
        for name in LOGS:
            with contextlib.suppress(OSError):
                flush(self.path / name)

    def at_close(self, work: Callable[[], None]) -> None:
        """Register work that `close` does first, while the lock is still held."""
        self._closing.append(work)

    def close(self) -> None:
        """Release the run; raises MachineError if some lines could not be written."""
        try:
            while self._closing:
                self._closing.pop()()
            for name in LOGS:
                if self._unwritten.get(name) and not self._write(name):
                    what = f"{self.path / name} is missing {counted(len(self._unwritten[name]), 'line')}"
                    raise MachineError(f"{what}: the disk refused to write.", "The checkpoints are complete.")
        finally:
            self._lock.release()

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        self._unwritten.setdefault(name, []).append(json.dumps(values).encode() + b"\n")
        self._write(name)

    def _write(self, name: str) -> bool:
        """Append all waiting lines in one write: a reader sees them whole, or sees no newline yet."""
        lines = b"".join(self._unwritten[name])
        try:
            with (self.path / name).open("ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    if file.write(lines) < len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    file.truncate(size)  # a torn line would spoil the next one too
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
    """A run directory in every process of a job but the first: the same calls, and nothing is written."""

    def log(self, **values: Any) -> None:
        """No-op: rank 0 writes the metrics."""

    def event(self, name: str, **details: Any) -> None:
        """No-op: rank 0 writes the events."""

    def beat(self) -> None:
        """No-op: rank 0 sends the heartbeats."""

    def requests(self) -> list[str]:
        """Return nothing: rank 0 takes the requests."""
        return []

    def forget_after(self, step: int) -> None:
        """No-op: rank 0 rewrites the metrics."""

    def retry(self) -> None:
        """No-op: rank 0 writes the logs."""

    def flush(self) -> None:
        """No-op: rank 0 flushes the logs."""

    def at_close(self, work: Callable[[], None]) -> None:
        """No-op: rank 0 holds the run."""

    def close(self) -> None:
        """No-op: rank 0 holds the run."""


def create(path: Path, config: Config, versions: Mapping[str, str], names: Sequence[str] = ()) -> RunWriter:
    """Create a run directory, whole or not at all, and hold it.

    Args:
        path: The folder to create.
        config: The resolved configuration.
        versions: Of the program and its packages.
        names: Names of the classes; kept if the network is conditioned on them.

    Raises:
        UsageError: something exists at `path`.
        MachineError: the disk refused.
    """
    if path.exists():
        raise taken(path)
    for entry in path.parent.glob(f".{path.stem}-*"):
        is_stale = _is_draft(entry) and time.time() - last_written(entry) > STALE_SECONDS
        if is_stale and drafted(entry.name) == path.name:  # left by a training that was killed here
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
            if names and config.model.classes:
                (draft / classes.FILE).write_text(classes.as_json(names), encoding="utf-8")
                flush(draft / classes.FILE)
            flush(draft)
            try:
                draft.rename(path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another training was faster
                    raise taken(path) from None
                raise
            flush(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return RunWriter(path)


def _is_draft(folder: Path) -> bool:
    """Return whether a folder holds nothing but what `create` writes: a user's folder may be named like a draft."""
    try:
        return not folder.is_symlink() and set(os.listdir(folder)) <= {*OWN}
    except OSError:
        return False


def rewrite_config(run: Run, config: Config) -> None:
    """Replace the configuration of a run that continues with changed settings, `data.download` included."""
    table = config.to_table() | {"versions": run.table().get("versions", {})}
    with whole(run.config_file) as draft:
        draft.write_text(dump(table), encoding="utf-8")


def keep_classes(run: Run, names: Sequence[str]) -> None:
    """Keep the names of the classes in a run that continues: an older one has none, or they were changed."""
    with contextlib.suppress(UsageError):
        if not names or run.classes() == classes.cleaned(names):
            return
    with whole(run.path / classes.FILE) as draft:
        draft.write_text(classes.as_json(names), encoding="utf-8")


def remove_abandoned(checkpoints: Path) -> None:
    """Remove what a killed trainer left of checkpoints that it was writing or deleting."""
    for abandoned in [*checkpoints.glob(".draft-*"), *checkpoints.glob(".old-*")]:
        shutil.rmtree(abandoned, ignore_errors=True)


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed writer left after the last newline."""
    if path.exists():
        with refusals(path):
            length = read_ordinary(path, MOST_LOG_BYTES).rfind(b"\n") + 1
            os.truncate(path, length)


def check_free(path: Path) -> None:
    """Raise MachineError if a process trains the run now, or this one may not."""
    if (path / "lock").exists():
        _locked(path, 0).release()


def _hold(path: Path) -> FileLock:
    """Lock the run and write this process's pid and host into the lock file."""
    lock = _locked(path, os.O_CREAT)
    try:
        with refusals(path):
            lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
    except BaseException:
        lock.release()
        raise
    return lock


def _locked(path: Path, flags: int) -> FileLock:
    try:
        return FileLock.take(path / "lock", flags=flags, about=path)
    except BlockingIOError:
        what = f"{path} is being trained by another process."
        raise MachineError(what, "Wait for it, or stop it first.") from None
