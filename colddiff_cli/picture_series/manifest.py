"""The manifest of a picture series: a hidden file that says which call owns the pictures in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from colddiff_core.errors import UsageError
from colddiff_core.files import parse_json, read_ordinary

MOST_BYTES = 1 << 30  # ten million pictures
MOST_DIFFERENCES = 3  # shown between two calls
# Settings that mean nothing to a person, and what to say in their place.
DIGESTS = {"digest": "the input files have changed", "weights": "the weights have changed"}
Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SeriesManifest:
    """The command, settings and pictures of the call that writes into a folder.

    Attributes:
        pictures: Their paths, relative to the folder.
        inputs: The file that each is made of; empty if they are not made of files.
    """

    path: Path
    command: str
    settings: dict[str, Any]
    pictures: list[str]
    inputs: list[str] = dataclasses.field(default_factory=list, compare=False)

    @classmethod
    def of(
        cls, folder: Path, command: str, settings: Settings, pictures: list[str], inputs: list[str] | None = None
    ) -> Self:
        """Return the manifest of a call; its file name is a hash of the content, the inputs' names aside."""
        plain = json.loads(json.dumps(settings))  # as it is read back: a tuple becomes a list
        content = json.dumps([command, plain, pictures], sort_keys=True)
        name = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
        return cls(folder / f".colddiff-{name}.json", command, plain, pictures, inputs or [])

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a manifest; None if there is none, or its writer was killed halfway."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = parse_json(read_ordinary(path, MOST_BYTES))
            pictures = list(values["pictures"])
            if isinstance(values["command"], str) and all(isinstance(name, str) for name in pictures):
                inputs = [str(name) for name in values.get("inputs", ())]
                return cls(path, values["command"], dict(values["settings"]), pictures, inputs)
        return None

    @property
    def is_there(self) -> bool:
        """Whether the folder has exactly this manifest."""
        return SeriesManifest.read(self.path) == self

    def text(self) -> str:
        """Return the content of the file."""
        values = {"command": self.command, "settings": self.settings, "pictures": self.pictures}
        values |= {"inputs": self.inputs} if self.inputs else {}
        return json.dumps(values, indent=1) + "\n"

    def is_of(self, command: str, settings: Settings) -> bool:
        """Say whether this is a call of the same command with these settings, and maybe more."""
        plain = json.loads(json.dumps(settings))
        return self.command == command and all(self.settings.get(key) == value for key, value in plain.items())


def in_folder(folder: Path) -> list[SeriesManifest]:
    """Return all manifests in a folder."""
    manifests = (SeriesManifest.read(path) for path in sorted(folder.glob(".colddiff-*.json")))
    return [manifest for manifest in manifests if manifest is not None]


def fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """Return the number of input files and a digest of their paths, sizes and times."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        stamp: tuple[int, ...] = ()
        with contextlib.suppress(OSError):  # a missing file is reported when it is read
            status = file.stat()
            stamp = (status.st_size, status.st_mtime_ns)
        digest.update(repr((str(file), stamp)).encode())
    return {"files": len(files), "digest": digest.hexdigest()}


def nothing_to_resume(folder: Path, command: str, manifest: SeriesManifest | None) -> UsageError:
    """Return the error for --resume in a folder without a call of these settings; shows the closest other call."""
    others = [other for other in in_folder(folder) if other.command == command] if manifest else []
    if manifest is None or not others:
        what = f"There is nothing to resume: no call of {command} has written into {folder}."
        return UsageError(what, "Leave --resume out, or name the folder with --out-dir.")
    closest = min((list(differences(other.settings, manifest.settings)) for other in others), key=len)
    more = f" and {len(closest) - MOST_DIFFERENCES} more" if len(closest) > MOST_DIFFERENCES else ""
    difference = ", ".join(closest[:MOST_DIFFERENCES]) or "the pictures have other names"
    what = f"The earlier call of {command} in {folder} had other settings: {difference}{more}."
    return UsageError(what, "Use its settings, or another --out-dir without --resume.")


def differences(old: Settings, new: Settings) -> Iterator[str]:
    """Yield the differences between the settings of two calls, in words."""
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differences(before, after)
        elif key not in DIGESTS:
            yield f"{key} was {_shown(before)}, now {_shown(after)}"
        elif all(old.get(other) == new.get(other) for other in {**old, **new} if other not in DIGESTS):
            yield DIGESTS[key]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {entry}" for key, entry in value.items() if key not in DIGESTS)
    return "left out" if value is None else str(value)
