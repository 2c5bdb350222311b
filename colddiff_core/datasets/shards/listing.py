"""Which shards a folder has: tar archives in it, or lists of archives and of commands that print one."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, Split
from colddiff_core.datasets.decoding import ARCHIVES
from colddiff_core.datasets.folder import held_out
from colddiff_core.errors import UsageError
from colddiff_core.files import read_ordinary
from colddiff_core.text import shown

PIPE = "pipe:"
MOST_SHARDS = 1_000_000
LARGEST_LIST = 1 << 28  # bytes
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_ARCHIVE = re.compile(r"[^/\\\s'\"=]+\.(?:tar\.gz|tar|tgz)(?![\w.])")


@dataclasses.dataclass(frozen=True)
class ShardLocation:
    """Where one shard is: a file's path, or a command that is run in `folder` and prints it.

    name: as it is listed, which no other shard of the folder is called.
    """

    name: str
    folder: Path
    path: Path | None = None

    @property
    def command(self) -> str:
        """Return what a shell is given; empty for a file."""
        return "" if self.path else self.name.removeprefix(PIPE).strip()

    @property
    def file_name(self) -> str:
        """Return the name of the archive, which shards.json knows it by; of a command the first one in it, if any."""
        found = _ARCHIVE.search(self.name)
        return self.path.name if self.path else found[0] if found else ""


def places(root: Path, request: DatasetRequest) -> list[ShardLocation]:
    """Return the shards of a split, in the order of their names or of the list.

    `train.urls` and `test.urls` list them; else they are `train-*.tar` and `test-*.tar`, compressed by gzip or not.
    Where none are for testing, a tenth of the shards is, chosen by a hash of their names, one at least.

    Raises UsageError where the split has none, for a list that cannot be read, and for commands without
    `request.download`: whoever made the folder or the run would have them run.
    """
    train, test = (_listed(root, split) for split in ("train", "test"))
    if not train:
        what = f"No shards in {root}: neither train-*.tar nor train.urls."
        raise UsageError(what, "Make some with colddiff data pack, or name their folder with --data-dir.")
    found = train if request.split == "train" else test
    if not test:
        if len(train) == 1:
            what = f"One shard in {root}, {train[0].name}, and none to test on."
            raise UsageError(what, "Add test-*.tar or test.urls, or pack it anew as several with --records.")
        chosen = held_out([place.name for place in train])
        found = [place for place in train if (place.name in chosen) == (request.split == "test")]
    if not request.download and any(place.command for place in found):
        what = f"The shards in {root} are commands, which are not run unasked: {shown(found[0].name)}."
        raise UsageError(what, "If you trust them, name the folder with --data-dir, or set data.download=true.")
    return found


def _listed(root: Path, split: Split) -> list[ShardLocation]:
    path = root / f"{split}.urls"
    if path.exists():
        return list(_read(path))
    files = (file for ending in ARCHIVES for file in root.glob(f"{split}-*{ending}"))
    return [ShardLocation(file.name, root, file) for file in sorted(files) if file.is_file()]


def _read(path: Path) -> Iterator[ShardLocation]:
    """Yield the places that a list names; raises UsageError for what is no list, and for a name that comes twice."""
    try:
        text = read_ordinary(path, LARGEST_LIST).decode()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.", "Check the file.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text in UTF-8.", "It holds a shard a line.") from None
    lines = (line.strip() for line in text.splitlines())
    names = itertools.chain.from_iterable(expanded(line) for line in lines if line and not line.startswith("#"))
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{path} names {shown(name)} twice.", "Leave one out.")
        seen.add(name)
        if len(seen) > MOST_SHARDS:
            raise UsageError(f"{path} names more than {MOST_SHARDS:,} shards.", "Make larger ones.")
        if name.startswith(PIPE):
            yield ShardLocation(name, path.parent)
        elif "://" in name:
            remedy = f"Write the command that fetches it: {PIPE}curl -s -L {name}"
            raise UsageError(f"{path}: {shown(name)} is an address.", remedy)
        else:
            yield ShardLocation(name, path.parent, path.parent / name)


def expanded(line: str) -> Iterator[str]:
    """Yield the names that a line stands for: `{000..012}` is each number, as wide as the wider end where one has zeros
    in front.
    """
    found = _RANGE.search(line)
    if found is None:
        yield line
        return
    low, high = found.groups()
    first, last = int(low), int(high)
    if abs(last - first) >= MOST_SHARDS:
        raise UsageError(f"{found[0]} is more than {MOST_SHARDS:,} shards.", "Make larger ones.")
    width = max(len(low), len(high)) if (low + " " + high)[0] == "0" or high[0] == "0" else 0
    rest = list(itertools.islice(expanded(line[found.end() :]), MOST_SHARDS + 1))
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        for ending in rest:
            yield f"{line[: found.start()]}{number:0{width}d}{ending}"
