"""Find the shards of a folder: tar archives, or lists of archives and of commands that print one."""

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
MAX_SHARDS = 1_000_000
MAX_LIST_BYTES = 1 << 28
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_ARCHIVE = re.compile(r"[^/\\\s'\"=]+\.(?:tar\.gz|tar|tgz)(?![\w.])")


@dataclasses.dataclass(frozen=True)
class ShardLocation:
    """Where to find one shard: a file, or a command that prints it.

    Attributes:
        name: Its name in the list, unique in the folder.
        folder: The folder that a command runs in.
        path: The file; None for a command.
    """

    name: str
    folder: Path
    path: Path | None = None

    @property
    def command(self) -> str:
        """The shell command; empty for a file."""
        return "" if self.path else self.name.removeprefix(PIPE).strip()

    @property
    def file_name(self) -> str:
        """Name of the archive in shards.json; for a command, the first archive name in it, or empty."""
        match = _ARCHIVE.search(self.name)
        return self.path.name if self.path else match[0] if match else ""


def locations(root: Path, request: DatasetRequest) -> list[ShardLocation]:
    """Return the shards of a split, sorted by name or in the order of the list.

    `train.urls` and `test.urls` list them; otherwise they are `train-*.tar` and `test-*.tar`, optionally gzipped. If
    there are no test shards, about a tenth of the training shards is held out, chosen by a hash of their names.

    Raises:
        UsageError: The split has no shards, a list cannot be read, or there are commands and `request.download` is
            off. Commands may come from someone else, so they never run without the user's consent.
    """
    train, test = (_listed(root, split) for split in ("train", "test"))
    if not train:
        what = f"No shards in {root}: no train-*.tar and no train.urls."
        raise UsageError(what, "Pack some with colddiff data pack, or name their folder with --data-dir.")
    shards = train if request.split == "train" else test
    if not test:
        if len(train) == 1:
            what = f"Only one shard in {root}, {train[0].name}, and none to test on."
            raise UsageError(what, "Add test-*.tar or test.urls, or pack again with a smaller --records.")
        test_names = held_out([shard.name for shard in train])
        shards = [shard for shard in train if (shard.name in test_names) == (request.split == "test")]
    if not request.download and any(shard.command for shard in shards):
        what = f"The shards in {root} are commands, and commands need your consent: {shown(shards[0].name)}."
        raise UsageError(what, "If you trust them, name the folder with --data-dir or set data.download=true.")
    return shards


def _listed(root: Path, split: Split) -> list[ShardLocation]:
    path = root / f"{split}.urls"
    if path.exists():
        return list(_read(path))
    files = (file for ending in ARCHIVES for file in root.glob(f"{split}-*{ending}"))
    return [ShardLocation(file.name, root, file) for file in sorted(files) if file.is_file()]


def _read(path: Path) -> Iterator[ShardLocation]:
    """Yield the shards in a list. Raises UsageError if it is not a list or names a shard twice."""
    try:
        text = read_ordinary(path, MAX_LIST_BYTES).decode()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.", "Check the file.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.", "Write one shard per line.") from None
    lines = (line.strip() for line in text.splitlines())
    names = itertools.chain.from_iterable(expand_ranges(line) for line in lines if line and not line.startswith("#"))
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{path} lists {shown(name)} twice.", "Remove one of them.")
        seen.add(name)
        if len(seen) > MAX_SHARDS:
            raise UsageError(f"{path} lists more than {MAX_SHARDS:,} shards.", "Use larger shards.")
        if name.startswith(PIPE):
            yield ShardLocation(name, path.parent)
        elif "://" in name:
            remedy = f"Write a command that downloads it: {PIPE}curl -s -L {name}"
            raise UsageError(f"{path}: {shown(name)} is a URL, and a shard is a file or a command.", remedy)
        else:
            yield ShardLocation(name, path.parent, path.parent / name)


def expand_ranges(line: str) -> Iterator[str]:
    """Yield the names that a line stands for, with each range such as `{000..012}` expanded.

    Numbers are zero-padded to the wider end if one of the ends starts with a zero.

    Raises:
        UsageError: A range has too many numbers.
    """
    match = _RANGE.search(line)
    if match is None:
        yield line
        return
    low, high = match.groups()
    first, last = int(low), int(high)
    if abs(last - first) >= MAX_SHARDS:
        raise UsageError(f"{match[0]} is more than {MAX_SHARDS:,} shards.", "Use larger shards.")
    width = max(len(low), len(high)) if (low + " " + high)[0] == "0" or high[0] == "0" else 0
    rest = list(itertools.islice(expand_ranges(line[match.end() :]), MAX_SHARDS + 1))
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        for ending in rest:
            yield f"{line[: match.start()]}{number:0{width}d}{ending}"
