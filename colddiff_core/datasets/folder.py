"""Any tree of images as a data set."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from colddiff_core.datasets.archives import load_place
from colddiff_core.datasets.base import DatasetRequest, ImageSet, Split, register
from colddiff_core.datasets.decoding import decode, relative_folders
from colddiff_core.datasets.picture_files import FoundPictures, find_pictures, is_picture_name
from colddiff_core.datasets.splits import NAMES, archive_stem, find_splits, names_in
from colddiff_core.errors import UsageError
from colddiff_core.images import SUFFIXES
from colddiff_core.text import counted, named

TEST_SHARE = 0.1
MAX_OUTER_FOLDERS = 8  # around the splits, as archives have them that were unpacked


@dataclasses.dataclass(frozen=True)
class FolderSplits:
    """How the images of a folder are split.

    Attributes:
        places: The folder or archive of each split, if it has its own.
        found: The images of the whole folder, if the splits have no places.
        root: The folder that class names are relative to, if the splits have no places.
        remarks: What a user should know about it, a line each.
    """

    places: dict[Split, Path]
    found: FoundPictures | None = None
    root: Path | None = None
    remarks: tuple[str, ...] = ()


@register("folder", has_crops=True)
def load(request: DatasetRequest) -> ImageSet:
    """Return the images under a folder as (N, C, H, W) uint8, scaled and center-cropped.

    RGB unless gray is requested. See `split_folder` for the splits. If every image lies in one of several subfolders,
    these are the classes. Files that are unreadable or too small for a crop are skipped, counted and named.

    Raises:
        UsageError: The folder is missing, or has no readable image in the split.
    """
    root = checked_folder("folder", request.directory)
    splits = split_folder(root)
    if splits.found is None or splits.root is None:
        if request.split not in splits.places:
            raise no_training_images(root, splits.places["test"])
        images = load_place(splits.places[request.split], request, tuple(splits.places.values()))
    else:
        paths = splits.found.paths
        chosen = hashed_split(paths, root, request.split, splits.found)
        images = decode(chosen, request, splits.root, relative_folders(paths, splits.root))
    return dataclasses.replace(images, remarks=(*splits.remarks, *images.remarks))


def checked_folder(name: str, root: Path | None) -> Path:
    """Return the folder of the data set `name`.

    Raises:
        UsageError: There is none, or it is not a folder.
    """
    if root is None:
        raise UsageError(f"The dataset '{name}' needs a folder.", "Name it with --data-dir.")
    if not root.is_dir():
        what = f"{root} is not a folder." if os.path.lexists(root) else f"No such folder: {root}."
        raise UsageError(what, "Name an existing one with --data-dir.")
    return root


def split_folder(root: Path) -> FolderSplits:
    """Return how the images of a folder are split.

    If it has `train`, and `test` or `val` (folders or tar archives, see `splits.NAMES`), those are the splits.
    Otherwise a tenth of the files is held out, chosen by a hash of their relative paths; `train` alone is the whole.

    Raises:
        UsageError: There is only an archive of training images.
    """
    training, held_out = find_splits(root, "train"), find_splits(root, "test")
    if training and held_out:
        if os.path.samefile(training[0], held_out[0]):
            what = f"{training[0]} and {held_out[0]} are the same."
            raise UsageError(what, "Hold out other images, or remove one of them to hold out a tenth.")
        return FolderSplits({"train": training[0], "test": held_out[0]}, remarks=_unused(root, training, held_out))
    if inner := _folder_of_splits(root):
        return split_folder(inner)
    found = find_pictures(root)
    if not training and not held_out:
        return FolderSplits({}, found, root, (*_not_classes(found, root), *found.remarks))
    place = (training or held_out)[0]
    base, lacking = root, "test or val" if training else "train"
    if found.paths and not place.is_dir():
        what = f"{root}: {place.name} is not used, because there is no {lacking}"
    elif found.paths and not all(path.is_relative_to(place) for path in found.paths):
        what = f"{root} has {place.name} but no {lacking}: {place.name} counts as a class"
    elif held_out:
        return FolderSplits({"test": place})
    elif not place.is_dir():
        remedy = f"Add {place.name.replace(archive_stem(place.name), 'test')}, or unpack it."
        raise UsageError(f"There is only {place.name} in {root}, and nothing to test on.", remedy)
    else:
        base, what = place, f"{root} has no {lacking}: a tenth of {place.name} is held out"
    return FolderSplits({}, found, base, (what, *_not_classes(found, base), *found.remarks))


def _folder_of_splits(root: Path) -> Path | None:
    """Return the folder that has both splits, if `root` and the folders down to it have nothing else."""
    for _ in range(MAX_OUTER_FOLDERS):
        names = [name for name in names_in(root) if is_picture_name(name) or (root / name).is_dir()]
        if len(names) != 1 or not (root / names[0]).is_dir():
            return None
        root = root / names[0]
        if find_splits(root, "train") and find_splits(root, "test"):
            return root
    return None


def _not_classes(found: FoundPictures, root: Path) -> Iterator[str]:
    """Yield lines about folders that are not taken for what they seem to be: classes, or splits."""
    folders = relative_folders(found.paths, root)
    kinds = sorted({folder.partition("/")[0] for folder in folders} - {"."})
    if len(kinds) > 1 and (beside := folders.count(".")):
        what = f"{root}: {counted(beside, 'picture')} in no subfolder"
        yield f"{what}, so {named(kinds, len(kinds))} are not taken for classes"
    below = {folder: set(folder.lower().split("/")[1:]) for folder in sorted(set(folders))}
    kept = [folder for folder, words in below.items() if not words.isdisjoint(NAMES["test"])]
    if kept and any(not words.isdisjoint(NAMES["train"]) for words in below.values()):
        what = f"{root}: {kept[0]} and the like are trained on too"
        yield f"{what}; name a folder that has train and test or val in it"


def _unused(root: Path, training: Sequence[Path], held_out: Sequence[Path]) -> tuple[str, ...]:
    """Return a line about what is in a folder beside its splits, if anything is."""
    used = {training[0].name, held_out[0].name}
    others = [
        name
        for name in names_in(root)
        if name not in used and ((root / name).is_dir() or archive_stem(name) or is_picture_name(name))
    ]
    line = f"{root}: {training[0].name} is trained on, {held_out[0].name} is held out"
    return (f"{line}; not used: {named(others, len(others))}",) if others else ()


def no_training_images(root: Path, held_out: Path) -> UsageError:
    """Return the error for a folder that has nothing but images that are held out."""
    what = f"{root} has only {held_out.name}, which is held out, and nothing to train on."
    return UsageError(what, f"Add a folder train, or name {held_out} itself to hold out a tenth of it.")


def hashed_split(paths: list[Path], root: Path, split: str, found: FoundPictures | None = None) -> list[Path]:
    """Return the paths that belong to a split, chosen by a hash of each path relative to `root`.

    Raises:
        UsageError: There are fewer than two paths; it says what `found` has left out.
    """
    if len(paths) < 2:
        what = f"Only one image in {root}" if paths else f"No images in {root}"
        left_out = f": {found.left_out}" if found and found.left_out else ""
        remedy = f"Add images: a dataset needs at least two, one of them to test on ({', '.join(sorted(SUFFIXES))})."
        raise UsageError(f"{what}{left_out}.", remedy)
    names = [path.relative_to(root).as_posix() for path in paths]
    test_names = held_out(names)
    return [path for path, name in zip(paths, names, strict=True) if (name in test_names) == (split == "test")]


def held_out(names: Sequence[str]) -> set[str]:
    """Return the names to test on, about a tenth of them: at least one, but never all. Needs two names or more."""
    ranks = sorted((rank(name), name) for name in names)
    chosen = {name for position, name in ranks if position < TEST_SHARE} or {ranks[0][1]}
    if len(chosen) == len(names):
        chosen.discard(ranks[-1][1])
    return chosen


def rank(name: str) -> float:
    """Return a hash of the name in [0, 1); it depends on nothing else, so new files never move old ones."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=7).digest(), "big") / 2**56
