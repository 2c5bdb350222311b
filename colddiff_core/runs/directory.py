"""Read a run directory: one writer, many readers, no torch.

runs/<name>/ contains run.toml (the resolved configuration), metrics.jsonl, events.jsonl, samples/, checkpoints/ and,
for a network with classes, classes.json. Anyone may read it while it is written; one trainer holds its lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colddiff_core.config.presets import from_table, restrict_downloads
from colddiff_core.config.schema import Config
from colddiff_core.config.toml import read_toml
from colddiff_core.errors import UsageError
from colddiff_core.files import parse_json, read_ordinary
from colddiff_core.runs import classes, control, pretrained
from colddiff_core.text import nearest, shell_word

ROOT = Path("runs")
LOGS = ("metrics.jsonl", "events.jsonl")
OWN = ("lock", "run.toml", classes.FILE, *LOGS, "samples", "checkpoints", control.FOLDER)  # a trainer writes to these
TENSOR_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
BEGINNINGS = frozenset({"started", "resumed"})  # events of a trainer that has just locked the run
LARGEST_PID = 2**31
MOST_STATE_BYTES, MOST_HEADER_BYTES = 1 << 20, 1 << 23  # a header of that size names fifty thousand tensors
MOST_LOG_BYTES = 1 << 31  # ten million lines of metrics.jsonl
MOST_ELAPSED_SECONDS = 1e11  # three thousand years
HEARTBEAT_SECONDS = 1.0  # the least time between heartbeats of a trainer
_CHECKPOINT = re.compile(r"step-(\d{6,})")


@dataclasses.dataclass(frozen=True)
class LockHolder:
    """The process that trains a run, or did last.

    Attributes:
        beat: Its last heartbeat, which is the modification time of the run's lock, in seconds since 1970 by the clock
            of the file system.
    """

    pid: int
    host: str
    beat: float

    @property
    def is_here(self) -> bool:
        """Return whether the process runs, or ran, on this machine."""
        return self.pid > 0 and self.host == socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Return whether the process has ended; False if this machine cannot know."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it belongs to another user
            return False
        with contextlib.suppress(OSError, IndexError):  # without /proc nothing more is known
            # A zombie: ended, but its parent has not waited for it yet.
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return False


class Run:
    """An existing run directory, for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_pretrained(self) -> bool:
        """Whether the run is bundled with the package; nothing is written into its folder."""
        return pretrained.holds(self.path)

    @property
    def label(self) -> str:
        """What people call the run: its path, or "pretrained:NAME"."""
        return f"{pretrained.PREFIX}{self.path.name}" if self.is_pretrained else str(self.path)

    @property
    def outputs(self) -> Path:
        """The folder for pictures and figures made with the run; a pretrained run's is in the working folder."""
        return Path(self.path.name) if self.is_pretrained else self.path

    @property
    def config_file(self) -> Path:
        """Path of run.toml."""
        return self.path / "run.toml"

    @property
    def samples(self) -> Path:
        """The folder of the sample sheets."""
        return self.path / "samples"

    def table(self) -> dict[str, Any]:
        """Return run.toml as plain tables; raises UsageError if it cannot be read."""
        return read_toml(self.config_file)

    def config(self, overrides: tuple[str, ...] = ()) -> Config:
        """Return the run's resolved configuration; raises UsageError if run.toml is damaged.

        A run may come from anyone: nothing is downloaded into folders that only run.toml names.
        """
        table = {key: value for key, value in self.table().items() if key != "versions"}
        config = from_table(table, str(self.config_file), overrides)
        return restrict_downloads(config, overrides)

    def classes(self) -> tuple[str, ...]:
        """Return the names of a conditional run's classes; empty if it keeps none. See `classes.read`."""
        return classes.read(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the valid lines of metrics.jsonl, oldest first, without one that is still being written."""
        return [line for line in _lines(self.path / "metrics.jsonl") if _is_logged(line)]

    def events(self) -> list[dict[str, Any]]:
        """Return the events, oldest first."""
        return [line for line in _lines(self.path / "events.jsonl") if isinstance(line.get("event"), str)]

    def is_finished(self, step: int) -> bool:
        """Return whether a trainer finished after `step` steps; one killed just before that did not."""
        return any(event.get("event") == "finished" and event.get("step") == step for event in self.events())

    def holder(self) -> LockHolder | None:
        """Return the process that trains the run, or did last; None if none ever held it."""
        if not (self.path / "lock").is_file():
            return None
        try:
            with (self.path / "lock").open(encoding="utf-8", errors="replace") as file:
                text, beat = file.read(1000), os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        try:
            content = parse_json(text)
            pid = int(content["pid"])
            return LockHolder(pid if 0 < pid < LARGEST_PID else 0, str(content["host"]), beat)
        except (ValueError, KeyError, TypeError, OverflowError):
            return LockHolder(0, "", beat)

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return [path for path in list_checkpoints(self.path / "checkpoints") if is_whole(path)]

    def damaged_checkpoints(self) -> list[Path]:
        """Return the checkpoints that are cut short or missing a file, oldest first."""
        return [path for path in list_checkpoints(self.path / "checkpoints") if not is_whole(path)]

    def newest_checkpoint(self) -> Path:
        """Return the newest complete checkpoint; raises UsageError if there is none."""
        complete = self.checkpoints()
        if complete:
            return complete[-1]
        damaged = self.damaged_checkpoints()
        if damaged:
            raise UsageError(f"{damaged[-1]} is damaged, and no other checkpoint is intact.", "Train the run again.")
        raise self.untrained()

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, which may not exist."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def untrained(self) -> UsageError:
        """Return the error for a run without a checkpoint."""
        return UsageError(
            f"{self.path} has no checkpoint yet.", f"Train it: colddiff train --resume {shell_word(self.path)}"
        )


def taken(path: Path) -> UsageError:
    """Return the error for a new run whose path exists."""
    is_run = (path / "run.toml").is_file()
    remedy = (
        f"Continue it with: colddiff train --resume {shell_word(path)}. Or give another --out."
        if is_run
        else "Give another --out."
    )
    return UsageError(f"{path} exists already.", remedy)


def free_name(preset: str, root: Path = ROOT) -> Path:
    """Return runs/<preset>, or the first of runs/<preset>-2, -3, ... that is free."""
    path, count = root / preset, 1
    while path.exists():
        count += 1
        path = root / f"{preset}-{count}"
    return path


def find(name: str | None, root: Path = ROOT, *, fallback: str = "") -> Run:
    """Return the run at a path, with a name under `root`, or "pretrained:NAME"; None means the one written to last.

    Args:
        fallback: The pretrained run to return for None if there are no runs.

    Raises:
        UsageError: there is no such run.
    """
    known = {path.name: path for path in listed(root)}
    if name is None:
        if not known and fallback in pretrained.names():
            return Run(pretrained.find(fallback))
        if not known:
            raise UsageError(f"No runs in {root}/.", "Start one: colddiff train --preset digits-blur")
        return Run(max(known.values(), key=last_written))
    if name.startswith(pretrained.PREFIX):
        return Run(pretrained.find(name))
    for path in (Path(name), root / name):
        if (path / "run.toml").is_file():
            return Run(path)
    if Path(name).is_dir():
        raise UsageError(f"{name} is not a run: it has no run.toml.", "Name a folder that `colddiff train` wrote.")
    if name in pretrained.names():
        raise UsageError(f"No such run: {name}.", f"The bundled one is {pretrained.PREFIX}{name}.")
    remedy = nearest(name, known) if known else "Start one: colddiff train --preset digits-blur"
    raise UsageError(f"No such run: {name}.", remedy)


def find_trainable(name: str) -> Run:
    """Return the run at a path or with a name, to continue its training.

    Raises:
        UsageError: there is no such run, or it is a pretrained one.
    """
    try:
        run = find(name)
    except UsageError as error:
        raise _nothing_to_continue(name, error) from None
    if run.is_pretrained:
        remedy = f"Start a new run with its weights: colddiff train --from {shell_word(run.label)}"
        raise UsageError(f"{run.label} cannot be continued: it is bundled with colddiff.", remedy)
    return run


def _nothing_to_continue(name: str, error: UsageError) -> UsageError:
    """Return the error for a run that is not there: perhaps its training was stopped before anything was saved."""
    path = Path(name) if "/" in name or Path(name).is_dir() else ROOT / name
    if name.startswith(pretrained.PREFIX) or not name.strip() or "\0" in name:
        return error
    if not path.exists():
        what = f"{error.what.rstrip('.')}; nothing was saved there."
        again = (
            f"If its training was stopped before it began, start it again: "
            f"colddiff train --preset NAME --out {shell_word(path)}"
        )
        hint = error.remedy if error.remedy.startswith("Did you mean") else ""
        return UsageError(what, f"{hint} {again}".strip())
    remedy = "Name a folder that `colddiff train` wrote, or start a new run with another --out."
    return UsageError(error.what, remedy)


def listed(root: Path = ROOT) -> list[Path]:
    """Return the runs under a folder, sorted by name, without drafts."""
    return sorted(path.parent for path in root.glob("*/run.toml") if not path.parent.name.startswith("."))


def last_written(path: Path) -> float:
    """Return when a run was last written to, in seconds since 1970; 0 if it does not exist."""
    times = [0.0]
    for name in ("run.toml", "events.jsonl", "metrics.jsonl"):
        with contextlib.suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first; drafts have other names until they are whole."""
    checkpoints = [path for path in folder.glob("step-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(checkpoints, key=path_step)


def path_step(checkpoint: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint has all its files, each as long as its header says."""
    try:
        state = parse_json(read_ordinary(checkpoint / "state.json", MOST_STATE_BYTES))
        return path_step(checkpoint) == state["step"] and all(
            _is_tensor_file(checkpoint / name) for name in TENSOR_FILES
        )
    except PermissionError:  # reading it later reports more
        return True
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False


def _is_tensor_file(path: Path) -> bool:
    """Return whether a safetensors file is as long as its header says: 8 bytes, the header, the data."""
    if not path.is_file():  # opening a pipe would block
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, MOST_HEADER_BYTES):
            return False
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(path.stat().st_size == 8 + length + max(ends, default=0))


def _is_logged(line: dict[str, Any]) -> bool:
    """Return whether a line of metrics has a step and, if it has a time, a possible one."""
    elapsed = line.get("elapsed", 0)
    return type(line.get("step")) is int and type(elapsed) in (int, float) and 0 <= elapsed < MOST_ELAPSED_SECONDS


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError):
        content = read_ordinary(path, MOST_LOG_BYTES)
        for line in content.split(b"\n")[:-1]:  # text after the last newline is still being written
            with contextlib.suppress(ValueError):
                entry = parse_json(line)
                if isinstance(entry, dict):
                    yield entry
