"""`colddiff train`: train a run from a preset, or resume one."""

from __future__ import annotations

import dataclasses
import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import completions, options, outputs
from colddiff_cli.console import training_progress
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import fidelity_table
from colddiff_cli.jobs import launch, open_run
from colddiff_core import runs
from colddiff_core.config import presets, schema, toml
from colddiff_core.distributed.environment import process_info
from colddiff_core.errors import UsageError
from colddiff_core.text import counted, shell_word, shown

if TYPE_CHECKING:
    from colddiff_core.training.trainer import Trainer

MACHINE_SETTINGS = ("data.directory", "data.second_directory", "data.download")  # may differ between machines


def train(
    context: typer.Context,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="What to train: see `colddiff presets`.", autocompletion=completions.presets),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Start from this run's weights; without --preset also with its configuration.",
            metavar="RUN",
            autocompletion=completions.runs,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Continue this run.", metavar="RUN", autocompletion=completions.own_runs),
    ] = None,
    overrides: options.Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder of the new run (default: runs/PRESET).", parser=outputs.run, metavar="RUN"
        ),
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and exit.")] = False,
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="Resume even if settings, images or the operator have changed.")
    ] = False,
    continued: Annotated[
        bool,
        typer.Option("--continue", help="Continue the run at --out if it exists: for jobs that are restarted."),
    ] = False,
    nproc: options.Processes = None,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", help="With --nproc: how often to restart after a process failed.", min=0)
    ] = 0,
    monitor: Annotated[
        bool,
        typer.Option(
            "--monitor", help="Train in the background and open the dashboard; closing it does not stop the training."
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a restorer. Ctrl-C or SIGTERM saves a checkpoint and stops; --resume continues from it."""
    screen = Screen(json)
    if resume is not None and (preset is not None or source is not None):
        option = "--preset" if preset is not None else "--from"
        raise UsageError(f"{option} does not go with --resume.", "Leave it out: a resumed run has its own settings.")
    if preset is None and source is None and resume is None:
        what = "Name a --preset, a run to start --from, or a run to --resume."
        raise UsageError(what, "List the presets with: colddiff presets")
    if allow_change and resume is None:
        raise UsageError("--allow-change needs --resume.", "Leave it out: a new run may have any settings.")
    if resume is not None:
        _check_resumed(resume, out, is_dry=dry_run, is_continued=continued)
    changes = [*(overrides or []), *_changes(seed, source)]
    job = _Job(preset, source, resume, changes, out, data_dir, device, allow_change, continued, nproc, max_restarts)
    job.check()
    if monitor:
        launch.check_alone("train --monitor")
        if dry_run or json:
            raise UsageError(f"--monitor does not go with {'--dry-run' if dry_run else '--json'}.", "Leave one out.")
        _train_watched(screen, job)
        return
    if nproc and nproc > 1 and not dry_run:
        if code := _train_in_processes(job, context.obj):
            raise launch.JobEnded(code)
        return
    if dry_run:
        _show(screen, job)
        return
    trainer = _trainer(screen, job)
    if trainer is None:
        return
    training_progress.introduce(screen, trainer)
    if training_progress.work(screen, trainer):
        if process_info().is_first:
            _conclude(screen, trainer)
        return
    path = trainer.run.path
    screen.say(f"Continue with: colddiff train --resume {shell_word(path)}")
    screen.result({"run": str(path), "step": trainer.step, "finished": False})
    # torchrun would restart the processes after a failure; a stop that was asked for is not one.
    raise typer.Exit(130 if process_info().is_alone or not trainer.is_stopped_as_asked else 0)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The options of a training, to pass on to other processes."""

    preset: str | None
    source: str | None
    resume: str | None
    changes: list[str]
    out: Path | None
    data_dir: Path | None
    device: str
    may_change: bool
    is_continued: bool
    processes: int | None
    restarts: int

    def check(self) -> None:
        """Raise UsageError for options that cannot be combined."""
        process = process_info()
        if self.is_continued and self.out is None:
            raise UsageError("--continue needs the folder of the run.", "Add --out RUN.")
        if self.restarts and (self.processes or 1) < 2:
            raise UsageError(
                "--max-restarts needs --nproc 2 or more.", "Add --nproc; under torchrun, use torchrun's own option."
            )
        launch.check(self.processes)
        if process.most_restarts and not process.is_alone and self.resume is None and not self.is_continued:
            raise UsageError("A job with restarts must be able to continue its run.", "Add --out RUN --continue.")

    def config(self) -> schema.Config:
        """Return the configuration of a new run. Raises UsageError if the preset or a change is invalid."""
        changes = self.changes + options.data_override(self.data_dir)
        if self.preset is not None:
            config = presets.load(self.preset, changes)
        else:
            assert self.source is not None
            config = runs.find(self.source).config(tuple(changes))
        if self.data_dir is not None:
            open_run.check_data_dir(config)
        return config

    def existing(self) -> list[Any]:
        """Return the run at --out to continue and, if it is finished, its last step; None for each that is missing.

        Raises UsageError if the run has other settings.
        """
        if not (self.is_continued and self.out is not None and (self.out / "run.toml").is_file()):
            return [None, None]
        from colddiff_core.training.start import finished

        run = runs.find(str(self.out))
        _check_same(run, self.config())
        return [str(self.out), finished(run, run.config())]

    def path(self) -> Path:
        """Return the folder of the run. Raises UsageError if that of a new run exists."""
        if self.resume is not None:
            return runs.find_trainable(self.resume).path
        path = self.out or runs.free_name(self.config().name)
        if path.exists() and not self.is_continued:
            raise runs.taken(path)
        return path

    def check_settings(self, path: Path) -> None:
        """Raise UsageError for wrong settings, before any process starts."""
        if self.resume is not None:
            runs.find(self.resume).config(tuple(self.changes + options.data_override(self.data_dir)))
            return
        from colddiff_core.training.start import check_names

        config = self.config()
        check_names(config)
        if (path / "run.toml").is_file():
            _check_same(runs.find(str(path)), config)

    def arguments(self, path: Path) -> list[str]:
        """Return the command line that trains into `path`."""
        if self.resume is not None:
            words = ["--resume", str(path)] + (["--allow-change"] if self.may_change else [])
        else:
            words = ["--preset", self.preset] if self.preset is not None else []
            words += ["--from", self.source] if self.source is not None else []
            words += ["--out", str(path)] + (["--continue"] if self.is_continued else [])
        words += ["--device", self.device, *(word for change in self.changes for word in ("--set", change))]
        words += ["--data-dir", str(self.data_dir)] if self.data_dir else []
        words += ["--nproc", str(self.processes), "--max-restarts", str(self.restarts)] if self.processes else []
        return words


def _changes(seed: int | None, source: str | None) -> list[str]:
    """Return the settings that --seed and --from stand for."""
    changes = [] if seed is None else [f"train.seed={seed}"]
    if source is not None:
        run = runs.find(source)
        initial = run.label if run.is_pretrained else str(run.path.resolve())  # holds in any working folder
        changes.append(f"train.initial={json_.dumps(initial, ensure_ascii=False)}")  # TOML text
    return changes


def _show(screen: Screen, job: _Job) -> None:
    """Print the resolved configuration."""
    from colddiff_core.training.start import check_names

    config = job.config()
    check_names(config)
    screen.result(config.to_table())
    if not screen.is_json:
        screen.say_lines(toml.dump(config.to_table()).rstrip())


def _trainer(screen: Screen, job: _Job) -> Trainer | None:
    """Return the trainer of a new or resumed run; None, after a message, if the run is finished."""
    from colddiff_core.training import start

    changes = job.changes + options.data_override(job.data_dir)
    if job.resume is not None:
        return start.resume(job.resume, changes, job.device, may_change=job.may_change)
    from colddiff_core import devices
    from colddiff_core.distributed import group

    # Rank 0 decides, because the others may not see the run's folder.
    existing, step = group.join(devices.choose(job.device)).on_first(job.existing)
    if existing is None:
        return start.start(job.config(), job.out, job.device)
    if step is not None:
        screen.say(f"{existing} is finished: step {step}. Nothing to do.")
        screen.result({"run": existing, "step": step, "finished": True})
        return None
    machine_changes = [change for change in changes if change.partition("=")[0].strip() in MACHINE_SETTINGS]
    return start.resume(existing, machine_changes, job.device)


def _train_in_processes(job: _Job, arguments: list[str]) -> int:
    """Run the same command line in several processes; return the exit code."""
    assert job.processes is not None
    launch.check_machine(job.processes, job.device)
    path = job.path()
    job.check_settings(path)
    words = launch.remove_options(arguments, launch.OPTION, "--max-restarts")
    if job.resume is None:
        words += [] if job.out else ["--out", str(path)]
        words += ["--continue"] if job.restarts and not job.is_continued else []  # restarts continue the new run
    code = launch.launch(
        words, job.processes, job.restarts, f"Continue with: colddiff train --resume {shell_word(path)}"
    )
    has_failed = [event["event"] for event in runs.Run(path).events()[-1:]] == ["failed"]
    return 1 if code == launch.INTERRUPTED and has_failed else code  # stopped by a signal without saving


def _check_same(run: runs.Run, requested: schema.Config) -> None:
    """Raise UsageError if the run to continue has other settings than requested."""
    differences = [
        f"{key} is {shown(before)}, not {shown(after)}"
        for key, (before, after) in schema.changes(run.config().to_table(), requested.to_table()).items()
        if key not in MACHINE_SETTINGS
        and before != after
        and not (key == "model.classes" and before and after == "all")
    ]
    if differences:
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        what = f"{run.path} was started with other settings: {differences[0]}{more}."
        raise UsageError(what, "Use another --out, or continue it unchanged with --resume.")


def _check_resumed(run: str, out: Path | None, *, is_dry: bool, is_continued: bool) -> None:
    """Raise UsageError for options that do not apply to a resumed run."""
    if is_continued:
        raise UsageError("--continue does not go with --resume.", "Leave it out: --resume continues the run anyway.")
    if is_dry:
        raise UsageError("--dry-run does not go with --resume.", f"The configuration is in {run}/run.toml.")
    if out is not None:
        raise UsageError("--out does not go with --resume.", "Leave it out: a resumed run stays in its folder.")


def _train_watched(screen: Screen, job: _Job) -> None:
    """Train in a background process and open the dashboard."""
    from colddiff_cli.commands.monitor import check_terminal, watch
    from colddiff_cli.jobs import background

    check_terminal()
    path = job.path()
    trainer = background.start(screen, job.arguments(path), path)
    try:
        watch([path])
    finally:
        log = path / background.LOG
        if trainer.returncode is None:
            screen.say(
                f"Training continues (process {trainer.pid}). Watch it with: colddiff monitor {shell_word(path)}"
            )
        elif trainer.returncode == 0:
            screen.say(f"{path} is trained. Its output is in {log}")
        else:
            screen.say(
                f"{path} has stopped; its output is in {log}. Continue with: colddiff train --resume {shell_word(path)}"
            )
    if trainer.returncode:
        raise typer.Exit(trainer.returncode if trainer.returncode > 0 else 1)


def _conclude(screen: Screen, trainer: Trainer) -> None:
    """Show the last sample sheet and suggest the next commands."""
    from colddiff_core.inference import generate

    path, found = trainer.run.path, trainer.checkpoints.validation
    if trainer.step < trainer.settings.steps:
        screen.say(
            f"stopped early: {counted(found.failures, 'validation')} without a better RMSE than {found.rmse:.4f}"
        )
    columns, figures = trainer.last_sheet or trainer.restore_tests()
    sheet_path = trainer.run.samples / f"step-{trainer.step:06d}.png"
    sheet = sheet_path if sheet_path.exists() else None  # not written if the disk was full
    screen.rows(columns)
    screen.show(fidelity_table(f"{counted(len(columns['original']), 'test image')} at t = T", figures))
    screen.say("Next:")
    screen.say(f"  colddiff eval {shell_word(path)}")
    screen.say(f"  colddiff sample {shell_word(path)} --animate")
    if generate.can_generate(trainer.experiment):
        screen.say(f"  colddiff generate {shell_word(path)}")
    outcome = {"run": str(path), "step": trainer.step, "finished": True, "metrics": figures}
    outcome["sheet"] = str(sheet) if sheet else None
    screen.result(outcome, sheet)
