"""Find the picture files under a folder, and say what is left out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from colddiff_core.images import HEAD_BYTES, READABLE, suffix_of
from colddiff_core.text import NameTally, counted

# Files that are kept beside pictures or written by a file manager: never opened, and not worth a word.
COMPANIONS = frozenset(
    {".txt", ".caption", ".cls", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".md"}
    | {".html", ".htm", ".log", ".lst", ".db", ".parquet", ".npy", ".npz", ".pt", ".pth", ".py", ".sh", ".ipynb"}
    | {".safetensors", ".tar", ".tgz", ".gz", ".zip", ".urls", ".lock"}
)


@dataclasses.dataclass(frozen=True)
class FoundPictures:
    """The pictures under a folder.

    Attributes:
        root: The folder.
        paths: The pictures, sorted by path; those of a linked folder have the link in their path.
        others: Files in no known picture format, and files that are not ordinary ones.
        unreadable: Folders that cannot be read, each with the reason.
        dangling: Links that lead nowhere.
        repeated: Links to folders that were visited anyway, or that contain the link.
        empty: Folders directly under the root without a picture.
    """

    root: Path
    paths: list[Path] = dataclasses.field(default_factory=list)
    others: NameTally = dataclasses.field(default_factory=NameTally)
    unreadable: NameTally = dataclasses.field(default_factory=NameTally)
    dangling: NameTally = dataclasses.field(default_factory=NameTally)
    repeated: NameTally = dataclasses.field(default_factory=NameTally)
    empty: NameTally = dataclasses.field(default_factory=NameTally)

    @property
    def remarks(self) -> tuple[str, ...]:
        """A line about what was left out, if anything was."""
        return (f"{self.root}: {self.left_out}",) if self.left_out else ()

    @property
    def left_out(self) -> str:
        """How many files and folders were left out, why, and the first of them; empty if none were."""
        left_out = {
            "file in no known picture format": self.others,
            "folder that cannot be read": self.unreadable,
            "link that leads nowhere": self.dangling,
            "link to a folder that is in already": self.repeated,
            "folder without pictures": self.empty,
        }
        parts = [f"{_counted(tally.count, thing)} ({tally})" for thing, tally in left_out.items() if tally.count]
        return f"left out {', '.join(parts)}" if parts else ""


def find_pictures(root: Path) -> FoundPictures:
    """Return the pictures under a folder, by suffix or, if the suffix is none or unknown, by their first bytes.

    Hidden files are left out. Links are followed, but each folder is visited only once, and under its own name if it
    has one under `root`. Nothing but ordinary files is opened.
    """
    found = FoundPictures(root)
    walk = _Walk(found)
    walk.visit(root)
    if walk.follow_links():
        found.paths.sort()
    walk.note_empty_folders()
    return found


def is_companion(name: str) -> bool:
    """Return whether a file is known by its name to be no picture, and not worth a word."""
    return name.startswith(".") or os.path.splitext(name)[1].lower() in COMPANIONS or name.lower() == "thumbs.db"


def is_picture_name(name: str) -> bool:
    """Return whether a file that is not hidden has the suffix of a picture."""
    return os.path.splitext(name)[1].lower() in READABLE and not name.startswith(".")


class _Walk:
    """A walk through folders in name order, which gives path order: sorting half a million paths would take longer."""

    def __init__(self, found: FoundPictures) -> None:
        self._found = found
        self._links: list[Path] = []
        self._top_folders: list[str] = []
        self._visited: set[tuple[int, int]] = set()
        self._above = {_identity(parent) for parent in Path(os.path.realpath(found.root)).parents}

    def visit(self, folder: Path) -> None:
        """Add the pictures of a folder and of the folders in it, and note the links to others."""
        found = self._found
        try:
            identity = _identity(folder)
            if identity in self._visited:
                return
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable.add(f"{self._name(folder)}: {error.strerror or error}")
            return
        self._visited.add(identity)
        for entry in entries:
            path = folder / entry.name
            try:
                if entry.is_dir():
                    if folder == found.root and not entry.name.startswith("."):
                        self._top_folders.append(entry.name)
                    if entry.is_symlink():
                        self._links.append(path)
                    else:
                        self.visit(path)
                elif entry.is_file():
                    self._add(path, entry.name)
                elif not entry.name.startswith("."):
                    leads_nowhere = entry.is_symlink() and not path.exists()
                    (found.dangling if leads_nowhere else found.others).add(self._name(path))
            except OSError as error:
                if entry.is_symlink():  # to itself, or into a folder that is closed
                    found.dangling.add(self._name(path))
                else:
                    found.unreadable.add(f"{self._name(path)}: {error.strerror or error}")

    def follow_links(self) -> bool:
        """Visit the folders that links lead to; return whether there were any."""
        has_followed = False
        while self._links:
            link = self._links.pop(0)
            target = _identity(link)
            is_above = Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))
            if target in self._visited or target in self._above or is_above:
                self._found.repeated.add(self._name(link))
            else:
                has_followed = True
                self.visit(link)
        return has_followed

    def note_empty_folders(self) -> None:
        """Note the folders directly under the root without pictures, unless something else was said about them."""
        found = self._found
        depth = len(found.root.parts)
        filled = {path.parts[depth] for path in found.paths if len(path.parts) > depth + 1}
        said = {name.partition(":")[0] for tally in (found.unreadable, found.repeated) for name in tally.names}
        for name in self._top_folders:
            if name not in filled and name not in said:
                found.empty.add(name)

    def _add(self, path: Path, name: str) -> None:
        if is_picture_name(name):
            self._found.paths.append(path)
        elif not is_companion(name) and not any(part.startswith(".") for part in self._parts(path)):
            if suffix_of(head_of(path)):
                self._found.paths.append(path)
            else:
                self._found.others.add(self._name(path))

    def _parts(self, path: Path) -> tuple[str, ...]:
        return path.parts[len(self._found.root.parts) :]

    def _name(self, path: Path) -> str:
        return "/".join(self._parts(path)) or "."


def head_of(path: Path) -> bytes:
    """Return the first HEAD_BYTES bytes of an ordinary file; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC)
        try:
            return os.read(descriptor, HEAD_BYTES)
        finally:
            os.close(descriptor)
    return b""


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _counted(number: int, thing: str) -> str:
    """Return a count with a noun that words follow: "2 links that lead nowhere"."""
    noun, _, rest = thing.partition(" ")
    if number > 1:
        rest = rest.replace("leads", "lead").replace("is in", "are in")
    return f"{counted(number, noun)} {rest}"
