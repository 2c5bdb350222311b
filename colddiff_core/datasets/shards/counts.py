"""Record counts of shards: read from shards.json next to them, or counted once and cached."""

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

from colddiff_core.datasets import cache
from colddiff_core.datasets.shards.archive import ShardOpener
from colddiff_core.datasets.shards.listing import MAX_LIST_BYTES, ShardLocation
from colddiff_core.datasets.shards.tar_index import ShardIndex
from colddiff_core.distributed import environment
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import parse_json, read_ordinary, whole
from colddiff_core.images import READABLE
from colddiff_core.paths import cache_folder

COUNTS_FILE = "shards.json"
MAX_RECORDS = 10**9  # per shard
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)  # raised on a damaged file
COUNTING_THREADS = 8  # bound by the disk or the network, not by the CPU


@dataclasses.dataclass(frozen=True)
class ShardCount:
    """The content of a shard.

    Attributes:
        records: Number of records.
        classes: Number of classes; 0 if a record has no label.
        suffixes: Suffixes of the images.
        damage: See `ShardIndex`; not part of the JSON, which says what a shard should hold.
    """

    records: int
    classes: int
    suffixes: frozenset[str]
    damage: str = ""

    @classmethod
    def of(cls, index: ShardIndex) -> ShardCount:
        """Return the counts of an index."""
        return cls(len(index), index.class_count, index.suffixes, index.damage)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> ShardCount:
        """Parse the output of `to_json`.

        Raises:
            ValueError: A value is out of range.
            KeyError: A key is missing.
            TypeError: A value has the wrong type.
        """
        records, classes, suffixes = entry["records"], entry["classes"], frozenset(entry["suffixes"])
        if type(records) is not int or type(classes) is not int or not suffixes <= READABLE:
            raise ValueError("not a shard count")
        if not (0 <= records <= MAX_RECORDS and 0 <= classes <= MAX_RECORDS):
            raise ValueError("not a shard count")
        return cls(records, classes, suffixes)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {"records": self.records, "classes": self.classes, "suffixes": sorted(self.suffixes)}


def counts_json(shards: Mapping[str, tuple[int, ShardCount]], classes: Sequence[str]) -> str:
    """Return the text of shards.json.

    Args:
        shards: Size in bytes and counts of each shard, by name.
        classes: Names of the classes.
    """
    entries = [{"name": name, "bytes": size} | count.to_json() for name, (size, count) in shards.items()]
    return json.dumps({"classes": list(classes), "shards": entries}, indent=1) + "\n"


def count_shards(shards: Sequence[ShardLocation], root: Path, split: str) -> tuple[list[ShardCount], tuple[str, ...]]:
    """Return the counts of each shard, and the class names if shards.json covers all shards.

    A file is counted again if its size differs from shards.json, or if two shards share its name.

    Raises:
        UsageError: A shard is missing, or its command fails or prints no records.
        MachineError: The disk has no room for the output of a command.
    """
    listed, classes = _read_counts_file(root / COUNTS_FILE)
    counts: dict[str, ShardCount] = {}
    stamps = {shard.name: _stamp(shard) for shard in shards}
    name_counts = collections.Counter(shard.file_name for shard in shards)
    for shard in shards:
        entry = listed.get(shard.file_name) if name_counts[shard.file_name] == 1 else None
        stamp = stamps[shard.name]
        if entry and (shard.path is None or (stamp and stamp[0] == entry[0])):
            counts[shard.name] = entry[1]
    is_complete = len(counts) == len(shards)
    if not is_complete:
        counts |= _kept_or_scanned([shard for shard in shards if shard.name not in counts], stamps, root, split)
        for shard in shards:
            entry = listed.get(shard.file_name) if name_counts[shard.file_name] == 1 else None
            count = counts[shard.name]
            if entry and count.records < entry[1].records:  # it may have been cut between two records
                damage = f"{count.damage or 'too few records'}, {entry[1].records} listed in {COUNTS_FILE}"
                counts[shard.name] = dataclasses.replace(count, damage=damage)
    return [counts[shard.name] for shard in shards], classes if is_complete else ()


def _read_counts_file(path: Path) -> tuple[dict[str, tuple[int, ShardCount]], tuple[str, ...]]:
    """Return the sizes and counts in shards.json, and its class names; damaged entries are left out."""
    shards: dict[str, tuple[int, ShardCount]] = {}
    with contextlib.suppress(*DAMAGED):
        content = parse_json(read_ordinary(path, MAX_LIST_BYTES))
        classes = tuple(content["classes"])
        if not all(isinstance(name, str) for name in classes):
            return {}, ()
        for entry in content["shards"]:
            with contextlib.suppress(*DAMAGED):
                shards[entry["name"]] = (int(entry["bytes"]), ShardCount.from_json(entry))
        return shards, classes
    return {}, ()


def forget(place: ShardLocation, root: Path, split: str) -> str:
    """Drop the cached counts of a shard that has changed, and return what the user must do to have it counted again."""
    path = _kept_at(root, split)
    with contextlib.suppress(OSError, MachineError), cache.lock(path):
        kept = _kept(path)
        if kept.pop(place.name, None):
            _keep(path, ((name, *found) for name, found in kept.items()))
    return f"remove {root / COUNTS_FILE} and start again" if (root / COUNTS_FILE).exists() else "start again"


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


def _scanned(shards: Sequence[ShardLocation]) -> dict[str, ShardCount]:
    opener = ShardOpener()

    def scan(shard: ShardLocation) -> ShardCount:
        count = ShardCount.of(opener.open(shard).index)
        if shard.command and not count.records:
            what = f"The command {shard.command} ended with exit code 0 but printed no tar archive with records."
            raise UsageError(what, "Run it in a shell to see why.")
        return count

    with ThreadPoolExecutor(max(COUNTING_THREADS, environment.processors())) as pool:
        try:
            return dict(zip((shard.name for shard in shards), pool.map(scan, shards), strict=True))
        except BaseException:
            opener.close()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _kept(path: Path) -> dict[str, tuple[tuple[int, int] | None, ShardCount]]:
    try:
        entries = parse_json(read_ordinary(path, MAX_LIST_BYTES)).items()
        return {
            name: (
                tuple(stamp) if stamp else None,
                dataclasses.replace(ShardCount.from_json(count), damage=str(damage)),
            )
            for name, (stamp, count, damage) in entries  # earlier versions kept no damage: they count again
        }
    except DAMAGED:
        return {}


def _keep(path: Path, entries: Iterable[tuple[str, tuple[int, int] | None, ShardCount]]) -> None:
    text = json.dumps({name: (stamp, count.to_json(), count.damage) for name, stamp, count in entries})
    with contextlib.suppress(MachineError), whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _stamp(shard: ShardLocation) -> tuple[int, int] | None:
    return cache.stamp(shard.path) if shard.path else None
