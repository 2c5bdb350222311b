"""`colddiff reproduce`: the paper's tables, trained, measured and written by one command."""

from __future__ import annotations

import datetime
import platform
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from colddiff_cli import opening, options, outputs, references, trainings
from colddiff_cli.screen import Screen
from colddiff_core import presets, report, runs, tables
from colddiff_core.errors import UsageError, nearest
from colddiff_core.presets import Config

if TYPE_CHECKING:
    from colddiff_core.reproduction import Bench, Result

FEW = 1000  # test images a row at the small scale; at the paper's, all there are
TOLD = 3  # differences of a run from its preset that are told
SCALES = ("small", "paper")


def reproduce(
    names: Annotated[
        list[str],
        typer.Argument(
            help="table1 to table6 as the full paper numbers them. Its shorter version has the same tables 1 to 3; its "
            "table 4 is snow here, its table 5 is table4.",
            metavar="TABLE...",
        ),
    ],
    scale: Annotated[
        str, typer.Option("--scale", help="small: networks for two cores; paper: the paper's, for a GPU.")
    ] = "small",
    data_sets: Annotated[
        str | None, typer.Option("--datasets", help="The rows of these alone, as mnist,cifar10.", metavar="NAMES")
    ] = None,
    root: Annotated[
        Path, typer.Option("--runs", help="Where the runs are, and are trained where absent.", metavar="DIR")
    ] = runs.ROOT,
    no_train: Annotated[bool, typer.Option("--no-train", help="Leave out rows without a finished run.")] = False,
    out_dir: Annotated[
        Path, typer.Option("--out-dir", help="The folder to write.", parser=outputs.folder, metavar="DIR")
    ] = Path("reproduced"),
    n: Annotated[
        int | None,
        typer.Option("--n", help="Test images a row, drawn from the set (1000 at the small scale, else all).", min=1),
    ] = None,
    uint8: options.Uint8 = False,
    features: options.Features = "classifier",
    weights: options.Weights = None,
    overrides: options.Set = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Images at a time; no result depends on it.", min=1)
    ] = 100,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Reproduce tables of the paper: a page, JSON, contact sheets. The same command again goes on where it stopped."""
    screen = Screen(json)
    references.check(features, weights)
    chosen = [tables.find(name) for name in dict.fromkeys(names)]
    if scale not in SCALES:
        raise UsageError(f"No scale '{scale}'.", nearest(scale, SCALES))
    size: tables.Scale = "small" if scale == "small" else "paper"
    changes = [*(overrides or []), *([f"train.seed={seed}"] if seed is not None else [])]
    place = options.data_override(data_dir)
    wanted = tables.plan(chosen, size, _chosen_sets(data_sets, chosen))
    configs = {name: presets.load(name, [*changes, *place]) for name in wanted}
    _check_out(out_dir)
    standing = {name: _standing(root / name, config, changes) for name, config in configs.items()}
    if no_train:
        for name in [name for name, is_done in standing.items() if not is_done]:
            screen.warn(f"{root / name} is not a finished run; its rows are left out")
            del configs[name]
        if not configs:
            raise UsageError(f"No run in {root} is finished.", "Leave --no-train out, or name another --runs.")
    _check_data(configs.values())

    from colddiff_core import reproduction

    told = _circumstances(device, uint8=uint8) | {"scale": size}
    results: dict[str, Result] = {}
    page = out_dir / report.PAGE
    for number, (name, config) in enumerate(configs.items(), start=1):
        screen.say(f"{number} of {len(configs)}: {name}")
        run = runs.Run(root / name)
        if not standing[name]:
            _train(screen, run.path, config, place, device)
        built, step = opening.open_run(screen, run, device, tuple(place))
        reference = references.load(screen, built, features=features, weights=weights)
        count = min(n or (FEW if size == "small" else sys.maxsize), len(reference.test))
        how = reproduction.Measurement(count, built.config.train.seed, uint8, batch_size)
        bench = reproduction.Bench(run, step, built, reference, how)
        results[name] = _measure(screen, bench, config, wanted[name], changes)
        # After each run: hours later something may go wrong, and what there is can be read until then.
        told |= {"missing": [preset for preset in wanted if preset not in results]}
        page = _write(told, chosen, size, results, out_dir)
    if not json:
        screen.say(page.read_text(encoding="utf-8"))
    screen.result(told | {"page": str(page)}, page)


def _measure(screen: Screen, bench: Bench, config: Config, kinds: list[str], changes: list[str]) -> Result:
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("measuring", total=bench.count * len(kinds))

        def advance(kind: str, done: int) -> None:
            progress.update(task, description=kind, advance=done)

        return bench.result(config, kinds, changes, advance)


def _write(
    told: dict[str, Any], chosen: list[tables.Table], scale: tables.Scale, results: dict[str, Result], folder: Path
) -> Path:
    """Complete the report with the results there are, and write it with a contact sheet for each table."""
    from colddiff_core import images, reproduction

    made = [table for table in chosen if any(part.preset_at(scale) in results for part in table.parts)]
    told["tables"] = [reproduction.tabulate(table, scale, results) for table in made]
    told["runs"] = [result.about for result in results.values()]
    told["gaps"] = reproduction.gaps(told)
    for table in made:
        images.write(reproduction.contact_sheet(table, scale, results), folder / report.picture(table.name))
    return report.write(told, folder)


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


def _check_out(folder: Path) -> None:
    """Refuse to write over a page that this command has not made."""
    page = folder / report.PAGE
    if page.exists() and not page.read_text(encoding="utf-8", errors="replace").startswith(report.MARK):
        raise UsageError(f"{page} is not a page of this command.", "Give another --out-dir, or move it.")


def _standing(path: Path, config: Config, changes: list[str]) -> bool:
    """Tell whether a run is trained to the end; raises UsageError where it is not one of the preset and the changes."""
    if not (path / "run.toml").is_file():
        if path.exists():
            raise UsageError(f"{path} is not a run: it has no run.toml.", "Move it, or name another folder: --runs.")
        return False
    run = runs.Run(path)
    told = tables.differences(config, tuple(changes), run.config())
    if told:
        more = f" and {len(told) - TOLD} more" if len(told) > TOLD else ""
        what = f"{path} is not what {config.name} makes: {'; '.join(told[:TOLD])}{more}."
        raise UsageError(what, "Name another folder with --runs, or give --set as it was trained with.")
    saved = run.checkpoints()
    return bool(saved) and runs.path_step(saved[-1]) >= config.train.steps


def _check_data(configs: Collection[Config]) -> None:
    """Load every data set's test images once, so that one that is not there is told before hours of training."""
    from colddiff_core import experiment

    for config in {config.data: config for config in configs}.values():
        opening.check_data_dir(config) if config.data.directory else None
        experiment.load_images(config, "test")


def _train(screen: Screen, path: Path, config: Config, place: list[str], device: str) -> None:
    """Train a run to its end, from where it stands; a Ctrl-C leaves it to the same command."""
    if (path / "run.toml").is_file():
        trainer = trainings.resume(screen, str(path), place, device)
    else:
        trainer = trainings.start(screen, config, path, device)
    if not trainings.work(screen, trainer):
        screen.say("The same command goes on from there.")
        raise typer.Exit(130)


def _circumstances(device: str, *, uint8: bool) -> dict[str, Any]:
    """Return the command, the day, the machine and the versions."""
    from colddiff_core import devices, experiment

    versions = experiment.versions()
    chosen = devices.choose(device)
    return {
        "command": shlex.join(["colddiff", *sys.argv[1:]]),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "hardware": devices.describe(chosen) + (f", {_processor()}" if chosen.type == "cpu" else ""),
        "software": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "protocol": "uint8" if uint8 else "float",
    }


def _processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named and named[0] != "unknown" else platform.processor() or platform.machine()
