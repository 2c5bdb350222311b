"""`colddiff reproduce`: train and measure the runs of the paper's tables, and write a report."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import completions, options, outputs
from colddiff_cli.console import explain, training_progress
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import REPRODUCED, Row, evaluation_table
from colddiff_cli.jobs import open_run
from colddiff_core import runs
from colddiff_core.config import presets
from colddiff_core.config.schema import Config, DataConfig
from colddiff_core.errors import UsageError
from colddiff_core.evaluation.feature_names import check_features, check_weights
from colddiff_core.paper import report, tables
from colddiff_core.text import nearest

if TYPE_CHECKING:
    from colddiff_core.datasets import ImageSet
    from colddiff_core.datasets.base import Split
    from colddiff_core.paper.reproduction import Result, RunMeasurer

SMALL_IMAGES = 1000  # per row at the small scale; the paper's scale uses all test images
GENERATED_IMAGES = 10_000  # per row at the paper's scale
SHOWN_DIFFERENCES = 3  # between a run and its preset
SCALES = ("small", "paper")


def reproduce(
    names: Annotated[
        list[str],
        typer.Argument(
            help="table1 to table6, as numbered in the full paper. The short version has the same tables 1 to 3; its "
            "table 4 is called snow here, and its table 5 is table4.",
            metavar="TABLE",
            autocompletion=completions.tables,
        ),
    ],
    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            help="small: networks for two CPU cores; paper: the paper's networks, for a GPU.",
            autocompletion=completions.one_of(lambda: SCALES),
        ),
    ] = "small",
    data_sets: Annotated[
        str | None,
        typer.Option(
            "--datasets",
            help="Only the rows of these data sets, e.g. mnist,cifar10.",
            metavar="NAMES",
            autocompletion=completions.list_of(completions.table_datasets),
        ),
    ] = None,
    root: Annotated[
        Path,
        typer.Option(
            "--runs", help="The folder of the runs; missing runs are trained there.", parser=outputs.runs, metavar="DIR"
        ),
    ] = runs.ROOT,
    no_train: Annotated[bool, typer.Option("--no-train", help="Skip rows without a finished run.")] = False,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            help="The output folder (default: reproduced/TABLES-SCALE).",
            parser=outputs.folder,
            metavar="DIR",
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n", help="Images per row (default: 1000; at the paper's scale all test images, 10,000 generated).", min=1
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
    """Reproduce tables of the paper: a page, JSON, contact sheets. Run the same command again to continue."""
    screen = Screen(json)
    chosen = [tables.find(name) for name in dict.fromkeys(names)]
    if scale not in SCALES:
        raise UsageError(f"No scale '{scale}'.", nearest(scale, SCALES))
    check_features(features)
    check_weights(features, weights)
    size: tables.Scale = "small" if scale == "small" else "paper"
    if uint8 and any(part.is_generated for table in chosen for part in table.parts):
        raise UsageError(
            "--uint8 is for restored images, but table4 is about generated ones.", "Leave out one of them."
        )
    _check_changes(overrides or [])
    changes = [*(overrides or []), *([f"train.seed={seed}"] if seed is not None else [])]
    data_override = options.data_override(data_dir)
    plan = tables.plan(chosen, size, _chosen_sets(data_sets, chosen))
    configs = {name: presets.load(name, [*changes, *data_override]) for name in plan}
    request = {"uint8": uint8, "n": n, "seed": seed, "set": sorted(overrides or []), "features": features}
    folder = out_dir or Path("reproduced") / _name(chosen, scale, data_sets, request)
    _check_out(folder, chosen)
    states = {name: _table_state(root / name, config, changes, data_override) for name, config in configs.items()}
    missing = [name for name in configs if no_train and not states[name].is_done]
    for name in missing:
        screen.warn(f"{root / name} is not a finished run; its rows are skipped")
        del configs[name]
    if not configs:
        raise UsageError(f"No run in {root} is finished.", "Leave out --no-train, or use another --runs.")

    from colddiff_core.evaluation import reference as references

    with explain.advancing(screen) as progress:
        source = references.prepare_features(features, weights, device, progress)
    for name in configs:
        if not states[name].is_done:
            outputs.check_folder(root / name, "another --runs")
            runs.check_free(root / name)
    _check_states([states[name] for name in configs])

    from colddiff_core.paper import reproduction

    circumstances = reproduction.circumstances(device)
    measurement = reproduction.Measurement(
        restored=n or (SMALL_IMAGES if size == "small" else sys.maxsize),
        generated=n or (SMALL_IMAGES if size == "small" else GENERATED_IMAGES),
        is_8bit=uint8,
        batch_size=batch_size,
        circumstances=circumstances,
    )
    content: dict[str, Any] = {"command": shlex.join(["colddiff", *sys.argv[1:]]), "scale": scale}
    content |= {"protocol": "uint8" if uint8 else "float"} | circumstances
    # The paper has no figures for other severities or samplers.
    is_as_in_paper = not uint8 and not any(change.strip().startswith(("degradation.", "sample.")) for change in changes)
    results: dict[str, Result] = {}
    # Finished runs first, so that the page soon has their rows.
    for number, name in enumerate(sorted(configs, key=lambda name: not states[name].is_done), start=1):
        screen.say(f"{number} of {len(configs)}: {name}")
        run = runs.Run(root / name)
        if not states[name].is_done:
            _train(screen, run.path, configs[name], data_override, device)
        trained = open_run.open_run(run, device, tuple(data_override))
        built, step = trained.experiment, trained.step
        with explain.advancing(screen) as progress:
            reference = references.load_reference(built, source, progress)
        measurer = reproduction.RunMeasurer(run, step, built, reference, measurement)
        changed = [*changes, *states[name].changed]
        results[name] = _measure(screen, measurer, configs[name], plan[name], changed)
        ordered = {preset: results[preset] for preset in plan if preset in results}
        content["missing"] = [preset for preset in plan if preset not in results]
        available = [table for table in chosen if any(part.preset_at(size) in results for part in table.parts)]
        content["tables"] = [
            reproduction.tabulate(table, size, ordered, is_papers=is_as_in_paper) for table in available
        ]
        page = _write(content, available, size, ordered, folder)
    written = report.read(folder)
    _show(screen, written)
    screen.result(written | {"page": str(page)}, page)


def _measure(screen: Screen, measurer: RunMeasurer, config: Config, kinds: list[str], changed: list[str]) -> Result:
    with screen.progress() as progress:
        task = progress.add_task("measuring", total=sum(measurer.count(kind) for kind in kinds))

        def advance(kind: str, done: int) -> None:
            progress.update(task, description=kind, advance=done)

        return measurer.result(config, kinds, changed, advance)


def _show(screen: Screen, content: dict[str, Any]) -> None:
    """Show the tables of a report."""
    for table in content["tables"]:
        rows = {
            f"{row['title']} {row['kind']}": Row(
                row["kind"], row["metrics"], row["intervals"], row["is_scarce"], row["paper"]
            )
            for row in table["rows"]
        }
        screen.show(evaluation_table(f"{table['title']} ({table['numbers']})", rows, REPRODUCED, {}))
        screen.say()


def _write(
    content: dict[str, Any],
    available: list[tables.Table],
    scale: tables.Scale,
    results: dict[str, Result],
    folder: Path,
) -> Path:
    """Write a report of the results so far, with a contact sheet for each table."""
    from colddiff_core import images
    from colddiff_core.paper import reproduction

    content["runs"] = [result.metadata for result in results.values()]
    content["gaps"] = reproduction.gaps(content["tables"])
    content["diverged"] = reproduction.diverged(content["tables"])
    for table in available:
        images.write(reproduction.contact_sheet(table, scale, results), folder / report.picture(table.name))
    return report.write(content, folder)


def _name(chosen: list[tables.Table], scale: str, data_sets: str | None, request: dict[str, Any]) -> str:
    """Return a folder name that differs for every request, so that none overwrites another's page."""
    table_names = [name for name in tables.names() if name in {table.name for table in chosen}]
    words = ["+".join(table_names), scale]
    words += ["+".join(sorted({word.strip() for word in data_sets.split(",")}))] if data_sets else []
    words += ["uint8"] if request["uint8"] else []
    words += [request["features"]] if request["features"] != "classifier" else []
    words += [f"{key}{request[key]}" for key in ("n", "seed") if request[key] is not None]
    if request["set"]:
        words.append(hashlib.blake2b("\n".join(request["set"]).encode(), digest_size=3).hexdigest())
    return "-".join(words)


def _chosen_sets(named: str | None, chosen: list[tables.Table]) -> list[str]:
    """Return the data sets to measure. Raises UsageError for one that no chosen table has."""
    known = sorted({part.dataset for table in chosen for part in table.parts})
    if named is None:
        return known
    data_sets = [word.strip() for word in named.split(",") if word.strip()]
    for word in data_sets:
        if word not in known:
            raise UsageError(f"--datasets {named}: these tables have no rows for '{word}'.", nearest(word, known))
    if not data_sets:
        raise UsageError(f"--datasets '{named}' names no data set.", f"Known: {', '.join(known)}.")
    return data_sets


def _check_out(folder: Path, chosen: list[tables.Table]) -> None:
    """Refuse to overwrite files of another command."""
    page = folder / report.PAGE
    if page.is_file() and page.read_text(encoding="utf-8", errors="replace").startswith(report.MARK):
        return
    for name in report.files(table.name for table in chosen):
        if (folder / name).exists():
            raise UsageError(
                f"{folder / name} was not written by this command.", "Use another --out-dir, or move the file."
            )


def _check_changes(overrides: list[str]) -> None:
    """Refuse settings that would turn rows of a table into different ones."""
    for change in overrides:
        key = change.partition("=")[0].strip()
        if key in ("data.directory", "data.second_directory"):
            raise UsageError(f"--set {change}: all rows share one data folder.", "Use --data-dir.")
        if key in ("data.dataset", "data.second", "degradation.name"):
            raise UsageError(f"--set {change}: the paper has no such row.", "Train that run with: colddiff train")


@dataclasses.dataclass(frozen=True)
class _TableState:
    """State of a run that a table needs."""

    config: Config  # the preset's if there is no run yet
    is_done: bool  # trained to the end
    changed: tuple[str, ...] = ()  # settings that differ from the preset, as key=value


def _table_state(path: Path, config: Config, changes: list[str], data_override: list[str]) -> _TableState:
    """Return the state of a run. Raises UsageError if its settings are not those of the preset and the changes."""
    if not (path / "run.toml").is_file():
        if os.path.lexists(path):
            raise UsageError(f"{path} is not a run: it has no run.toml.", "Move it, or use another --runs.")
        return _TableState(config, False)
    run = runs.Run(path)
    trained = run.config(tuple(data_override))
    different = tables.differences(config, tuple(changes), trained)
    changed = []
    # A learning rate lowered during training is allowed, but reported.
    may_differ = not any(change.strip().startswith("train.lr=") for change in changes)
    if "train.lr" in different and trained.train.lr < config.train.lr and may_differ:
        del different["train.lr"]
        changed.append(f"train.lr={trained.train.lr:g}")
    if different:
        words = [f"{key} = {values}" for key, values in different.items()]
        more = f" and {len(words) - SHOWN_DIFFERENCES} more" if len(words) > SHOWN_DIFFERENCES else ""
        what = f"{path} differs from the preset {config.name}: {'; '.join(words[:SHOWN_DIFFERENCES])}{more}."
        raise UsageError(what, "Use another --runs, or repeat the --set options of its training.")
    saved = run.checkpoints()
    if run.damaged_checkpoints() and not saved:
        what = f"{run.damaged_checkpoints()[-1]} is damaged, and there is no other checkpoint."
        raise UsageError(what, f"Move {path} away and run the same command to train again.")
    is_done = bool(saved) and runs.path_step(saved[-1]) >= config.train.steps
    return _TableState(trained, is_done, tuple(changed))


def _check_states(states: list[_TableState]) -> None:
    """Check settings and data of all runs now, not after hours of training."""
    import torch

    from colddiff_core import experiment
    from colddiff_core.datasets import from_config
    from colddiff_core.training.start import check_names

    sets: dict[tuple[DataConfig, Split], ImageSet] = {}
    splits: tuple[Split, ...] = ("test", "train")
    for state in states:
        config = state.config
        check_names(config)
        if config.data.directory:
            open_run.check_data_dir(config)
        for split in splits[:1] if state.is_done else splits:
            if (config.data, split) not in sets:
                sets[config.data, split] = from_config.load_images(config, split)
        test = sets[config.data, "test"]
        experiment.build(config, test.channels, torch.device("cpu"), "test").try_out(test)


def _train(screen: Screen, path: Path, config: Config, data_override: list[str], device: str) -> None:
    """Train a run to its end, from its last checkpoint if there is one."""
    from colddiff_core.training import start

    if (path / "run.toml").is_file():
        trainer = start.resume(str(path), data_override, device)
    else:
        trainer = start.start(config, path, device)
    training_progress.introduce(screen, trainer)
    if not training_progress.work(screen, trainer):
        screen.say("Run the same command again to continue.")
        raise typer.Exit(130)
