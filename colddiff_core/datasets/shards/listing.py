"""Find the shards of a folder: tar archives, or lists of archives and of commands that print one."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from colddiff_core.datasets.base import DatasetRequest, Split
from colddiff_core.datasets.folder import held_out
from colddiff_core.datasets.splits import NAMES, SPLITS, archive_stem, names_in
from colddiff_core.errors import UsageError
from colddiff_core.files import read_ordinary
from colddiff_core.text import beginning, counted, named, shell_word, shown

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


@dataclasses.dataclass(frozen=True)
class ShardSplit:
    """The shards of a split, and what a user should know about how they were found, a line each."""

    shards: list[ShardLocation]
    remarks: tuple[str, ...] = ()


def locations(root: Path, request: DatasetRequest) -> ShardSplit:
    """Return the shards of a split, sorted by name or in the order of the list.

    `train.urls` and `test.urls` list them; otherwise they are `train-*.tar` and `test-*.tar`, optionally gzipped.
    `val` and the other words of `splits.NAMES` stand for `test`. Where no name begins with `train-`, the word may be
    anywhere in it, or in the folder's; and where no name has it, archives that name no split are the training shards.
    If there are no test shards, about a tenth of the training shards is held out, chosen by a hash of their names.

    Raises:
        UsageError: The split has no shards, a list cannot be read, or there are commands and `request.download` is
            off. Commands may come from someone else, so they never run without the user's consent.
    """
    train, test, unused = _both(root)
    if not train:
        what = f"No shards in {root}: no train-*.tar and no train.urls."
        raise UsageError(what, "Pack some with colddiff data pack, or name their folder with --data-dir.")
    shards = train if request.split == "train" else test
    remarks = []
    if unused:
        remarks.append(f"{root}: left out {counted(len(unused), 'shard')}: {named(unused, len(unused))}")
    if not test:
        if len(train) == 1:
            what = f"Only one shard in {root}, {train[0].name}, and none to test on."
            raise UsageError(what, "Add test-*.tar or test.urls, or pack again with a smaller --records.")
        test_names = held_out([shard.name for shard in train])
        shards = [shard for shard in train if (shard.name in test_names) == (request.split == "test")]
        chosen = sorted(test_names)
        what = f"{root} has no test shards: {len(chosen)} of {counted(len(train), 'shard')} held out"
        remarks.append(f"{what} ({named(chosen, len(chosen))})")
    if not request.download and any(shard.command for shard in shards):
        what = f"The shards in {root} are commands, and commands need your consent: {shown(shards[0].name)}."
        raise UsageError(what, "If you trust them, name the folder with --data-dir or set data.download=true.")
    return ShardSplit(shards, tuple(remarks))


def _both(root: Path) -> tuple[list[ShardLocation], list[ShardLocation], list[str]]:
    """Return the shards of both splits, and the names of archives that are in neither."""
    found = _archives(root)
    taken: set[str] = set()
    both: list[list[ShardLocation]] = []
    for split in SPLITS:
        listed = next((path for word in NAMES[split] if (path := root / f"{word}.urls").exists()), None)
        if listed is not None:
            both.append(list(_read(listed)))
            taken.update(shard.name for shard in both[-1])
            continue
        names = [name for name in found if _named(name) == (split, _best(found, split))]
        if split == "train" and not names:
            names = [name for name in found if _named(name) is None]
        taken.update(names)
        both.append([ShardLocation(name, root, root / name) for name in names])
    has_list = any((root / f"{word}.urls").exists() for word in NAMES["train"])
    return both[0], both[1], [] if has_list else [name for name in found if name not in taken]


def _archives(root: Path) -> list[str]:
    """Return the paths of the archives in a folder, relative to it and sorted; those in its folders if it has none."""
    names = [name for name in names_in(root) if archive_stem(name) and (root / name).is_file()]
    if names:
        return names
    found = []
    for parent, folders, files in os.walk(root):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        paths = (Path(parent, name) for name in files if archive_stem(name) and not name.startswith("."))
        found += [path.relative_to(root).as_posix() for path in paths if path.is_file()]
    return sorted(found)


def _named(name: str) -> tuple[Split, tuple[int, int]] | None:
    """Return the split that the name of an archive says, and how plainly, lower being better; None if it says none."""
    words = re.split(r"[^a-z]+", str(Path(name).with_name(archive_stem(Path(name).name))).lower())
    for split in SPLITS:
        for rank, word in enumerate(NAMES[split]):
            if name.startswith(f"{word}-"):
                return split, (0, rank)
    for split in reversed(SPLITS):  # test_on_train is not to be trained on
        for rank, word in enumerate(NAMES[split]):
            if word in words:
                return split, (1, rank)
    return None


def _best(names: Sequence[str], split: Split) -> tuple[int, int] | None:
    """Return the plainest naming of a split among archives."""
    return min((says[1] for name in names if (says := _named(name)) and says[0] == split), default=None)


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
    characters = 0
    for name in names:
        if "\0" in name:
            raise UsageError(f"{path} lists {shown(name)}, which no file is called.", "Correct the list.")
        if name in seen:
            raise UsageError(f"{path} lists {shown(name)} twice.", "Remove one of them.")
        seen.add(name)
        characters += len(name)
        if characters > MAX_LIST_BYTES:
            raise UsageError(f"{path} lists more than {MAX_LIST_BYTES:,} characters of names.", "Use shorter names.")
        if len(seen) > MAX_SHARDS:
            raise UsageError(f"{path} lists more than {MAX_SHARDS:,} shards.", "Use larger shards.")
        if name.startswith(PIPE):
            yield ShardLocation(name, path.parent)
        elif "://" in name:
            remedy = f"Write a command that downloads it: {PIPE}curl -s -L {shell_word(name)}"
            raise UsageError(f"{path}: {shown(name)} is a URL, and a shard is a file or a command.", remedy)
        else:
            yield ShardLocation(name, path.parent, path.parent / name)


def expand_ranges(line: str) -> Iterator[str]:
    """Yield the names that a line stands for, with each range such as `{000..012}` expanded.

    Numbers are zero-padded to the wider end if one of the ends starts with a zero.

    Raises:
        UsageError: A range has too many numbers.
    """
    texts = _RANGE.split(line)  # text, first number, last number, text, ..., text
    count, choices = 1, [[texts[0]]]
    for low, high, text in zip(texts[1::3], texts[2::3], texts[3::3], strict=True):
        first, last = int(low), int(high)
        count *= abs(last - first) + 1
        if count > MAX_SHARDS:
            what = f"{beginning(line)} is more than {MAX_SHARDS:,} shards."
            raise UsageError(what, "Use larger shards.")
        width = max(len(low), len(high)) if (low + " " + high)[0] == "0" or high[0] == "0" else 0
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        choices += [[f"{number:0{width}d}" for number in numbers], [text]]
    yield from map("".join, itertools.product(*choices))
