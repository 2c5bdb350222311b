"""`colddiff train`: a run from a preset, or on from a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import options, outputs
from colddiff_cli.console import training_progress
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import fidelity_table
from colddiff_cli.jobs import launch, open_run
from colddiff_core import runs
from colddiff_core.config import presets, schema, toml
from colddiff_core.distributed.environment import process_info
from colddiff_core.errors import UsageError
from colddiff_core.text import counted, shown

if TYPE_CHECKING:
    from colddiff_core.training.trainer import Trainer

PLACES = ("data.directory", "data.second_directory", "data.download")  # settings of the machine, not of the run


def train(
    context: typer.Context,
    preset: Annotated[str | None, typer.Option("--preset", help="What to train: see `colddiff presets`.")] = None,
    resume: Annotated[str | None, typer.Option("--resume", help="Go on with this run.", metavar="RUN")] = None,
    overrides: options.Set = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run's folder (runs/PRESET).", parser=outputs.run, metavar="RUN"),
    ] = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="Resume though settings, images or the operator are others now.")
    ] = False,
    continued: Annotated[
        bool,
        typer.Option("--continue", help="Go on with the run at --out where there is one: for jobs that start again."),
    ] = False,
    nproc: options.Processes = None,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", help="With --nproc: how often to go on after a process failed.", min=0)
    ] = 0,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Train in the background and watch; closing that leaves it training.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a restorer. Ctrl-C, and SIGTERM, save a checkpoint and end; --resume goes on from it."""
    screen = Screen(json)
    if (preset is None) == (resume is None):
        raise UsageError("Name either a --preset or a run to --resume.", "List the presets with: colddiff presets")
    if allow_change and resume is None:
        raise UsageError("--allow-change is of --resume.", "A new run may have any settings: leave it out.")
    if resume is not None:
        _check_resumed(resume, out, is_dry=dry_run, is_continued=continued)
    changes = list(overrides or [])
    if seed is not None:
        changes.append(f"train.seed={seed}")
    job = _Job(preset, resume, changes, out, data_dir, device, allow_change, continued, nproc, max_restarts)
    job.check()
    if monitor:
        launch.check_alone("train --monitor")
        if dry_run or json:
            raise UsageError(f"--monitor does not go with {'--dry-run' if dry_run else '--json'}.", "Leave one out.")
        _train_watched(screen, job)
        return
    if nproc and nproc > 1 and not dry_run:
        if code := _train_together(job, context.obj):
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
    screen.say(f"Go on with: colddiff train --resume {path}")
    screen.result({"run": str(path), "step": trainer.step, "finished": False})
    # A job would start its processes again after a failure, and this is none where a reader asked for it.
    raise typer.Exit(130 if process_info().is_alone or not trainer.is_stopped_as_asked else 0)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is to be trained, as other processes are told it."""

    preset: str | None
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
        """Raise UsageError for options that do not go together."""
        here = process_info()
        if self.is_continued and self.out is None:
            raise UsageError("--continue goes on with the run at --out.", "Name it with --out.")
        if self.restarts and (self.processes or 1) < 2:
            raise UsageError("--max-restarts is of --nproc, 2 or more.", "Name them; torchrun has its own.")
        launch.check(self.processes)
        if here.most_restarts and not here.is_alone and self.resume is None and not self.is_continued:
            raise UsageError("A job that starts again must know that it may go on.", "Give --out and --continue.")

    def config(self) -> schema.Config:
        """Return the settings of a new run; raises UsageError where the preset and the changes do not make any."""
        assert self.preset is not None
        config = presets.load(self.preset, self.changes + options.data_override(self.data_dir))
        if self.data_dir is not None:
            open_run.check_data_dir(config)
        return config

    def begun(self) -> list[Any]:
        """Return the run that this job, or one before it, has begun and is to go on with, and its last step if nothing
        is left of it; None for what there is none of.

        Raises UsageError where that run is not the one asked for.
        """
        if not (self.is_continued and self.out is not None and (self.out / "run.toml").is_file()):
            return [None, None]
        from colddiff_core.training.start import finished

        found = runs.find(str(self.out))
        _check_same(found, self.config())
        return [str(self.out), finished(found, found.config())]

    def path(self) -> Path:
        """Return the folder of the run; raises UsageError where a new one's is taken."""
        if self.resume is not None:
            return runs.find(self.resume).path
        assert self.preset is not None
        path = self.out or runs.free_name(presets.load(self.preset, self.changes).name)
        if path.exists() and not self.is_continued:
            raise runs.taken(path)
        return path

    def look(self, path: Path) -> None:
        """Raise UsageError for what can be told to be wrong before any process is started."""
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
            assert self.preset is not None
            words = ["--preset", self.preset, "--out", str(path)] + (["--continue"] if self.is_continued else [])
        words += ["--device", self.device, *(word for change in self.changes for word in ("--set", change))]
        words += ["--data-dir", str(self.data_dir)] if self.data_dir else []
        words += ["--nproc", str(self.processes), "--max-restarts", str(self.restarts)] if self.processes else []
        return words


def _show(screen: Screen, job: _Job) -> None:
    """Print the resolved configuration."""
    from colddiff_core.training.start import check_names

    config = job.config()
    check_names(config)
    screen.result(config.to_table())
    if not screen.is_json:
        screen.say(toml.dump(config.to_table()).rstrip())


def _trainer(screen: Screen, job: _Job) -> Trainer | None:
    """Return the trainer of a new run, or of one that goes on; None, with a word, where nothing is left to do."""
    from colddiff_core.training import start

    changes = job.changes + options.data_override(job.data_dir)
    if job.resume is not None:
        return start.resume(job.resume, changes, job.device, may_change=job.may_change)
    from colddiff_core import devices
    from colddiff_core.distributed import group

    # The first process decides: the others need not see the run's folder.
    begun, step = group.join(devices.choose(job.device)).on_first(job.begun)
    if begun is None:
        return start.start(job.config(), job.out, job.device)
    if step is not None:
        screen.say(f"{begun} is finished: step {step}. Nothing is left to do.")
        screen.result({"run": begun, "step": step, "finished": True})
        return None
    places = [change for change in changes if change.partition("=")[0].strip() in PLACES]
    return start.resume(begun, places, job.device)


def _train_together(job: _Job, asked: list[str]) -> int:
    """Train in several processes, by the command line that asked for it; return the exit code."""
    assert job.processes is not None
    launch.check_machine(job.processes, job.device)
    path = job.path()
    job.look(path)
    words = launch.remove_options(asked, launch.OPTION, "--max-restarts")
    if job.resume is None:
        words += [] if job.out else ["--out", str(path)]
        words += ["--continue"] if job.restarts and not job.is_continued else []  # with what they have begun themselves
    code = launch.launch(words, job.processes, job.restarts, f"Go on with: colddiff train --resume {path}")
    has_failed = [event["event"] for event in runs.Run(path).events()[-1:]] == ["failed"]
    return 1 if code == launch.INTERRUPTED and has_failed else code  # a signal came, and nothing was saved


def _check_same(found: runs.Run, asked: schema.Config) -> None:
    """Raise UsageError where a run that is to be gone on with is not the one asked for."""
    told = [
        f"{key} is {shown(before)}, not {shown(after)}"
        for key, (before, after) in schema.changes(found.config().to_table(), asked.to_table()).items()
        if key not in PLACES and before != after
    ]
    if told:
        more = f" and {len(told) - 1} more" if len(told) > 1 else ""
        what = f"{found.path} was begun with other settings: {told[0]}{more}."
        raise UsageError(what, "Give another --out, or go on as it was with --resume.")


def _check_resumed(run: str, out: Path | None, *, is_dry: bool, is_continued: bool) -> None:
    """Raise UsageError for options that a run which goes on has no use for."""
    if is_continued:
        raise UsageError("--continue does not go with --resume.", "Leave it out: --resume goes on with a run anyway.")
    if is_dry:
        raise UsageError("--dry-run does not go with --resume.", f"The configuration is in {run}/run.toml.")
    if out is not None:
        raise UsageError("--out does not go with --resume.", "A resumed run stays where it is.")


def _train_watched(screen: Screen, job: _Job) -> None:
    """Train in a process of its own and open the dashboard on it."""
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
            screen.say(f"Training goes on (process {trainer.pid}). Watch it again with: colddiff monitor {path}")
        elif trainer.returncode == 0:
            screen.say(f"{path} is trained. What it said is in {log}")
        else:
            screen.say(f"{path} has ended; its words are in {log}. Go on with: colddiff train --resume {path}")
    if trainer.returncode:
        raise typer.Exit(trainer.returncode if trainer.returncode > 0 else 1)


def _conclude(screen: Screen, trainer: Trainer) -> None:
    """Show the last sheet and say what can be done with the run."""
    path = trainer.run.path
    columns, figures = trainer.last_sheet or trainer.restore_tests()
    found = trainer.run.samples / f"step-{trainer.step:06d}.png"
    sheet = found if found.exists() else None  # the disk may have had no room for it
    screen.rows(columns)
    screen.show(fidelity_table(f"{counted(len(columns['original']), 'test image')} at t = T", figures))
    screen.say("Next:")
    screen.say(f"  colddiff eval {path}")
    screen.say(f"  colddiff sample {path} --animate")
    if trainer.experiment.operator.priors[0] != "degraded":
        screen.say(f"  colddiff generate {path}")
    outcome = {"run": str(path), "step": trainer.step, "finished": True, "metrics": figures}
    outcome["sheet"] = str(sheet) if sheet else None
    screen.result(outcome, sheet)
