"""`colddiff sample`: degrade images and bring them back."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from colddiff_cli.arguments import inputs, options, outputs
from colddiff_cli.commands import sample_photographs
from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import launch, open_run
from colddiff_cli.picture_series import films, series
from colddiff_cli.picture_series import gather as stacks
from colddiff_cli.picture_series.gather import ImageCollector
from colddiff_core import runs
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.experiment import Experiment
    from colddiff_core.inference.restore import DegradedBatch
    from colddiff_core.sampling import Sampling

SHOWN = 64  # images on a sheet that stands beside --out-dir
COLUMNS = ("degraded", "direct", "sampled", "original")
TEST_IMAGES = 8
MOST_SHOWN = 256  # on one that is all there is
Given = Sequence[tuple[Path, bool]]


@dataclasses.dataclass(frozen=True)
class SampleSource:
    """The images to degrade: how many, each by its number (None where it is left out), and what tells them apart.

    left_out: why images were left out, by their numbers, where that is not told at once.
    """

    count: int
    load: Callable[[int], Tensor | None]
    settings: dict[str, Any]
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)


def sample(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="A run (the newest if left out), then images, folders, globs (test images if none).",
            metavar="[RUN] [IMAGE]...",
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="How many test images (8).", min=1)] = None,
    t: Annotated[
        str | None,
        typer.Option(
            "--t",
            help="Severity, 1 to the operator's steps (all of them). With --degraded: auto (the default) or sweep too.",
            metavar="N|auto|sweep",
        ),
    ] = None,
    sampler: options.Sampler = None,
    stride: options.Stride = None,
    animate: Annotated[
        bool, typer.Option("--animate", help="Write the trajectory too: a GIF, or as --out ends.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help=f"The sheet to write (RUN/restored/...png): all images, with --out-dir the first {SHOWN}. "
            "With --degraded: the picture (NAME-restored.png).",
            parser=outputs.picture,
            metavar="PATH",
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir", help="Write every restored image there too, a PNG each.", parser=outputs.folder, metavar="DIR"
        ),
    ] = None,
    degraded: Annotated[
        bool, typer.Option("--degraded", help="The images are degraded already: restore them as they are.")
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="With --degraded: a picture, white where to make pixels anew.", metavar="FILE"),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="With --degraded: write before | after beside each picture.")
    ] = False,
    consistent: Annotated[
        bool | None,
        typer.Option(
            "--consistent/--no-consistent",
            help="With --degraded: degraded again, the restoration is the picture (where that helps).",
        ),
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(
            "--color", "--colour", help="With --degraded: how a gray run takes color: channels (one by one), luma."
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
    """Degrade images with the run's operator, restore them, and write a sheet; or --degraded: restore as they are."""
    screen = Screen(json)
    together = launch.share(context, nproc, device)
    found, names = _run_and_images(arguments or [])
    overrides = options.run_overrides(data_dir, precision, compiled)
    if degraded:
        _check_unused(n=n is not None, animate=animate)
        sample_photographs.restore(
            screen,
            found,
            names,
            sample_photographs.RestoreOptions(
                t=t,
                mask=mask,
                color=color or sample_photographs.COLORS[0],
                is_consistent=consistent,
                is_compared=compare,
                sampler=sampler,
                stride=stride,
                out=out,
                out_dir=out_dir,
                seed=seed or 0,
                is_resumed=resume,
                is_forced=force,
            ),
            device,
            overrides,
        )
        return
    _check_own(mask=mask is not None, compare=compare, consistent=consistent is not None, color=color is not None)
    files = inputs.agreed(lambda: inputs.listed(names)) if names else []
    _check(out_dir, resume, len(files) or n or TEST_IMAGES)
    config = found.config(overrides)

    from colddiff_core.inference import restore
    from colddiff_core.sampling import Sampling

    trained = open_run.open_run(found, device, overrides)
    built, step = trained.experiment, trained.step
    severity = built.operator.steps if t is None else sample_photographs.whole(t, is_degraded=False)
    sampling = Sampling.of(config, sampler=sampler, stride=stride, seed=seed)
    sampling.check(built.operator, severity)
    ending = f"{sampling.sampler}-t{severity:03d}.png"
    default = found.path / "restored" / ending
    picture, film = outputs.agreed(lambda: films.outputs(out, default, animate=animate, force=force, keep=resume))
    size = together.broadcast_json(built.batch_size(restore.MOST))
    settings = open_run.described(found, built, step) | {
        "sampler": sampling.sampler,
        "stride": sampling.stride,
        "t": severity,
        "seed": sampling.seed,
        "batch": size,
    }
    if resume and files and out_dir:
        files = series.without_own(files, out_dir, "sample", settings)
    source = _pictures(screen, built, files) if files else _test_images(screen, built, n or TEST_IMAGES)
    settings["inputs"] = source.settings
    stems = [file for file, _ in files] or [Path(f"{number:06d}") for number in range(source.count)]
    targets = series.targets(stems, out_dir, ending) if out_dir else []
    if together.is_first:
        _check_targets((picture, film), targets, files)
    with series.Series(targets, "sample", settings if out_dir else None, resume=resume, force=force) as own:
        if own.is_complete and resume and out is None:
            picture, film = None, None  # of a series on which nothing is missing there is a sheet already
        shown = range((SHOWN if out_dir else source.count) if picture else 0)
        work = SampleWork(screen, own, shown, sampling, is_film=film is not None)
        own.begin()
        # A sheet alone need not pay for more images than it shows.
        work.run(built, source, t=severity, size=size if out_dir else min(size, source.count))
    work.gather(source)
    if not together.is_first:
        return
    numbers = _any_of(work.written if out_dir else work.restored, source.count)
    if resume and not work.made and out is None:
        picture, film = None, None  # what is still absent cannot be read, and the sheet has been drawn without it
    if picture:
        work.conclude(picture, film)
    if out_dir is not None:
        _summarize(screen, work, source.count if picture else 0, is_resumed=resume)
    outcome = {"run": str(found.path), "step": step, "sampler": sampling.sampler, "t": severity}
    outcome |= {"stride": sampling.stride, "n": len(numbers)}
    outcome |= {"precision": built.precision, "picture": picture and str(picture), "animation": film and str(film)}
    outcome |= {"files": [str(targets[number]) for number in numbers] if out_dir else [], "kept": len(own.kept)}
    screen.result(outcome, picture)


@dataclasses.dataclass
class SampleWork:
    """Restores batches, writes the pictures of a series and holds what a sheet shows, the numbers `shown`.

    restored: the numbers of all images so far; written: of those whose pictures are there; made: how many were written.
    Until they are gathered, each process of a job knows its own.
    """

    screen: Screen
    own: series.Series
    shown: range
    sampling: Sampling
    is_film: bool
    restored: list[int] = dataclasses.field(default_factory=list)
    made: int = 0
    held: ImageCollector = dataclasses.field(default_factory=ImageCollector)
    gathered: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def written(self) -> list[int]:
        return sorted(self.own.kept.union(self.restored))

    def run(self, built: Experiment, source: SampleSource, *, t: int, size: int) -> None:
        """Restore all batches, of `size` images, that a picture of the series or of the sheet is in."""
        from colddiff_core.inference import batches, restore

        def is_needed(numbers: range) -> bool:
            return self.own.lacks(numbers) or numbers.start < self.shown.stop

        mine = batches.round_robin(self.own.together, source.count, size, is_needed)
        total = sum(1 for _ in batches.batches(source.count, size, mine))
        console = self.screen.console
        with Progress(console=console, transient=True, disable=not self.screen.is_terminal) as progress:
            task = progress.add_task(self.sampling.sampler, total=total)
            degraded = restore.degraded(
                built, source.load, source.count, t=t, seed=self.sampling.seed, size=size, accepts=mine
            )
            for batch in degraded:
                self._restore(batch, lambda share: progress.advance(task, share))

    def gather(self, source: SampleSource) -> None:
        """Have the first process know of the work of all; it tells which images were left out, in their order."""
        together = self.own.together
        self.made = self.own.made
        if not together.is_alone:
            told = together.gather_json([self.restored, list(source.left_out.items()), self.made])
            self.restored = sorted(number for numbers, _, _ in told for number in numbers)
            self.made = sum(made for _, _, made in told)
            for _, why in sorted(line for _, lines, _ in told for line in lines):
                self.screen.warn(why)
        self.gathered = self.held.gather(together)

    def conclude(self, picture: Path, film: Path | None) -> None:
        """Write the sheet, and the trajectory of its images as a film."""
        from colddiff_core import images

        columns = {kind: self.gathered[kind] for kind in COLUMNS}
        blocks = 2 if len(columns["original"]) > 4 else 1
        images.write(images.sheet(columns, blocks=blocks), picture)
        if film:
            images.write_animation(films.frames(stacks.way(self.gathered)), film)
            self.screen.say(f"trajectory: {film}")
        self.screen.rows(columns)

    def _restore(self, batch: DegradedBatch, progress: Callable[[float], None]) -> None:
        from colddiff_core import images

        is_shown = batch.first < self.shown.stop
        way = [batch.of(batch.x_t, self.shown)]
        x = batch.x_t
        for step in batch.restore(self.sampling):
            x = step.x
            progress(1 / step.count)
            if self.is_film and is_shown:
                way.append(batch.of(x, self.shown))
        for number in batch.numbers:
            if self.own.lacks([number]):
                images.write(images.to_pillow(x[number - batch.first]), self.own.place(number))
        self.restored += batch.numbers
        if is_shown:
            for kind, stack in zip(COLUMNS, (batch.x_t, batch.direct(), x, batch.x0), strict=True):
                self.held.add(kind, batch.first, batch.of(stack, self.shown))
            if self.is_film:
                self.held.add_way(batch.first, way)


def _summarize(screen: Screen, work: SampleWork, drawn: int, *, is_resumed: bool) -> None:
    if is_resumed and not work.made:
        screen.say("Nothing is missing: all were there already.")
    if drawn > SHOWN:
        screen.say(f"on the sheet: the first {SHOWN} of {counted(drawn, 'image')}")
    screen.say(series.summary(work.own.folder, len(work.written), len(work.own.kept)))


def _check(out_dir: Path | None, is_resumed: bool, count: int) -> None:
    """Refuse what cannot be, before the run is opened."""
    if is_resumed and out_dir is None:
        raise UsageError("--resume goes on with a folder of pictures.", "Name it with --out-dir.")
    if out_dir is None and count > MOST_SHOWN:
        what = f"A sheet has room for {MOST_SHOWN} images, and there are {count}."
        raise UsageError(what, "Have a picture each written with --out-dir, or take fewer.")


def _check_targets(wholes: Sequence[Path | None], targets: list[Path], files: Given) -> None:
    outputs.check_apart(wholes, targets)
    outputs.check_not_inputs(targets, [file for file, _ in files])


def _any_of(numbers: list[int], count: int) -> list[int]:
    if not numbers:
        raise UsageError(f"None of {counted(count, 'image')} could be restored.", "Check the files.")
    return numbers


def _check_unused(*, n: bool, animate: bool) -> None:
    """Refuse options that mean nothing for pictures which are degraded already."""
    if n:
        raise UsageError("--n counts test images, and --degraded restores your own.", "Leave one of them out.")
    if animate:
        raise UsageError(
            "--animate shows the way of a batch, and --degraded restores picture by picture.", "Leave it out."
        )


def _check_own(**are_given: bool) -> None:
    """Refuse options that only mean something for pictures which are degraded already."""
    for name, is_given in are_given.items():
        if is_given:
            what = f"--{name} is for pictures that are degraded already."
            raise UsageError(what, "Say so with --degraded, or leave it out.")


def _run_and_images(arguments: list[str]) -> tuple[runs.Run, list[str]]:
    """Return the run and what names images: a first argument that does so is no run."""
    from colddiff_core.distributed import group

    if arguments and not group.current().on_first(lambda: _names_images(arguments[0])):
        return open_run.find(arguments[0]), arguments[1:]
    return open_run.find(None), arguments


def _names_images(name: str) -> bool:
    """Tell whether a name is of a file, or like an image's, or of images in a folder that is no run."""
    from colddiff_core.images import SUFFIXES

    path = Path(name)
    if path.is_dir():
        is_run = (path / "run.toml").exists()
        return not is_run and any(inside.suffix.lower() in SUFFIXES for inside in path.iterdir())
    return path.suffix.lower() in SUFFIXES or path.is_file() or bool(glob.has_magic(name) and glob.glob(name))


def _pictures(screen: Screen, built: Experiment, files: Given) -> SampleSource:
    """Return picture files as the run takes them; says where their channels are not the run's."""
    from colddiff_core import images
    from colddiff_core.distributed import group

    together = group.current()

    def unlike() -> int:
        own = [images.count_channels(file) for file, _ in files]
        return sum(channels not in (0, built.channels) for channels in own)

    if others := together.on_first(unlike):
        theirs, runs_own = ("gray", "color") if built.channels > 1 else ("in color", "gray")
        is_one = others == 1
        what = f"{counted(others, 'picture')} {'is' if is_one else 'are'} {theirs} and the run knows {runs_own}"
        screen.warn(f"{what}: {'it is' if is_one else 'they are'} restored in {runs_own}")
    left_out: dict[int, str] = {}

    def load(number: int) -> Tensor | None:
        file, is_asked_for = files[number]
        try:
            return images.read(file, size=built.config.data.size, channels=built.channels)
        except UsageError as error:
            if is_asked_for:
                raise
            left_out[number] = f"{error.what} Left out."
            if together.is_alone:
                screen.warn(left_out[number])
            return None

    marks = series.fingerprint([file for file, _ in files]) if together.is_first else {}
    return SampleSource(len(files), load, marks, left_out)


def _test_images(screen: Screen, built: Experiment, n: int) -> SampleSource:
    from colddiff_core.datasets import from_config
    from colddiff_core.distributed import group

    data = built.config.data
    every = group.current().one_process_first(lambda: from_config.load_images(built.config, "test", built.channels))
    count = min(n, len(every))
    if count < n:
        screen.warn(f"{data.dataset} has {counted(count, 'test image')}: all of them are taken")
    settings = {"dataset": data.dataset, "images": count, "of": len(every), "directory": data.directory}
    return SampleSource(count, lambda number: every.images(slice(number, number + 1))[0], settings)
