"""`colddiff sample`: degrade images and restore them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import completions, inputs, options, outputs
from colddiff_cli.commands import restore_photographs, restorers
from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import launch, open_run
from colddiff_cli.picture_series import films, gather, naming, series, sources
from colddiff_cli.picture_series.gather import ImageCollector
from colddiff_cli.picture_series.sources import SampleSource
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.experiment import Experiment
    from colddiff_core.inference.restore import DegradedBatch
    from colddiff_core.sampling import Sampling

SHOWN = 64  # images on a sheet beside --out-dir
MOST_SHOWN = 256  # images on a sheet without --out-dir
COLUMNS = ("degraded", "direct", "sampled", "original")
TEST_IMAGES = 8


def sample(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="A run (default: the newest), then images, folders or globs (default: test images).",
            metavar="[RUN] [IMAGE]...",
            autocompletion=completions.first_run,
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help=f"Number of test images (default: {TEST_IMAGES}).", min=1)
    ] = None,
    t: Annotated[
        str | None,
        typer.Option(
            "--t",
            help="Severity, 1 to T (default: T).",
            metavar="N",
        ),
    ] = None,
    sampler: options.Sampler = None,
    stride: options.Stride = None,
    animate: Annotated[
        bool, typer.Option("--animate", help="Also write the trajectory, as a GIF or with the suffix of --out.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help=f"Sheet of all images, or with --out-dir of the first {SHOWN} (default: RUN/restored/...png).",
            parser=outputs.picture,
            metavar="PATH",
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir", help="Also write each restored image there, as PNG.", parser=outputs.folder, metavar="DIR"
        ),
    ] = None,
    degraded: Annotated[
        bool, typer.Option("--degraded", help="The images are already degraded; only restore them.", hidden=True)
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            help="With --degraded: a picture that is white where pixels are to be filled in.",
            metavar="FILE",
            hidden=True,
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="With --degraded: also write before and after.", hidden=True)
    ] = False,
    consistent: Annotated[
        bool | None,
        typer.Option(
            "--consistent/--no-consistent",
            help="With --degraded: make the restoration reproduce the picture when degraded (default: where it helps).",
            hidden=True,
        ),
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(
            "--color",
            "--colour",
            help="With --degraded: how a gray run restores color: channels (one by one) or luma.",
            autocompletion=completions.one_of(lambda: restorers.COLORS),
            hidden=True,
        ),
    ] = None,
    resume: options.Resume = False,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    force: options.Force = False,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    nproc: options.Processes = None,
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Degrade images with the run's operator, restore them, and write a sheet.

    To restore pictures that are degraded already, use colddiff restore.
    """
    screen = Screen(json)
    ranks = launch.share(context, nproc, device)
    name, names = _run_and_images(arguments or [])
    overrides = options.run_overrides(data_dir, precision, compiled)
    if degraded:
        _check_unused(n=n is not None, animate=animate)
        asked = restorers.RestoreOptions(
            t=t,
            mask=mask,
            color=color or restorers.COLORS[0],
            is_consistent=consistent,
            is_compared=compare,
            sampler=sampler,
            stride=stride,
            out=out,
            out_dir=out_dir,
            seed=seed or 0,
            is_resumed=resume,
            is_forced=force,
        )
        restore_photographs.restore(screen, restorers.of_run(screen, name), names, asked, device, overrides)
        return
    run = open_run.find(screen, name, open_run.RESTORES)
    _check_needs_degraded(
        {"mask": mask is not None, "compare": compare, "consistent": consistent is not None, "color": color is not None}
    )
    files = inputs.agreed(lambda: inputs.listed(names)) if names else []
    _check(out_dir, resume, len(files) or n or TEST_IMAGES)
    config = run.config(overrides)

    from colddiff_core.inference import batches
    from colddiff_core.sampling import Sampling

    trained = open_run.open_run(run, device, overrides)
    built = trained.experiment
    severity = built.operator.steps if t is None else restorers.whole(t, is_degraded=False)
    sampling = Sampling.of(config, sampler=sampler, stride=stride, seed=seed)
    sampling.check(built.operator, severity)
    ending = f"{sampling.sampler}-t{severity:03d}.png"
    default = run.outputs / "restored" / ending
    picture, film = outputs.agreed(lambda: films.outputs(out, default, animate=animate, force=force, keep=resume))
    size = ranks.broadcast_json(built.batch_size(batches.MOST))
    outcome = {"sampler": sampling.sampler, "stride": sampling.stride, "t": severity}
    settings = open_run.described(run, built, trained.step) | outcome | {"seed": sampling.seed, "batch": size}
    if resume and files and out_dir:
        files = series.without_own(files, out_dir, "sample", settings)
    count = n or TEST_IMAGES
    source = sources.from_files(screen, built, files) if files else sources.from_test_set(screen, built, count)
    settings["inputs"] = source.settings
    targets = naming.targets(sources.stems(source, files), out_dir, ending) if out_dir else []
    paths = [file for file, _ in files]
    if ranks.is_first:
        outputs.check_apart((picture, film), targets)
        outputs.check_not_inputs(targets, paths)
    with series.Series(
        targets, "sample", settings if out_dir else None, folder=out_dir, inputs=paths, resume=resume, force=force
    ) as own:
        if own.is_complete and resume and out is None:
            picture, film = None, None  # a complete series has its sheet already
        shown = range((SHOWN if out_dir else source.count) if picture else 0)
        work = SampleWork(screen, own, shown, sampling, is_film=film is not None)
        own.begin()
        # A sheet alone needs no larger batch than its images.
        work.run(built, source, t=severity, size=size if out_dir else min(size, source.count))
    work.gather(source)
    if not ranks.is_first:
        return
    if resume and not work.made and out is None:
        picture, film = None, None  # the rest cannot be read, and an earlier call drew the sheet without it
    outcome |= {"run": run.label, "step": trained.step, "precision": built.precision}
    screen.result(outcome | _finish(screen, work, source.count, picture, film, is_resumed=resume), picture)


@dataclasses.dataclass
class SampleWork:
    """Restores batches, writes the pictures of a series and collects those numbered in `shown` for a sheet.

    restored: numbers of the images restored here; written: of the pictures that exist; made: how many were written.
    After `gather`, rank 0 has those of all processes.
    """

    screen: Screen
    own: series.Series
    shown: range
    sampling: Sampling
    is_film: bool
    restored: list[int] = dataclasses.field(default_factory=list)
    made: int = 0
    collected: ImageCollector = dataclasses.field(default_factory=ImageCollector)
    gathered: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def written(self) -> list[int]:
        """Numbers of the images whose pictures exist, kept or made."""
        return sorted(self.own.kept.union(self.restored))

    def run(self, built: Experiment, source: SampleSource, *, t: int, size: int) -> None:
        """Restore the batches of `size` images that the series or the sheet needs."""
        from colddiff_core.inference import batches, restore

        def is_needed(numbers: range) -> bool:
            return self.own.lacks(numbers) or numbers.start < self.shown.stop

        mine = batches.round_robin(self.own.ranks, source.count, size, is_needed)
        total = sum(1 for _ in batches.batches(source.count, size, mine))
        seed = self.sampling.seed
        with self.screen.progress() as progress:
            task = progress.add_task(self.sampling.sampler, total=total)
            load, are_files = source.load, source.are_files
            for batch in restore.degraded(
                built, load, source.count, t=t, seed=seed, size=size, accepts=mine, are_pictures=are_files
            ):
                self._restore(batch, lambda share: progress.advance(task, share))

    def gather(self, source: SampleSource) -> None:
        """Gather the results on rank 0, and warn about skipped images in their order."""
        ranks = self.own.ranks
        self.made = self.own.made
        if not ranks.is_alone:
            results = ranks.gather_json([self.restored, list(source.skipped.items()), self.made])
            self.restored = sorted(number for numbers, _, _ in results for number in numbers)
            self.made = sum(made for _, _, made in results)
            for _, why in sorted(line for _, lines, _ in results for line in lines):
                self.screen.warn(why)
        if source.notes is not None:
            source.notes.report(ranks)
        self.gathered = self.collected.gather(ranks)

    def write_sheet(self, picture: Path, film: Path | None) -> None:
        """Write and show the sheet, and write the film of its images."""
        from colddiff_core import images

        columns = {kind: self.gathered[kind] for kind in COLUMNS}
        blocks = 2 if len(columns["original"]) > 4 else 1
        images.write(images.sheet(columns, blocks=blocks), picture)
        if film:
            images.write_animation(films.frames(gather.trajectory(self.gathered)), film)
            self.screen.say(f"trajectory: {film}")
        self.screen.rows(columns)

    def _restore(self, batch: DegradedBatch, progress: Callable[[float], None]) -> None:
        from colddiff_core import images

        is_shown = batch.first < self.shown.stop
        frames = [batch.of(batch.x_t, self.shown)]
        x = batch.x_t
        for step in batch.restore(self.sampling):
            x = step.x
            progress(1 / step.count)
            if self.is_film and is_shown:
                frames.append(batch.of(x, self.shown))
        for number in batch.numbers:
            if self.own.lacks([number]):
                images.write(images.to_pillow(x[number - batch.first]), self.own.place(number))
        self.restored += batch.numbers
        if is_shown:
            for kind, stack in zip(COLUMNS, (batch.x_t, batch.direct(), x, batch.x0), strict=True):
                self.collected.add(kind, batch.first, batch.of(stack, self.shown))
            if self.is_film:
                self.collected.add_trajectory(batch.first, frames)


def _finish(
    screen: Screen, work: SampleWork, count: int, picture: Path | None, film: Path | None, *, is_resumed: bool
) -> dict[str, Any]:
    """Write the sheet and print a summary of a call for `count` images; return its part of the result."""
    own = work.own
    numbers = work.written if own.targets else work.restored
    if not numbers:
        raise UsageError(f"None of {counted(count, 'image')} could be restored.", "Check the files.")
    if picture:
        work.write_sheet(picture, film)
    if own.targets:
        if is_resumed and not work.made:
            screen.say("Nothing is missing: all were there already.")
        if picture and count > SHOWN:
            screen.say(f"on the sheet: the first {SHOWN} of {counted(count, 'image')}")
        screen.say(series.summary(own.folder, len(numbers), len(own.kept)))
    files = [str(own.targets[number]) for number in numbers] if own.targets else []
    made_of = {"inputs": [str(own.inputs[number]) for number in numbers]} if own.inputs else {}
    paths = {"picture": picture and str(picture), "animation": film and str(film)}
    return {"n": len(numbers), "files": files, "kept": len(own.kept)} | made_of | paths


def _check(out_dir: Path | None, is_resumed: bool, count: int) -> None:
    """Refuse bad combinations before the run is opened."""
    if is_resumed and out_dir is None:
        raise UsageError("--resume completes a folder of pictures.", "Name it with --out-dir.")
    if out_dir is None and count > MOST_SHOWN:
        what = f"A sheet has room for {MOST_SHOWN} images, and there are {count}."
        raise UsageError(what, "Write single pictures with --out-dir, or use fewer images.")


def _check_unused(*, n: bool, animate: bool) -> None:
    """Refuse options that have no meaning with --degraded."""
    if n:
        raise UsageError("--n counts test images, but --degraded restores your own.", "Leave one of them out.")
    if animate:
        raise UsageError("--animate does not go with --degraded.", "Leave one of them out.")


def _check_needs_degraded(given: dict[str, bool]) -> None:
    """Refuse options that only have a meaning with --degraded."""
    for name, is_given in given.items():
        if is_given:
            raise UsageError(
                f"--{name} is for pictures that are already degraded.", "Use colddiff restore, or leave it out."
            )


def _run_and_images(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Split the arguments into the name of a run, None if it is left out, and names of images."""
    from colddiff_core.distributed import group

    if arguments and not group.current().on_first(lambda: inputs.names_images(arguments[0])):
        return arguments[0], arguments[1:]
    return None, arguments
