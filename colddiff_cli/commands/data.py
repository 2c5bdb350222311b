"""`colddiff data`: pack images into shards that training can stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import completions, options, outputs, registered
from colddiff_cli.arguments import inputs as inputs_
from colddiff_cli.console.screen import Screen
from colddiff_cli.picture_series import manifest, series
from colddiff_core.config import sizes
from colddiff_core.errors import UsageError
from colddiff_core.text import counted, named

if TYPE_CHECKING:
    from colddiff_core.datasets.base import Split
    from colddiff_core.datasets.shards.pack import PackedSplit, ShardLimits
    from colddiff_core.datasets.shards.sources import Splits

COMMAND = "data pack"


def pack(
    sources: Annotated[list[str] | None, typer.Argument(help="Images, folders, globs.", metavar="SOURCE...")] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out-dir", help="Folder for the shards.", parser=outputs.folder, metavar="DIR")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="Pack this data set instead of files.",
            metavar="NAME",
            autocompletion=completions.one_of(lambda: registered.names("datasets")),
        ),
    ] = None,
    data_dir: options.DataDir = None,
    records: Annotated[int, typer.Option("--records", help="Most images in a shard.", min=1)] = 10_000,
    megabytes: Annotated[int, typer.Option("--megabytes", help="Largest size of a shard.", min=1)] = 256,
    size: Annotated[
        Any,
        typer.Option(
            "--size",
            help="Scale and crop to this side, or height,width, as PNG (0: keep files unchanged).",
            parser=options.size,
            metavar="PIXELS",
        ),
    ] = 0,
    channels: Annotated[
        int,
        typer.Option(
            "--channels",
            help="1 for gray, 3 for color, as PNG (0: keep).",
            min=0,
            max=3,
            autocompletion=completions.one_of(completions.choices("data.channels")),
        ),
    ] = 0,
    seed: options.Seed = None,
    resume: options.Resume = False,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Pack images into shuffled tar shards, to train on with `data.dataset=shards`.

    A folder with train, and test or val, keeps its splits; otherwise a tenth of the files is held out for testing.
    """
    screen = Screen(json)
    if out_dir is None:
        raise UsageError("No output folder.", "Name it with --out-dir.")
    if channels == 2:
        raise UsageError("--channels 2 is not supported.", "Use 1 for gray or 3 for color.")
    splits, given = _splits(sources or [], dataset, data_dir, size, channels)
    for remark in splits.remarks:
        screen.warn(remark)

    from colddiff_core.datasets.shards.counts import COUNTS_FILE
    from colddiff_core.datasets.shards.pack import MEGABYTE_BYTES, ShardLimits, existing_shards, finish
    from colddiff_core.experiment import versions

    asked = {
        "records": records,
        "megabytes": megabytes,
        "size": sizes.plain(size),
        "channels": channels,
        "seed": seed or 0,
    }
    settings = {"sources": given} | asked | {"versions": versions()}
    old = _check_folder(out_dir, settings, is_resumed=resume, is_forced=force)
    with series.Series([out_dir / COUNTS_FILE], COMMAND, settings, resume=resume, force=force) as own:
        try:
            own.place(0)  # claims the folder and removes the old shards.json
            for path in old if force else []:
                path.unlink(missing_ok=True)
            limits = ShardLimits(records, megabytes * MEGABYTE_BYTES)
            packed = _pack(screen, splits, out_dir, limits, seed or 0)
            finish(out_dir, packed, splits.classes)
        except KeyboardInterrupt:
            complete = len(existing_shards(out_dir)[0])
            what = f"Interrupted: {counted(complete, 'complete shard')} in {out_dir}."
            how = "--resume instead of --force" if force else "--resume"
            raise series.SeriesInterrupted(what, f"To continue, run the same command with {how}.") from None
    if own.is_complete and all(made.kept == len(made.shards) for made in packed.values()):
        screen.say("Nothing to do: all shards are there already.")
    for split, made in packed.items():
        screen.say(_summary(split, made))
    tables = {split: _table(made) for split, made in packed.items()}
    screen.result({"out_dir": str(out_dir), "classes": list(splits.classes)} | tables, last=out_dir)


def _check_folder(folder: Path, settings: manifest.Settings, *, is_resumed: bool, is_forced: bool) -> list[Path]:
    """Return the existing shards. Raises UsageError if they must be kept, or if other shards are in the folder."""
    from colddiff_core.datasets.shards.counts import COUNTS_FILE
    from colddiff_core.datasets.shards.pack import existing_shards

    own, others = existing_shards(folder)
    if others:
        raise UsageError(
            f"{others[0]} is in the way: it would be read as one of the new shards.", "Choose another --out-dir."
        )
    if own and not (is_resumed or is_forced):
        is_marked = manifest.SeriesManifest.of(folder, COMMAND, settings, [COUNTS_FILE]).is_there
        outputs.check(own[0], "another --out-dir" + (", continue with --resume" if is_marked else ""), force=False)
    return own


def _pack(screen: Screen, splits: Splits, folder: Path, limits: ShardLimits, seed: int) -> dict[Split, PackedSplit]:
    """Pack all splits, with a progress bar."""
    from colddiff_core.datasets.shards.pack import pack_split

    packed: dict[Split, PackedSplit] = {}
    total = sum(map(len, splits.sources.values()))
    with screen.progress() as progress:
        task = progress.add_task("packed", total=total)
        done = 0
        for split, source in splits.sources.items():

            def on_progress(number: int, before: int = done) -> None:
                progress.update(task, completed=before + number)

            packed[split] = pack_split(source, split, folder, limits, seed, on_progress)
            done += len(source)
    return packed


def _splits(
    sources: list[str], dataset: str | None, data_dir: Path | None, size: sizes.Size, channels: int
) -> tuple[Splits, dict[str, Any]]:
    """Return the images to pack, and settings that identify them."""
    from colddiff_core.datasets import DatasetRequest
    from colddiff_core.datasets.shards.sources import from_dataset, from_files, from_folder

    if bool(sources) == bool(dataset):
        raise UsageError(
            "Give either files or --dataset, not both.", "For example: colddiff data pack PHOTOS --out-dir SHARDS."
        )
    if data_dir and not dataset:
        raise UsageError("--data-dir needs --dataset.", "Name the data set in that folder with --dataset.")
    if dataset is not None:
        if not size:
            raise UsageError(f"--dataset {dataset} needs an image size.", "Set it with --size, for example --size 32.")
        splits = from_dataset(dataset, DatasetRequest("train", size, channels, data_dir))
        images = {split: f"{len(source)} {source.images.digest()}" for split, source in splits.sources.items()}  # type: ignore[attr-defined]
        return splits, {"dataset": dataset} | images
    folder = Path(sources[0])
    if len(sources) == 1 and sources[0] and folder.is_dir():
        splits = from_folder(folder, size, channels)
    else:
        files = inputs_.listed(sources)
        for path, is_named in files:
            if is_named and not path.exists():  # it may be the folder of a class
                raise UsageError(f"No such file: {path}.", "Check the path.")
        splits = from_files([path for path, _ in files], size, channels)
    paths = [path for source in splits.sources.values() for path in source.paths]  # type: ignore[attr-defined]
    return splits, manifest.fingerprint(paths)


def _summary(split: str, made: PackedSplit) -> str:
    left = f"; left out {counted(made.skipped, 'file')} that could not be read" if made.skipped else ""
    left += f": {named(made.skipped_files, made.skipped)}" if made.skipped_files else ""
    return f"{split}: {counted(made.records, 'image')} in {counted(len(made.shards), 'shard')}{left}"


def _table(made: PackedSplit) -> dict[str, Any]:
    size = sum(size for size, _ in made.shards.values())
    counts = {"records": made.records, "skipped": made.skipped, "skipped_files": made.skipped_files}
    return counts | {"shards": list(made.shards), "bytes": size}
