"""How many records shards hold: told by shards.json beside them, else counted once and kept in the user's cache."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from colddiff_core import devices
from colddiff_core.datasets import cache
from colddiff_core.datasets.shards.archive import ShardIndex, ShardOpener
from colddiff_core.datasets.shards.listing import LARGEST_LIST, ShardLocation
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import parse_json, read_ordinary, whole
from colddiff_core.images import SUFFIXES
from colddiff_core.paths import cache_folder

LIST = "shards.json"
MOST_RECORDS = 10**9  # of a shard
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)  # what reading such a list raises
COUNTERS = 8  # shards counted at a time: what is waited for is the disk or the network


@dataclasses.dataclass(frozen=True)
class ShardCount:
    """What a shard holds: how many records, of how many classes (0 where one tells none), the images' suffixes."""

    records: int
    classes: int
    suffixes: frozenset[str]

    @classmethod
    def of(cls, index: ShardIndex) -> ShardCount:
        return cls(len(index), index.class_count, index.suffixes)

    @classmethod
    def parsed(cls, told: Mapping[str, Any]) -> ShardCount:
        """Return what was written by `table`; raises ValueError, KeyError, TypeError for anything else."""
        records, classes, suffixes = told["records"], told["classes"], frozenset(told["suffixes"])
        if type(records) is not int or type(classes) is not int or not suffixes <= SUFFIXES:
            raise ValueError("no count")
        if not (0 <= records <= MOST_RECORDS and 0 <= classes <= MOST_RECORDS):
            raise ValueError("no count")
        return cls(records, classes, suffixes)

    def table(self) -> dict[str, Any]:
        return {"records": self.records, "classes": self.classes, "suffixes": sorted(self.suffixes)}


def listing(shards: Mapping[str, tuple[int, ShardCount]], classes: Sequence[str]) -> str:
    """Return the text of a shards.json: the bytes of each shard and what it holds, and the names of the classes."""
    told = [{"name": name, "bytes": size} | count.table() for name, (size, count) in shards.items()]
    return json.dumps({"classes": list(classes), "shards": told}, indent=1) + "\n"


def counted(places: Sequence[ShardLocation], root: Path, split: str) -> tuple[list[ShardCount], tuple[str, ...]]:
    """Return what each of a folder's shards holds, and the names of their classes where they are told.

    A file of another size than shards.json says is counted, and so are those of one name. Raises UsageError for a shard
    that is absent, a command that fails and one that prints no records; MachineError where the disk has no room for
    what one prints.
    """
    sizes, classes = _listed(root / LIST)
    found: dict[str, ShardCount] = {}
    stamps = {place.name: _stamp(place) for place in places}
    called = collections.Counter(place.file_name for place in places)
    for place in places:
        told = sizes.get(place.file_name) if called[place.file_name] == 1 else None
        stamp = stamps[place.name]
        if told and (place.path is None or (stamp and stamp[0] == told[0])):
            found[place.name] = told[1]
    is_told = len(found) == len(places)
    if not is_told:
        found |= _kept_or_scanned([place for place in places if place.name not in found], stamps, root, split)
    return [found[place.name] for place in places], classes if is_told else ()


def _listed(path: Path) -> tuple[dict[str, tuple[int, ShardCount]], tuple[str, ...]]:
    """Return what a shards.json tells: nothing where there is none, or it is damaged, and of no damaged entry."""
    found: dict[str, tuple[int, ShardCount]] = {}
    with contextlib.suppress(*DAMAGED):
        told = parse_json(read_ordinary(path, LARGEST_LIST))
        classes = tuple(told["classes"])
        if not all(isinstance(name, str) for name in classes):
            return {}, ()
        for entry in told["shards"]:
            with contextlib.suppress(*DAMAGED):
                found[entry["name"]] = (int(entry["bytes"]), ShardCount.parsed(entry))
        return found, classes
    return {}, ()


def forget(place: ShardLocation, root: Path, split: str) -> str:
    """Drop what is kept of a shard that holds something else by now; return what has it counted anew."""
    path = _kept_at(root, split)
    with contextlib.suppress(OSError, MachineError), cache.lock(path):
        kept = _kept(path)
        if kept.pop(place.name, None):
            _keep(path, ((name, *found) for name, found in kept.items()))
    return f"remove {root / LIST} and start again" if (root / LIST).exists() else "start again"


def _kept_at(root: Path, split: str) -> Path:
    name = hashlib.blake2b(repr((os.path.abspath(root), split)).encode(), digest_size=16).hexdigest()
    return cache_folder("shards") / f"{name}.json"


def _kept_or_scanned(
    places: Sequence[ShardLocation], stamps: Mapping[str, tuple[int, int] | None], root: Path, split: str
) -> dict[str, ShardCount]:
    path = _kept_at(root, split)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, MachineError):  # of processes that start together, one counts
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(cache.lock(path))
        kept = {name: count for name, (stamp, count) in _kept(path).items() if stamp == stamps.get(name, ())}
        missing = [place for place in places if place.name not in kept]
        found = {place.name: kept[place.name] for place in places if place.name in kept}
        if missing:
            found |= _scanned(missing)
            _keep(path, ((name, stamps[name], count) for name, count in found.items()))
        return found


def _scanned(places: Sequence[ShardLocation]) -> dict[str, ShardCount]:
    opener = ShardOpener()

    def scan(place: ShardLocation) -> ShardCount:
        count = ShardCount.of(opener.open(place).index)
        if place.command and not count.records:
            what = f"The command {place.command} ended with exit code 0 and printed no tar archive with records."
            raise UsageError(what, "Try it in a shell.")
        return count

    with ThreadPoolExecutor(max(COUNTERS, devices.processors())) as pool:
        try:
            return dict(zip((place.name for place in places), pool.map(scan, places), strict=True))
        except BaseException:
            opener.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _kept(path: Path) -> dict[str, tuple[tuple[int, int] | None, ShardCount]]:
    try:
        told = parse_json(read_ordinary(path, LARGEST_LIST))
        return {
            name: (tuple(stamp) if stamp else None, ShardCount.parsed(count)) for name, (stamp, count) in told.items()
        }
    except DAMAGED:
        return {}


def _keep(path: Path, found: Iterable[tuple[str, tuple[int, int] | None, ShardCount]]) -> None:
    text = json.dumps({name: (stamp, count.table()) for name, stamp, count in found})
    with contextlib.suppress(MachineError), whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _stamp(place: ShardLocation) -> tuple[int, int] | None:
    return cache.stamp(place.path) if place.path else None
