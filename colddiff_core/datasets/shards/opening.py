"""The data set `shards`: open a split, and say what is wrong with its shards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, ImageSet, register, warn_once
from colddiff_core.datasets.folder import checked_folder
from colddiff_core.datasets.shards import counts, listing
from colddiff_core.datasets.shards.dataset import Shards
from colddiff_core.errors import UsageError
from colddiff_core.text import counted, named, shown

MAX_HELD_RECORDS = 50_000  # of a split that is loaded as one tensor


def open_shards(request: DatasetRequest, lanes: int) -> Shards:
    """Open a split of the shards in a folder; a step reads up to `lanes` of them side by side.

    Raises:
        UsageError: The folder or its shards are missing, a command fails, or there are no records.
        MachineError: The disk has no room for the output of a command.
    """
    root = checked_folder("shards", request.directory)
    split = listing.locations(root, request)
    locations = split.shards
    shard_counts, classes = counts.count_shards(locations, root, request.split)
    if not any(count.records for count in shard_counts):
        why = f": {shard_counts[0].damage}" if shard_counts[0].damage else ""
        what = f"The {request.split} shards in {root} hold no records ({locations[0].name}{why}, and all others)."
        raise UsageError(what, "Check that they are tar archives of images.")
    remarks = (*split.remarks, *_damaged(locations, shard_counts, root))
    for remark in remarks:
        warn_once(remark)
    return Shards(locations, shard_counts, classes, request, lanes, remarks)


def _damaged(
    locations: Sequence[listing.ShardLocation], shard_counts: Sequence[counts.ShardCount], root: Path
) -> Iterator[str]:
    """Yield lines about damaged shards, and how many of their records are used, and about those without records."""
    total = f"of {counted(len(locations), 'shard')} in {root}"
    rows = list(zip(locations, shard_counts, strict=True))
    if damaged := [(shard.name, count) for shard, count in rows if count.damage]:
        first = [f"{shown(name)} ({count.damage}; {counted(count.records, 'record')} used)" for name, count in damaged]
        yield f"{len(damaged)} {total} {_is(damaged)} damaged: {named(first, len(first))}"
    if empty := [shown(shard.name) for shard, count in rows if not count.records and not count.damage]:
        yield f"{len(empty)} {total} {_is(empty)} without records, such as {empty[0]}"


def _is(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"


@register("shards")
def load(request: DatasetRequest) -> ImageSet:
    """Return up to 50,000 records of a split as one tensor, (N, C, H, W) uint8, evenly spaced.

    Unreadable records are skipped and counted.

    Raises:
        UsageError: No record can be read. Other errors are those of `open_shards`.
    """
    with contextlib.closing(open_shards(request, 1)) as shards:
        return shards.load_images(MAX_HELD_RECORDS)
