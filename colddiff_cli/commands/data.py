"""`colddiff data`: image files made into what a training streams."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from colddiff_cli.arguments import inputs as inputs_
from colddiff_cli.arguments import options, outputs
from colddiff_cli.console.screen import Screen
from colddiff_cli.picture_series import series
from colddiff_core.config.schema import MOST_SIDE_PIXELS
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.datasets.base import Split
    from colddiff_core.datasets.shards.pack import PackedSplit, ShardLimits, Splits

COMMAND = "data pack"


def pack(
    sources: Annotated[list[str] | None, typer.Argument(help="Images, folders, globs.", metavar="SOURCE...")] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out-dir", help="Where the shards go.", parser=outputs.folder, metavar="DIR")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="A known data set in place of files.", metavar="NAME")
    ] = None,
    data_dir: options.DataDir = None,
    records: Annotated[int, typer.Option("--records", help="Images of a shard at most.", min=1)] = 10_000,
    megabytes: Annotated[int, typer.Option("--megabytes", help="Size of a shard at most.", min=1)] = 256,
    size: Annotated[
        int,
        typer.Option(
            "--size",
            help="Scale and crop to squares of this side, as PNG (files as they are).",
            min=0,
            max=MOST_SIDE_PIXELS,
        ),
    ] = 0,
    channels: Annotated[int, typer.Option("--channels", help="1 for gray, 3 for color, as PNG.", min=0, max=3)] = 0,
    seed: options.Seed = None,
    resume: options.Resume = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Pack images into tar shards, mixed, to be trained on as the data set `shards`.

    A folder with train and test in it keeps these splits; of other files a tenth is for testing.
    """
    screen = Screen(json)
    if out_dir is None:
        raise UsageError("No folder was named for the shards.", "Name it with --out-dir.")
    if channels == 2:
        raise UsageError("--channels 2: pictures have 1 or 3.", "Use 1 for gray or 3 for color.")
    splits, given = _splits(sources or [], dataset, data_dir, size, channels)

    from colddiff_core.datasets.shards import counts
    from colddiff_core.datasets.shards import pack as packing
    from colddiff_core.experiment import versions

    asked = {"records": records, "megabytes": megabytes, "size": size, "channels": channels, "seed": seed or 0}
    settings = {"sources": given} | asked | {"versions": versions()}
    old = _check_folder(out_dir, settings, is_resumed=resume, is_forced=force)
    with series.Series([out_dir / counts.LIST], COMMAND, settings, resume=resume, force=force) as own:
        try:
            own.place(0)  # the folder is this call's from here, and the list of what --force overwrites is gone
            for path in old if force else []:
                path.unlink(missing_ok=True)
            most = packing.ShardLimits(records, megabytes * packing.MEGABYTE)
            packed = _pack(screen, splits, out_dir, most, seed or 0)
            packing.finish(out_dir, packed, splits.classes)
        except KeyboardInterrupt:
            there = len(packing.in_the_way(out_dir)[0])
            what = f"Interrupted: {counted(there, 'whole shard')} {'is' if there == 1 else 'are'} in {out_dir}."
            how = "--resume in place of --force" if force else "--resume"
            raise series.SeriesInterrupted(what, f"Go on with them: the same call with {how}.") from None
    if own.is_complete and all(made.kept == len(made.shards) for made in packed.values()):
        screen.say("Nothing is missing: all were there already.")
    for split, made in packed.items():
        screen.say(_told(split, made))
    told = {split: _table(made) for split, made in packed.items()}
    screen.result({"out_dir": str(out_dir), "classes": list(splits.classes)} | told, last=out_dir)


def _check_folder(folder: Path, settings: series.Settings, *, is_resumed: bool, is_forced: bool) -> list[Path]:
    """Return the shards that are there already; raises UsageError where they are not to be touched, or in the way."""
    from colddiff_core.datasets.shards import counts
    from colddiff_core.datasets.shards import pack as packing

    own, others = packing.in_the_way(folder)
    if others:
        raise UsageError(f"{others[0]} is in the way: it would be taken for one of these.", "Give another --out-dir.")
    if own and not (is_resumed or is_forced):
        is_marked = series.SeriesManifest.of(folder, COMMAND, settings, [counts.LIST]).is_there
        outputs.check(own[0], "another --out-dir" + (", go on with --resume" if is_marked else ""), force=False)
    return own


def _pack(screen: Screen, splits: Splits, folder: Path, limits: ShardLimits, seed: int) -> dict[Split, PackedSplit]:
    """Pack all splits under a progress bar."""
    from colddiff_core.datasets.shards import pack as packing

    packed: dict[Split, PackedSplit] = {}
    total = sum(map(len, splits.sources.values()))
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("packed", total=total)
        done = 0
        for split, source in splits.sources.items():

            def at_record(number: int, before: int = done) -> None:
                progress.update(task, completed=before + number)

            packed[split] = packing.pack(source, split, folder, limits, seed, at_record)
            done += len(source)
    return packed


def _splits(
    sources: list[str], dataset: str | None, data_dir: Path | None, size: int, channels: int
) -> tuple[Splits, dict[str, Any]]:
    """Return what is to be packed, and what tells it apart from anything else."""
    from colddiff_core.datasets import DatasetRequest
    from colddiff_core.datasets.shards import pack as packing

    if bool(sources) == bool(dataset):
        raise UsageError("Name either files to pack or a --dataset.", "For example: colddiff data pack PHOTOS.")
    if data_dir and not dataset:
        raise UsageError("--data-dir has no use for files.", "Name the data set that lies there with --dataset.")
    if dataset is not None:
        if not size:
            raise UsageError(f"The images of {dataset} are scaled to a size.", "Name it with --size.")
        splits = packing.of_set(dataset, DatasetRequest("train", size, channels, data_dir))
        images = {split: f"{len(source)} {source.images.digest()}" for split, source in splits.sources.items()}  # type: ignore[attr-defined]
        return splits, {"dataset": dataset} | images
    folder = Path(sources[0])
    if len(sources) == 1 and sources[0] and folder.is_dir():
        splits = packing.of_tree(folder, size, channels)
    else:
        files = inputs_.listed(sources)
        for path, is_named in files:
            if is_named and not path.exists():  # one name is a whole class
                raise UsageError(f"No such file: {path}.", "Check the path.")
        splits = packing.of_files([path for path, _ in files], size, channels)
    paths = [path for source in splits.sources.values() for path in source.paths]  # type: ignore[attr-defined]
    return splits, series.fingerprint(paths)


def _told(split: str, made: PackedSplit) -> str:
    left = f"; left out {counted(made.skipped, 'file')} that could not be read" if made.skipped else ""
    return f"{split}: {counted(made.records, 'image')} in {counted(len(made.shards), 'shard')}{left}"


def _table(made: PackedSplit) -> dict[str, Any]:
    size = sum(size for size, _ in made.shards.values())
    return {"records": made.records, "skipped": made.skipped, "shards": list(made.shards), "bytes": size}
