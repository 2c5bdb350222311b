"""`colddiff generate`: new images, from a prior."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import completions, options, outputs, registered
from colddiff_cli.console import explain
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import DIVERSITY, diversity_table, measured
from colddiff_cli.jobs import launch, open_run
from colddiff_cli.picture_series import films, gather, series
from colddiff_cli.picture_series.gather import ImageCollector
from colddiff_core.errors import UsageError
from colddiff_core.files import fitted
from colddiff_core.text import counted

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.evaluation.metrics import Reference
    from colddiff_core.experiment import Experiment
    from colddiff_core.inference.condition import Condition
    from colddiff_core.inference.generate import GeneratedBatch

SHOWN = 64  # images on a grid
MOST_CAPTIONS = 16  # classes on it that stand apart
ACROSS = 8
IMAGES = "images"
NEIGHBORS = 16  # images shown with their nearest training image


def generate(
    context: typer.Context,
    run: options.RunName = None,
    prior: Annotated[
        str | None,
        typer.Option(
            "--prior",
            help="gmm, gaussian, color, normal, images, degraded (default: the operator's).",
            metavar="NAME",
            autocompletion=completions.one_of(lambda: registered.names("priors")),
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help=f"Number of images (default: {SHOWN}).", min=1)] = None,
    components: Annotated[
        int | None, typer.Option("--components", help="Gaussians in the prior's mixture (default: 1).", min=1)
    ] = None,
    noise: options.Noise = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Class of the images, by name or number; repeatable, or all: the images take turns.",
            metavar="NAME",
            autocompletion=completions.classes,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance", help="How far to lean towards the class: 1 as trained (default), 2 more.", metavar="W"
        ),
    ] = None,
    interpolate: Annotated[
        int | None, typer.Option("--interpolate", help="Instead: this many images between the first two.", min=2)
    ] = None,
    sampler: options.Sampler = None,
    stride: options.Stride = None,
    animate: Annotated[
        bool, typer.Option("--animate", help="Also write the trajectory, as a GIF beside the grid.")
    ] = False,
    diversity: Annotated[
        bool, typer.Option("--diversity", help="Measure diversity and show the nearest training images.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Grid of the images (default: RUN/generated/...png).", parser=outputs.picture, metavar="PATH"
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out-dir", help="Also write each image there, as PNG.", parser=outputs.folder, metavar="DIR"),
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
    """Generate new images: draw x_T from a prior and take it back to x_0. Image k does not depend on --n."""
    screen = Screen(json)
    ranks = launch.share(context, nproc, device)
    found = open_run.find(screen, run, open_run.GENERATES)
    overrides = options.run_overrides(data_dir, precision, compiled)
    config = found.config(overrides)
    _check(n, interpolate, out_dir, is_resumed=resume)
    count = n or interpolate or SHOWN

    from colddiff_core.inference import batches, condition
    from colddiff_core.inference import generate as generation
    from colddiff_core.sampling import Sampling

    trained = open_run.open_run(found, device, overrides)
    built = trained.experiment
    sampling = Sampling.of(config, sampler=sampler, stride=stride, seed=seed)
    sampling.check(built.operator)
    chosen = condition.named(trained.run, built, label, 1.0 if guidance is None else guidance)
    request = chosen.request() | {
        "prior": prior or built.operator.priors[0],
        "components": components,
        "noise": noise,
        "n" if interpolate is None else "interpolate": count,
        "sampler": sampling.sampler,
        "stride": sampling.stride,
        "seed": sampling.seed,
        "batch": chosen.batch_size(built),
    }
    default = found.outputs / "generated" / f"{request['prior']}-{sampling.sampler}.png"
    grid_path, film_path, neighbors_path = outputs.agreed(
        lambda: _paths(out, default, animate=animate, force=force, keep=resume)
    )
    singles = [out_dir / f"{number:06d}.png" for number in range(count)] if out_dir else []
    settings = open_run.described(found, built, trained.step) | request
    if ranks.is_first:
        outputs.check_apart((grid_path, film_path), singles)
    with series.Series(singles, "generate", settings if out_dir else None, resume=resume, force=force) as own:
        if own.is_complete and resume:
            screen.say("Nothing is missing: all were there already.")
            if out is None and not diversity:  # an earlier call wrote the grid
                grid_path, film_path = None, None
        generator = generation.prepare(found, built, prior, components, noise, chosen)
        own.begin()
        reference = _load_reference(screen, built) if diversity and ranks.is_first else None

        def is_needed(numbers: range) -> bool:
            on_grid = grid_path is not None and numbers.start < SHOWN
            return not singles or own.lacks(numbers) or on_grid or diversity

        mine = batches.round_robin(ranks, count, generator.batch_size, is_needed)
        make = generator.generate if interpolate is None else generator.interpolate
        total = sum(1 for _ in batches.batches(count, generator.batch_size, mine))
        collected = _run(
            screen,
            make(count, sampling, accepts=mine),
            total,
            own,
            is_all=diversity,
            is_film=film_path is not None,
        )
    results = collected.gather(ranks)
    if not ranks.is_first:
        return
    outcome: dict[str, Any] = {
        "run": found.label,
        "step": trained.step,
        "prior": generator.prior.name,
        "noise": generator.noise,
        "sampler": sampling.sampler,
        "stride": sampling.stride,
        "precision": built.precision,
        "seed": sampling.seed,
        "n": count,
        **chosen.request(),
        "classes": list(chosen.titles().values()),
        "picture": str(grid_path) if grid_path else None,
        "animation": str(film_path) if film_path else None,
        "files": [str(path) for path in singles],
        "kept": len(own.kept),
    }
    if grid_path:
        _write_grid(results[IMAGES][:SHOWN], chosen, grid_path)
        _show(screen, results[IMAGES][:SHOWN], count, gather.trajectory(results), film_path)
    if reference is not None and neighbors_path:
        title = f"{counted(count, 'image')} of {found.label}, step {trained.step}, beside real {config.data.dataset}"
        outcome |= _measure(screen, results[IMAGES], chosen, reference, title, neighbors_path)
    if out_dir is not None:
        _warn_of_others(screen, out_dir, (*singles, grid_path, neighbors_path))
        screen.say(series.summary(own.folder, count, len(own.kept)))
    screen.result(outcome, grid_path)


def _check(n: int | None, interpolate: int | None, out_dir: Path | None, *, is_resumed: bool) -> None:
    if n is not None and interpolate is not None:
        raise UsageError("--n and --interpolate both say how many images.", "Give one of them.")
    if is_resumed and out_dir is None:
        raise UsageError("--resume completes a folder of pictures.", "Name it with --out-dir.")


def _load_reference(screen: Screen, built: Experiment) -> Reference:
    """Load the reference on rank 0 while the other ranks generate."""
    from colddiff_core.distributed import group
    from colddiff_core.evaluation import reference

    with group.alone(), explain.advancing(screen) as progress:
        return reference.load_reference(built, reference.FeatureSource(), progress)


def _paths(
    out: Path | None, default: Path, *, animate: bool, force: bool, keep: bool
) -> tuple[Path | None, Path | None, Path]:
    """Return the paths of the grid, its film and the sheet of nearest training images."""
    grid_path, film_path = films.outputs(out, default, animate=animate, force=force, keep=keep)
    beside = grid_path or out or default
    return (
        grid_path,
        film_path,
        outputs.free_path(None, beside.with_name(fitted(beside.stem, "-neighbors.png")), force=force),
    )


def _run(
    screen: Screen, batches: Iterator[GeneratedBatch], total: int, own: series.Series, *, is_all: bool, is_film: bool
) -> ImageCollector:
    """Write the missing pictures of a series; collect all images, or those on the grid, and the grid's trajectory.

    Args:
        total: Number of batches.
    """
    from colddiff_core import images

    collected = ImageCollector()
    with screen.progress() as progress:
        task = progress.add_task("generating", total=total)
        for batch in batches:
            on_film = max(0, min(batch.count, SHOWN - batch.first)) if is_film else 0
            frames = [batch.start.x[:on_film].cpu()]
            for step in batch.steps:
                progress.advance(task, 1 / step.count)
                frames.append(step.x[:on_film].cpu())
            x = step.x[: batch.count].cpu()
            if on_film:
                collected.add_trajectory(batch.first, frames)
            for number, image in enumerate(x, batch.first):
                if own.lacks([number]):
                    images.write(images.to_pillow(image), own.place(number))
            if is_all or batch.first < SHOWN:
                collected.add(IMAGES, batch.first, x)
    return collected


def _show(screen: Screen, shown: Tensor, count: int, trajectory: list[Tensor], film_path: Path | None) -> None:
    """Show the grid on a terminal, and write its film; `count` images were generated."""
    from colddiff_core import images

    if film_path:
        images.write_animation(films.frames(trajectory), film_path)
        screen.say(f"trajectory: {film_path}")
    screen.picture(images.to_pillow(images.tile(shown, ACROSS)))
    if count > len(shown):
        screen.say(f"on the grid: the first {len(shown)} of {counted(count, 'image')}")


def _write_grid(shown: Tensor, chosen: Condition, path: Path) -> None:
    """Write a grid of images; if they take turns in a few classes, each stands below the name of its own."""
    from colddiff_core import images

    titles = chosen.titles()
    if not 0 < len(titles) <= MOST_CAPTIONS:
        images.write(images.image_grid({"": shown}, across=ACROSS), path)
        return
    of_image = chosen.of(range(len(shown)), shown.device)
    groups = {title: shown[of_image == label] for label, title in titles.items()}
    groups = {title: stack for title, stack in groups.items() if len(stack)}
    images.write(images.image_grid(groups, across=max(1, ACROSS // len(groups))), path)


def _measure(
    screen: Screen, generated: Tensor, chosen: Condition, reference: Reference, title: str, neighbors: Path
) -> dict[str, Any]:
    """Show the diversity of images next to that of real ones, write the nearest training images; return the figures."""
    from colddiff_core.evaluation import comparison

    labels = chosen.of(range(len(generated)), generated.device)
    described = comparison.describe(generated, reference, labels)
    figures = described.figures
    _show_neighbors(generated, reference, neighbors)
    real = comparison.describe_real(len(generated), reference).figures
    from colddiff_core.evaluation.reference import labels as names

    screen.show(diversity_table(title, {"generated": figures, "real": real}, names(reference)))
    explain.explain(
        screen, reference, measured({"": figures}, DIVERSITY), has_too_few_images=described.has_too_few_images
    )
    screen.say(f"nearest training images: {neighbors}")
    return {"figures": figures, "figures_of_real_images": real, "neighbours": str(neighbors)}


def _warn_of_others(screen: Screen, folder: Path, own: Iterable[Path | None]) -> None:
    written = {path.resolve() for path in own if path is not None}
    others = sum(path.resolve() not in written for path in folder.glob("*.png"))
    if others:
        screen.warn(f"{folder} has {counted(others, 'other PNG file')} from other calls")


def _show_neighbors(generated: Tensor, reference: Reference, path: Path) -> None:
    from colddiff_core import images
    from colddiff_core.evaluation import diversity

    shown = generated[:NEIGHBORS]
    nearest = diversity.nearest_neighbors(shown, reference.train())
    columns = {"generated": shown, "nearest": reference.train().images(nearest.number)}
    images.write(images.sheet(columns, blocks=4 if len(shown) > 4 else 1), path)
