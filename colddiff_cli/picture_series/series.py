"""The pictures that one call writes into a folder, and that a later call can complete with `--resume`.

A manifest with the settings of the call is written before the first picture. Pictures are written whole, so one that
exists belongs to the call whose manifest exists: `--resume` keeps it and makes the missing ones. In a job, all
processes write pictures; only rank 0 looks at the folder and writes the manifest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from colddiff_cli.arguments import inputs, outputs
from colddiff_cli.jobs import launch
from colddiff_cli.picture_series.manifest import SeriesManifest, Settings, in_folder, nothing_to_resume
from colddiff_core.distributed import environment
from colddiff_core.errors import ColddiffError, MachineError, UsageError
from colddiff_core.files import FileLock, draft_name, drafted, flush, refusals
from colddiff_core.text import counted

MANY = 16  # up to so many pictures, each is listed and shown; beyond, they are counted


class SeriesInterrupted(ColddiffError):  # noqa: N818 - not an error
    """Ctrl-C in a series that can be resumed."""

    exit_code = 130


class Series:
    """Pictures 0 to n - 1 of one call, in or below a folder that is locked until the context ends.

    kept: the numbers of the pictures that existed and stay; ranks: the processes that make them. Unless something
    fails, no process leaves the context before all pictures are made.
    """

    def __init__(
        self,
        targets: Sequence[Path],
        command: str,
        settings: Settings | None,
        *,
        folder: Path | None = None,
        inputs: Sequence[Path] = (),
        resume: bool = False,
        force: bool,
    ) -> None:
        """Claim the pictures of `targets`. A job that torchrun restarts resumes without `resume`.

        Args:
            settings: Of the call; None to write no manifest, so that it cannot be resumed.
            folder: The folder that they are in or below; None for that of the first one.
            inputs: The files that they are made of, if they are: the first of them is made of the first one, and
                after the last one it begins again. The manifest says which.

        Raises:
            UsageError: Pictures exist without `resume` or `force`, or there is no call of these settings to resume.
            MachineError: Another process is writing them.
        """
        from colddiff_core.distributed import group

        self.ranks = group.current()
        self.targets, self.is_forced = targets, force
        self.folder = folder or (targets[0].parent if targets else Path())
        self.inputs = inputs
        self.kept: frozenset[int] = frozenset()
        self.made = 0
        self._lock: FileLock | None = None
        self._manifest: SeriesManifest | None = None
        self._is_begun = False
        if self.ranks.is_first:
            self._take(command, settings, resume)
        if not self.ranks.is_alone:
            self._receive_kept()

    def _take(self, command: str, settings: Settings | None, resume: bool) -> None:
        if resume and self.is_forced:
            raise UsageError("--resume keeps pictures and --force overwrites them.", "Give one of them.")
        if settings is not None:
            names = [target.relative_to(self.folder).as_posix() for target in self.targets]
            made_of = [str(self.inputs[n % len(self.inputs)]) for n in range(len(names))] if self.inputs else []
            self._manifest = SeriesManifest.of(self.folder, command, settings, names, made_of)
        is_marked = self._manifest is not None and self._manifest.is_there
        if is_marked:
            self._hold()
            resume = resume or (environment.process_info().restarts > 0 and not self.is_forced)
        try:
            if resume and not is_marked:
                raise nothing_to_resume(self.folder, command, self._manifest)
            self._check(is_marked, resume)
        except BaseException:
            self._release()
            raise
        self._is_begun = is_marked and not self.is_forced

    def _receive_kept(self) -> None:
        """Receive the kept pictures from rank 0, a byte each: there may be millions."""
        flags = bytearray(len(self.targets))
        for number in self.kept:
            flags[number] = 1
        self.kept = frozenset(number for number, is_kept in enumerate(self.ranks.broadcast(bytes(flags))) if is_kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        late: KeyboardInterrupt | None = None
        try:
            if error is None:
                self.ranks.barrier()
        except KeyboardInterrupt as interrupt:
            error = late = interrupt
        finally:
            if isinstance(error, KeyboardInterrupt):
                launch.ignore_interrupts(self.ranks)
            self._release()
        if isinstance(error, KeyboardInterrupt) and self._manifest is not None and self._is_begun:
            done, total = sum(target.exists() for target in self.targets), len(self.targets)
            what = f"Interrupted: {done} of {counted(total, 'image')} {'is' if done == 1 else 'are'} in {self.folder}."
            how = "--resume instead of --force" if self.is_forced else "--resume"
            raise SeriesInterrupted(what, f"To continue, run the same command with {how}.") from None
        if late:
            raise late

    @property
    def is_complete(self) -> bool:
        """Whether every picture of the series exists."""
        return len(self.kept) == len(self.targets)

    def lacks(self, numbers: Iterable[int]) -> bool:
        """Say whether any of these pictures is missing; numbers past the last are ignored."""
        return any(number < len(self.targets) and number not in self.kept for number in numbers)

    def begin(self) -> None:
        """Write the manifest, in a job of several processes; call it before the first picture.

        Rank 0 writes it and the others wait. A single process writes it with the first picture.
        """
        if self.ranks.is_alone:
            return
        if self.ranks.is_first and not self.is_complete:
            self._begin_once()
        self._is_begun = True
        self.ranks.barrier()

    def place(self, number: int) -> Path:
        """Return the path of a picture about to be written; writes the manifest before the first."""
        self._begin_once()
        self.made += 1
        return self.targets[number]

    def _begin_once(self) -> None:
        if not self._is_begun:
            self._begin()
            self._is_begun = True

    def _check(self, is_marked: bool, is_resumed: bool) -> None:
        instead = "another --out or --out-dir" + (", continue with --resume" if is_marked else "")
        for target in self.targets:
            outputs.check(target, instead, force=self.is_forced or is_resumed)
        if is_resumed:
            self.kept = frozenset(number for number, target in enumerate(self.targets) if target.exists())
            self._drop_drafts()

    def _begin(self) -> None:
        """Claim the folder: another call may have written into it since it was checked."""
        if self._manifest is None:
            return
        with refusals(self._manifest.path):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._hold()
        others = [manifest for manifest in in_folder(self.folder) if manifest != self._manifest]
        if not self.is_forced:
            for target in self.targets:
                outputs.check(target, "another --out-dir", force=False)
        names = set(self._manifest.pictures)
        for other in others:
            if not names.isdisjoint(other.pictures):  # these names are no longer that call's
                with _locked(other.path):
                    other.path.unlink(missing_ok=True)
        if self.is_forced:
            # All at once: after a kill, --resume must find pictures of this call only.
            for target in self.targets:
                with refusals(target):
                    target.unlink(missing_ok=True)
        if self._manifest.is_there:
            self._drop_drafts()
            return
        assert self._lock is not None
        if self._lock.is_shared:
            what = f"{self._manifest.path} is another file too (a hard link or a device)."
            raise MachineError(what, "Remove it, or use another --out-dir.")
        with refusals(self._manifest.path):
            # In place, not by rename: the lock is on this very file. A half-written manifest counts as none.
            self._lock.write(self._manifest.text().encode())
            os.fsync(self._lock)
            flush(self.folder)

    def _hold(self) -> None:
        assert self._manifest is not None
        self._lock = _locked(self._manifest.path)

    def _release(self) -> None:
        if self._lock is None:
            return
        if self._manifest is not None and not self._lock.size:  # nothing was written
            self._manifest.path.unlink(missing_ok=True)
        self._lock.release()
        self._lock = None

    def _drop_drafts(self) -> None:
        """Remove half-written drafts of these pictures that a killed call left."""
        names: dict[Path, set[str]] = {}
        for target in self.targets:
            names.setdefault(target.parent, set()).add(draft_name(target.name))
        for folder, drafts in names.items():
            with refusals(folder), contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for path in [entry.path for entry in entries if drafted(entry.name) in drafts]:
                    os.unlink(path)


def without_own(
    files: list[tuple[Path, bool]], folder: Path, command: str, settings: Settings
) -> list[tuple[Path, bool]]:
    """Drop the outputs of a call with these settings from a list of input files, as rank 0 sees them.

    A call that writes into its input folder would otherwise take its own pictures for inputs when it is resumed.
    """
    return inputs.agreed(lambda: _without_own(files, folder, command, settings))


def _without_own(
    files: list[tuple[Path, bool]], folder: Path, command: str, settings: Settings
) -> list[tuple[Path, bool]]:
    same = [manifest for manifest in in_folder(folder) if manifest.is_of(command, settings)]
    own = {name for manifest in same for name in manifest.pictures}
    if not own:
        return files
    pictures = {os.path.realpath(folder / name) for name in own}
    return [(file, is_named) for file, is_named in files if is_named or os.path.realpath(file) not in pictures]


def summary(folder: Path, count: int, kept: int) -> str:
    """Return a line about a finished series: how many images, how many of them were kept, and where."""
    how = f" ({kept} of them kept)" if kept else ""
    return f"{counted(count, 'image')}{how}: {folder}"


def _locked(path: Path) -> FileLock:
    """Lock a manifest; raises MachineError if another process holds it."""
    try:
        return FileLock.take(path)
    except BlockingIOError:
        what = f"Another process is writing these pictures into {path.parent}."
        raise MachineError(what, "Wait for it, stop it, or use another --out-dir.") from None
