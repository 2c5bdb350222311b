"""`colddiff reproduce`: the paper's tables, trained, measured and written by one command."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from colddiff_cli.arguments import options, outputs
from colddiff_cli.console import explain, training_progress
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import REPRODUCED, Row, evaluation_table
from colddiff_cli.jobs import open_run
from colddiff_core import runs
from colddiff_core.config import presets
from colddiff_core.config.schema import Config, DataConfig
from colddiff_core.errors import UsageError
from colddiff_core.paper import report, tables
from colddiff_core.text import nearest

if TYPE_CHECKING:
    from colddiff_core.datasets import ImageSet
    from colddiff_core.datasets.base import Split
    from colddiff_core.paper.reproduction import Result, RunMeasurer

FEW = 1000  # images a row at the small scale; at the paper's, all test images
MANY = 10_000  # generated ones at the paper's scale
TOLD = 3  # differences of a run from its preset that are told
SCALES = ("small", "paper")


def reproduce(
    names: Annotated[
        list[str],
        typer.Argument(
            help="table1 to table6 as the full paper numbers them. Its shorter version has the same tables 1 to 3; its "
            "table 4 is snow here, its table 5 is table4.",
            metavar="TABLE",
        ),
    ],
    scale: Annotated[
        str, typer.Option("--scale", help="small: networks for two cores; paper: the paper's, for a GPU.")
    ] = "small",
    data_sets: Annotated[
        str | None, typer.Option("--datasets", help="The rows of these alone, as mnist,cifar10.", metavar="NAMES")
    ] = None,
    root: Annotated[
        Path,
        typer.Option(
            "--runs",
            help="Where the runs are, and are trained where absent.",
            parser=outputs.runs,
            metavar="DIR",
        ),
    ] = runs.ROOT,
    no_train: Annotated[bool, typer.Option("--no-train", help="Leave out rows without a finished run.")] = False,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir", help="The folder to write (reproduced/TABLES-SCALE).", parser=outputs.folder, metavar="DIR"
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            help="Images a row: of the test set, or generated (1000; at the paper's scale all).",
            min=1,
        ),
    ] = None,
    uint8: options.Uint8 = False,
    features: options.Features = "classifier",
    weights: options.Weights = None,
    overrides: options.Set = None,
    batch_size: options.BatchSize = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Reproduce tables of the paper: a page, JSON, contact sheets. The same command again goes on where it stopped."""
    screen = Screen(json)
    chosen = [tables.find(name) for name in dict.fromkeys(names)]
    if scale not in SCALES:
        raise UsageError(f"No scale '{scale}'.", nearest(scale, SCALES))
    size: tables.Scale = "small" if scale == "small" else "paper"
    if uint8 and any(part.is_generated for table in chosen for part in table.parts):
        raise UsageError("--uint8 is for restored images, and table4 is of generated ones.", "Leave one of them out.")
    _check_changes(overrides or [])
    changes = [*(overrides or []), *([f"train.seed={seed}"] if seed is not None else [])]
    place = options.data_override(data_dir)
    wanted = tables.plan(chosen, size, _chosen_sets(data_sets, chosen))
    configs = {name: presets.load(name, [*changes, *place]) for name in wanted}
    asked = {"uint8": uint8, "n": n, "seed": seed, "set": sorted(overrides or []), "features": features}
    folder = out_dir or Path("reproduced") / _name(chosen, scale, data_sets, asked)
    _check_out(folder, chosen)
    standing = {name: _standing(root / name, config, changes, place) for name, config in configs.items()}
    missing = [name for name in configs if no_train and not standing[name].is_done]
    for name in missing:
        screen.warn(f"{root / name} is not a finished run; its rows are left out")
        del configs[name]
    if not configs:
        raise UsageError(f"No run in {root} is finished.", "Leave --no-train out, or name another --runs.")

    from colddiff_core.evaluation import reference as references

    with explain.advancing(screen) as progress:
        choice = references.prepare(features, weights, device, progress)
    for name in configs:
        if not standing[name].is_done:
            outputs.check_folder(root / name, "another --runs")
            runs.check_free(root / name)
    _check_all([standing[name] for name in configs])

    from colddiff_core.paper import reproduction

    circumstances = _circumstances(device)
    how = reproduction.Measurement(
        restored=n or (FEW if size == "small" else sys.maxsize),
        generated=n or (FEW if size == "small" else MANY),
        is_8bit=uint8,
        batch_size=batch_size,
        circumstances=circumstances,
    )
    told: dict[str, Any] = {"command": shlex.join(["colddiff", *sys.argv[1:]]), "scale": scale}
    told |= {"protocol": "uint8" if uint8 else "float"} | circumstances
    # Of another severity, or sampled in another way, the paper has no figures.
    is_papers = not uint8 and not any(change.strip().startswith(("degradation.", "sample.")) for change in changes)
    results: dict[str, Result] = {}
    # What is trained is measured first, so that the page is never poorer than it could be for long.
    for number, name in enumerate(sorted(configs, key=lambda name: not standing[name].is_done), start=1):
        screen.say(f"{number} of {len(configs)}: {name}")
        run = runs.Run(root / name)
        if not standing[name].is_done:
            _train(screen, run.path, configs[name], place, device)
        trained = open_run.open_run(run, device, tuple(place))
        built, step = trained.experiment, trained.step
        with explain.advancing(screen) as progress:
            reference = references.load(built, choice, progress)
        bench = reproduction.RunMeasurer(run, step, built, reference, how)
        changed = [*changes, *standing[name].changed]
        results[name] = _measure(screen, bench, configs[name], wanted[name], changed)
        in_order = {preset: results[preset] for preset in wanted if preset in results}
        told["missing"] = [preset for preset in wanted if preset not in results]
        made = [table for table in chosen if any(part.preset_at(size) in results for part in table.parts)]
        told["tables"] = [reproduction.tabulate(table, size, in_order, is_papers=is_papers) for table in made]
        page = _write(told, made, size, in_order, folder)
    written = report.read(folder)
    _show(screen, written)
    screen.result(written | {"page": str(page)}, page)


def _measure(screen: Screen, bench: RunMeasurer, config: Config, kinds: list[str], changed: list[str]) -> Result:
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("measuring", total=sum(bench.count(kind) for kind in kinds))

        def advance(kind: str, done: int) -> None:
            progress.update(task, description=kind, advance=done)

        return bench.result(config, kinds, changed, advance)


def _show(screen: Screen, made: dict[str, Any]) -> None:
    """Show the tables of a report; the page has more."""
    for table in made["tables"]:
        rows = {
            f"{row['title']} {row['kind']}": Row(
                row["kind"], row["metrics"], row["intervals"], row["is_scarce"], row["paper"]
            )
            for row in table["rows"]
        }
        screen.show(evaluation_table(f"{table['title']} ({table['numbers']})", rows, REPRODUCED, {}))
        screen.say()


def _write(
    told: dict[str, Any], made: list[tables.Table], scale: tables.Scale, results: dict[str, Result], folder: Path
) -> Path:
    """Complete a report with the results there are, and write it with a contact sheet for each table."""
    from colddiff_core import images
    from colddiff_core.paper import reproduction

    told["runs"] = [result.metadata for result in results.values()]
    told["gaps"] = reproduction.gaps(told["tables"])
    told["diverged"] = reproduction.diverged(told["tables"])
    for table in made:
        images.write(reproduction.contact_sheet(table, scale, results), folder / report.picture(table.name))
    return report.write(told, folder)


def _name(chosen: list[tables.Table], scale: str, data_sets: str | None, asked: dict[str, Any]) -> str:
    """Return the name of the folder for these tables, so that no request writes over another's page."""
    of_tables = [name for name in tables.names() if name in {table.name for table in chosen}]
    words = ["+".join(of_tables), scale]
    words += ["+".join(sorted({word.strip() for word in data_sets.split(",")}))] if data_sets else []
    words += ["uint8"] if asked["uint8"] else []
    words += [asked["features"]] if asked["features"] != "classifier" else []
    words += [f"{key}{asked[key]}" for key in ("n", "seed") if asked[key] is not None]
    if asked["set"]:
        words.append(hashlib.blake2b("\n".join(asked["set"]).encode(), digest_size=3).hexdigest())
    return "-".join(words)


def _chosen_sets(named: str | None, chosen: list[tables.Table]) -> list[str]:
    """Return the data sets whose rows are wanted; raises UsageError for one that no chosen table has."""
    known = sorted({part.dataset for table in chosen for part in table.parts})
    if named is None:
        return known
    asked = [word.strip() for word in named.split(",") if word.strip()]
    for word in asked:
        if word not in known:
            raise UsageError(f"--datasets {named}: no row of '{word}' in these tables.", nearest(word, known))
    if not asked:
        raise UsageError(f"--datasets '{named}' names none.", f"Known: {', '.join(known)}.")
    return asked


def _check_out(folder: Path, chosen: list[tables.Table]) -> None:
    """Refuse to write over what this command has not made."""
    page = folder / report.PAGE
    if page.is_file() and page.read_text(encoding="utf-8", errors="replace").startswith(report.MARK):
        return
    for name in report.files(table.name for table in chosen):
        if (folder / name).exists():
            raise UsageError(f"{folder / name} is not of this command.", "Give another --out-dir, or move it.")


def _check_changes(overrides: list[str]) -> None:
    """Refuse settings that would make other rows of a table's rows."""
    for change in overrides:
        key = change.partition("=")[0].strip()
        if key in ("data.directory", "data.second_directory"):
            raise UsageError(f"--set {change}: the data of all rows lie in one folder.", "Name it with --data-dir.")
        if key in ("data.dataset", "data.second", "degradation.name"):
            raise UsageError(f"--set {change}: that would be no row of the paper's.", "Train such a run by itself.")


@dataclasses.dataclass(frozen=True)
class _TableState:
    """How far a run is: its configuration, or the preset's where it is yet to be trained; whether it is trained to its
    end; and what was changed that no preset says, in words."""

    config: Config
    is_done: bool
    changed: tuple[str, ...] = ()


def _standing(path: Path, config: Config, changes: list[str], place: list[str]) -> _TableState:
    """Return how far a run is; raises UsageError where it is not one of the preset and the changes."""
    if not (path / "run.toml").is_file():
        if os.path.lexists(path):
            raise UsageError(f"{path} is not a run: it has no run.toml.", "Move it, or name another folder: --runs.")
        return _TableState(config, False)
    run = runs.Run(path)
    own = run.config(tuple(place))
    told = tables.differences(config, tuple(changes), own)
    changed = []
    # A rate that was lowered on the way makes no other experiment of it, but must be told.
    is_free = not any(change.strip().startswith("train.lr=") for change in changes)
    if "train.lr" in told and own.train.lr < config.train.lr and is_free:
        del told["train.lr"]
        changed.append(f"train.lr={own.train.lr:g}")
    if told:
        words = [f"{key} = {how}" for key, how in told.items()]
        more = f" and {len(words) - TOLD} more" if len(words) > TOLD else ""
        what = f"{path} is not what {config.name} makes: {'; '.join(words[:TOLD])}{more}."
        raise UsageError(what, "Name another folder with --runs, or give --set as it was trained with.")
    saved = run.checkpoints()
    if run.damaged_checkpoints() and not saved:
        what = f"{run.damaged_checkpoints()[-1]} is damaged, and no other checkpoint is whole."
        raise UsageError(what, f"Move {path} away: the same command trains it anew.")
    is_done = bool(saved) and runs.path_step(saved[-1]) >= config.train.steps
    return _TableState(own, is_done, tuple(changed))


def _check_all(standing: list[_TableState]) -> None:
    """Find what would fail after hours: settings that do not fit, data that are not there."""
    import torch

    from colddiff_core import experiment
    from colddiff_core.datasets import from_config
    from colddiff_core.training.start import check_names

    sets: dict[tuple[DataConfig, Split], ImageSet] = {}
    splits: tuple[Split, ...] = ("test", "train")
    for run in standing:
        config = run.config
        check_names(config)
        if config.data.directory:
            open_run.check_data_dir(config)
        for split in splits[:1] if run.is_done else splits:
            if (config.data, split) not in sets:
                sets[config.data, split] = from_config.load_images(config, split)
        test = sets[config.data, "test"]
        experiment.build(config, test.channels, torch.device("cpu"), "test").try_out(test)


def _train(screen: Screen, path: Path, config: Config, place: list[str], device: str) -> None:
    """Train a run to its end, from where it stands; a Ctrl-C leaves it to the same command."""
    from colddiff_core.training import start

    if (path / "run.toml").is_file():
        trainer = start.resume(str(path), place, device)
    else:
        trainer = start.start(config, path, device)
    training_progress.introduce(screen, trainer)
    if not training_progress.work(screen, trainer):
        screen.say("The same command goes on from there.")
        raise typer.Exit(130)


def _circumstances(device: str) -> dict[str, str]:
    """Return the day, the machine and the versions."""
    from colddiff_core import devices, experiment

    chosen = devices.choose(device)
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "hardware": devices.describe(chosen) + (f", {_processor()}" if chosen.type == "cpu" else ""),
        "software": ", ".join(f"{name} {version}" for name, version in experiment.versions().items()),
    }


def _processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named and named[0] != "unknown" else platform.processor() or platform.machine()
