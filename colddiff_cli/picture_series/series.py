"""Pictures that one call writes into a folder, which a later call can go on with.

The folder is marked with the settings of the call before its first picture is written. Pictures are written whole, so
one that is there was made by the call whose mark is there: `--resume` keeps it, and makes those that are missing.
Of the processes of a job the first alone looks at the folder and marks it; pictures are written by all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from colddiff_cli.arguments import inputs, outputs
from colddiff_cli.jobs import launch
from colddiff_core.distributed import environment
from colddiff_core.errors import ColddiffError, MachineError, UsageError
from colddiff_core.files import FileLock, drafted, flush, parse_json, read_ordinary, refusals
from colddiff_core.text import counted

LARGEST_MARK = 1 << 30  # bytes: ten million pictures
MANY = 16  # pictures that are told and drawn one by one; more are counted
MOST_DIFFERENCES = 3  # told of two calls
# Settings that say nothing to a person, and what is said instead.
DIGESTS = {"digest": "the input files are others or have changed since", "weights": "the weights are others"}
Settings = Mapping[str, Any]


class SeriesInterrupted(ColddiffError):  # noqa: N818 - nothing is in error
    """Ctrl-C among pictures that can be gone on with."""

    exit_code = 130


@dataclasses.dataclass(frozen=True)
class SeriesManifest:
    """A hidden file in a folder of pictures: which call made them, with what, and what they are called."""

    path: Path
    command: str
    settings: dict[str, Any]
    pictures: list[str]

    @classmethod
    def of(cls, folder: Path, command: str, settings: Settings, pictures: list[str]) -> Self:
        """Return the mark of a call; its name follows from all that it says."""
        plain = json.loads(json.dumps(settings))  # as it is read again: a tuple is a list
        said = json.dumps([command, plain, pictures], sort_keys=True)
        name = hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
        return cls(folder / f".colddiff-{name}.json", command, plain, pictures)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return a mark that is there; None where there is none, or one whose writer was killed at it."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = parse_json(read_ordinary(path, LARGEST_MARK))
            pictures = list(values["pictures"])
            if isinstance(values["command"], str) and all(isinstance(name, str) for name in pictures):
                return cls(path, values["command"], dict(values["settings"]), pictures)
        return None

    @property
    def is_there(self) -> bool:
        return SeriesManifest.read(self.path) == self

    def text(self) -> str:
        values = {"command": self.command, "settings": self.settings, "pictures": self.pictures}
        return json.dumps(values, indent=1) + "\n"


class Series:
    """Pictures 0..n - 1 of one call, and the folder that is its own until the context ends.

    kept: the numbers of those that were there already, and stay. together: the processes at work on them; unless
    something fails none of them leaves the context before all pictures are made.
    """

    def __init__(
        self, targets: Sequence[Path], command: str, settings: Settings | None, *, resume: bool = False, force: bool
    ) -> None:
        """Take the pictures of `targets`, all in one folder, for a call of these settings; None leaves no mark.

        Raises UsageError for pictures that are there and are neither kept (`resume`) nor overwritten (`force`), and
        for a `resume` where no call of these settings was at work; MachineError where one is at work now. A job that
        torchrun starts again after a failure resumes by itself.
        """
        from colddiff_core.distributed import group

        self.together = group.current()
        self.targets, self.is_forced = targets, force
        self.folder = targets[0].parent if targets else Path()
        self.kept: frozenset[int] = frozenset()
        self.made = 0
        self._lock: FileLock | None = None
        self._mark: SeriesManifest | None = None
        self._is_begun = False
        if self.together.is_first:
            self._take(command, settings, resume)
        if not self.together.is_alone:
            self._hear_kept()

    def _take(self, command: str, settings: Settings | None, resume: bool) -> None:
        if resume and self.is_forced:
            raise UsageError("--resume keeps pictures and --force overwrites them.", "Give one of them.")
        if settings is not None:
            self._mark = SeriesManifest.of(self.folder, command, settings, [target.name for target in self.targets])
        is_marked = self._mark is not None and self._mark.is_there
        if is_marked:
            self._hold()
            resume = resume or (environment.process_info().restarts > 0 and not self.is_forced)
        try:
            if resume and not is_marked:
                raise _nothing_to_go_on_with(self.folder, command, self._mark)
            self._check(is_marked, resume)
        except BaseException:
            self._release()
            raise
        self._is_begun = is_marked and not self.is_forced

    def _hear_kept(self) -> None:
        """Learn from the first process which pictures are kept: a byte each, for there may be millions."""
        told = bytearray(len(self.targets))
        for number in self.kept:
            told[number] = 1
        self.kept = frozenset(number for number, is_kept in enumerate(self.together.broadcast(bytes(told))) if is_kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        late: KeyboardInterrupt | None = None
        try:
            if error is None:
                self.together.barrier()
        except KeyboardInterrupt as interrupt:
            error = late = interrupt
        finally:
            if isinstance(error, KeyboardInterrupt):
                launch.ignore_interrupts(self.together)
            self._release()
        if isinstance(error, KeyboardInterrupt) and self._mark is not None and self._is_begun:
            done, total = sum(target.exists() for target in self.targets), len(self.targets)
            what = f"Interrupted: {done} of {counted(total, 'image')} {'is' if done == 1 else 'are'} in {self.folder}."
            how = "--resume in place of --force" if self.is_forced else "--resume"
            raise SeriesInterrupted(what, f"Go on with them: the same call with {how}.") from None
        if late:
            raise late

    @property
    def is_complete(self) -> bool:
        return len(self.kept) == len(self.targets)

    def lacks(self, numbers: Iterable[int]) -> bool:
        """Tell whether any of these pictures is to be made; there may be fewer than the numbers say."""
        return any(number < len(self.targets) and number not in self.kept for number in numbers)

    def begin(self) -> None:
        """Have the folder marked, of the processes of a job by the first, which the others wait for.

        To be called before any picture is made; one process by itself marks it when the first one is there.
        """
        if self.together.is_alone:
            return
        if self.together.is_first and not self.is_complete:
            self._begin_once()
        self._is_begun = True
        self.together.barrier()

    def place(self, number: int) -> Path:
        """Return where to write a picture now; the folder is marked before the first."""
        self._begin_once()
        self.made += 1
        return self.targets[number]

    def _begin_once(self) -> None:
        if not self._is_begun:
            self._begin()
            self._is_begun = True

    def _check(self, is_marked: bool, is_resumed: bool) -> None:
        instead = "another --out or --out-dir" + (", go on with --resume" if is_marked else "")
        for target in self.targets:
            outputs.check(target, instead, force=self.is_forced or is_resumed)
        if is_resumed:
            self.kept = frozenset(number for number, target in enumerate(self.targets) if target.exists())
            self._drop_drafts()

    def _begin(self) -> None:
        """Make the folder this call's own: it may have been another's since it was looked at."""
        if self._mark is None:
            return
        with refusals(self._mark.path):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._hold()
        others = [mark for mark in marks(self.folder) if mark != self._mark]
        if not self.is_forced:
            for target in self.targets:
                outputs.check(target, "another --out-dir", force=False)
        names = set(self._mark.pictures)
        for other in others:
            if not names.isdisjoint(other.pictures):  # from now on what bears these names is not of that call
                with _locked(other.path):
                    other.path.unlink(missing_ok=True)
        if self.is_forced:
            # Now, and not one by one: what --resume finds after a kill must be this call's.
            for target in self.targets:
                with refusals(target):
                    target.unlink(missing_ok=True)
        if self._mark.is_there:
            self._drop_drafts()
            return
        assert self._lock is not None
        with refusals(self._mark.path):
            # In place, not by a draft: whoever holds the lock holds this very file. Half of it counts for no mark.
            self._lock.write(self._mark.text().encode())
            os.fsync(self._lock)
            flush(self.folder)

    def _hold(self) -> None:
        assert self._mark is not None
        self._lock = _locked(self._mark.path)

    def _release(self) -> None:
        if self._lock is None:
            return
        if self._mark is not None and not self._lock.size:  # refused before anything was written
            self._mark.path.unlink(missing_ok=True)
        self._lock.release()
        self._lock = None

    def _drop_drafts(self) -> None:
        """Remove what a killed call had half written of these pictures."""
        names = {target.name for target in self.targets}
        with refusals(self.folder), os.scandir(self.folder) as entries:
            drafts = [entry.path for entry in entries if drafted(entry.name) in names]
            for draft in drafts:
                os.unlink(draft)


def marks(folder: Path) -> list[SeriesManifest]:
    """Return the marks in a folder."""
    found = (SeriesManifest.read(path) for path in sorted(folder.glob(".colddiff-*.json")))
    return [mark for mark in found if mark is not None]


def targets(files: Sequence[Path], folder: Path, ending: str) -> list[Path]:
    """Return where the picture made of each file goes; the same name out of two folders gets a number."""
    found = [folder / f"{file.stem}-{ending}" for file in files]
    names: dict[Path, int] = {}
    for index, target in enumerate(found):
        names[target] = count = names.get(target, 0) + 1
        if count > 1:
            found[index] = target.with_name(f"{target.stem}-{count}{target.suffix}")
    return found


def fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """Return what tells lists of input files apart: how many, and a digest of their paths, sizes and times."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        stamp: tuple[int, ...] = ()
        with contextlib.suppress(OSError):  # what is absent is told where it is read
            status = file.stat()
            stamp = (status.st_size, status.st_mtime_ns)
        digest.update(repr((str(file), stamp)).encode())
    return {"files": len(files), "digest": digest.hexdigest()}


def without_own(
    files: list[tuple[Path, bool]], folder: Path, command: str, settings: Settings
) -> list[tuple[Path, bool]]:
    """Return files, and whether each was named itself, without what a call of these settings made of them in `folder`.

    Where pictures go below the folder that they are made of, those made so far are found among its images. What the
    first process of a job finds counts.
    """
    return inputs.agreed(lambda: _without_own(files, folder, command, settings))


def _without_own(
    files: list[tuple[Path, bool]], folder: Path, command: str, settings: Settings
) -> list[tuple[Path, bool]]:
    same = [mark for mark in marks(folder) if mark.command == command and _agree(settings, mark.settings)]
    own = {name for mark in same for name in mark.pictures}
    if not own:
        return files
    is_there = {parent: parent.resolve() == folder.resolve() for parent in {file.parent for file, _ in files}}
    return [
        (file, is_named) for file, is_named in files if is_named or not (is_there[file.parent] and file.name in own)
    ]


def _agree(some: Settings, every: Settings) -> bool:
    return all(every.get(key) == value for key, value in json.loads(json.dumps(some)).items())


def summary(folder: Path, count: int, kept: int) -> str:
    """Return a line on a finished series of `count` images: how many, how many of them were kept, and where."""
    told = f" ({kept} of them kept)" if kept else ""
    return f"{counted(count, 'image')}{told}: {folder}"


def _locked(path: Path) -> FileLock:
    """Lock a mark; raises MachineError if another process holds it."""
    try:
        return FileLock.take(path)
    except BlockingIOError:
        what = f"Another process is writing these pictures into {path.parent}."
        raise MachineError(what, "Wait for it or stop it first, or give another --out-dir.") from None


def _nothing_to_go_on_with(folder: Path, command: str, mark: SeriesManifest | None) -> UsageError:
    others = [other for other in marks(folder) if other.command == command] if mark else []
    if mark is None or not others:
        what = f"There is nothing to go on with: no call of {command} has marked {folder} as its own."
        return UsageError(what, "Leave --resume out, or name the folder with --out-dir.")
    told = min((list(_differences(other.settings, mark.settings)) for other in others), key=len)
    more = f" and {len(told) - MOST_DIFFERENCES} more" if len(told) > MOST_DIFFERENCES else ""
    difference = ", ".join(told[:MOST_DIFFERENCES]) or "the pictures have other names"
    what = f"The call of {command} that {folder} was marked by had other settings: {difference}{more}."
    return UsageError(what, "Give the settings of that call, or another --out-dir without --resume.")


def _differences(was: Settings, now: Settings) -> Iterator[str]:
    """Yield what differs between two calls, in words."""
    for key in {**was, **now}:
        before, after = was.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after)
        elif key not in DIGESTS:
            yield f"{key} was {_told(before)}, now {_told(after)}"
        elif all(was.get(other) == now.get(other) for other in {**was, **now} if other not in DIGESTS):
            yield DIGESTS[key]


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {entry}" for key, entry in value.items() if key not in DIGESTS)
    return "left out" if value is None else str(value)
