"""`colddiff generate`: images from nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from colddiff_cli import films, opening, options, outputs, references
from colddiff_cli.screen import Screen
from colddiff_cli.tables import DIVERSITY, diversity_table, measured
from colddiff_core import runs
from colddiff_core.errors import UsageError, counted

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.evaluation import Reference
    from colddiff_core.generation import Batch

SHOWN = 64  # images on a grid
ACROSS = 8
NEIGHBOURS = 16  # images shown beside their nearest training image


def generate(
    run: options.RunName = None,
    prior: Annotated[
        str | None,
        typer.Option(
            "--prior", help="gmm, gaussian, color, normal, images or degraded (the operator's own).", metavar="NAME"
        ),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help=f"How many images ({SHOWN}).", min=1)] = None,
    components: Annotated[
        int | None, typer.Option("--components", help="Gaussians in the prior's mixture (1).", min=1)
    ] = None,
    noise: options.Noise = None,
    label: Annotated[
        int | None, typer.Option("--class", help="The class of them all, for a run trained with classes.", metavar="K")
    ] = None,
    interpolate: Annotated[
        int | None, typer.Option("--interpolate", help="So many images between the first two starts, instead.", min=2)
    ] = None,
    sampler: options.Sampler = None,
    stride: options.Stride = None,
    animate: Annotated[
        bool, typer.Option("--animate", help="Write the trajectory too, as a GIF beside the grid.")
    ] = False,
    diversity: Annotated[
        bool, typer.Option("--diversity", help="Measure how varied they are; show their nearest training images.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The grid to write (RUN/generated/...png).", parser=outputs.picture, metavar="PATH"),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir", help="Write every image there too, a PNG each.", parser=outputs.folder, metavar="DIR"
        ),
    ] = None,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    force: options.Force = False,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Generate images from nothing: x_T from a prior, taken back to x_0. Image k is the same whatever --n is."""
    screen = Screen(json)
    found = runs.find(run)
    overrides = options.run_overrides(data_dir, precision, compiled)
    config = found.config(overrides)
    if n is not None and interpolate is not None:
        raise UsageError("--n and --interpolate both say how many images.", "Give one of them.")
    count = n or interpolate or SHOWN

    from colddiff_core import comparison, generation, images, sampling

    built, step = opening.open_run(screen, found, device, overrides)
    name, pace = sampler or config.sample.sampler, config.sample.stride if stride is None else stride
    sampling.check(name, built.operator, pace)
    generation.check_label(built, label)
    stem = f"{prior or built.operator.priors[0]}-{name}"
    grid_path, film_path = films.outputs(out, found.path / "generated" / f"{stem}.png", animate=animate, force=force)
    neighbours_path = outputs.free_path(None, grid_path.with_name(f"{grid_path.stem}-neighbours.png"), force=force)
    singles = _singles(out_dir, count, force)
    same = next(
        (path for path in (grid_path, film_path) if path and path.resolve() in [s.resolve() for s in singles]), None
    )
    if same:
        raise UsageError(f"{same} is to be one of the images in --out-dir as well.", "Give another --out.")
    generator = generation.prepare(found, built, prior, components, noise)
    reference = references.load(screen, built, references.Means()) if diversity else None
    draw = generator.generate if interpolate is None else generator.interpolate
    chosen_seed = config.train.seed if seed is None else seed
    batches = draw(count, seed=chosen_seed, sampler=name, stride=pace, label=label)
    made, shown, trajectory = _run(screen, batches, count, singles, is_all=diversity, is_film=animate)
    images.write(images.album({"": shown}, across=ACROSS), grid_path)
    if film_path:
        images.write_animation(films.frames(trajectory), film_path)
        screen.say(f"trajectory: {film_path}")
    outcome: dict[str, Any] = {
        "run": str(found.path),
        "step": step,
        "prior": generator.prior.name,
        "noise": generator.noise,
        "sampler": name,
        "stride": pace,
        "precision": built.precision,
        "seed": chosen_seed,
        "n": count,
        "picture": str(grid_path),
        "animation": str(film_path) if film_path else None,
        "files": [str(path) for path in singles],
    }
    screen.picture(images.to_pillow(images.tile(shown, ACROSS)))
    if reference is not None:
        described = comparison.describe(made, reference)
        figures = described.figures
        _show_neighbours(made, reference, neighbours_path)
        real = comparison.describe_real(count, reference).figures
        title = f"{counted(count, 'image')} of {found.path}, step {step}, beside real ones of {config.data.dataset}"
        screen.show(diversity_table(title, {"generated": figures, "real": real}, references.labels(reference)))
        references.explain(screen, reference, measured({"": figures}, DIVERSITY), is_scarce=described.is_scarce)
        screen.say(f"nearest training images: {neighbours_path}")
        outcome |= {"figures": figures, "figures_of_real_images": real, "neighbours": str(neighbours_path)}
    if out_dir is not None:
        written = {path.resolve() for path in (*singles, grid_path, neighbours_path)}
        others = sum(path.resolve() not in written for path in out_dir.glob("*.png"))
        if others:
            screen.warn(f"{out_dir} holds {counted(others, 'other PNG file')}, not of this call")
        screen.say(f"{counted(len(singles), 'image')}: {out_dir}")
    screen.result(outcome, grid_path)


def _singles(folder: Path | None, count: int, force: bool) -> list[Path]:
    """Return the file of every image, named by its number; refuses to overwrite."""
    if folder is None:
        return []
    paths = [folder / f"{number:06d}.png" for number in range(count)]
    for path in paths:
        outputs.check(path, "another --out-dir", force=force)
    return paths


def _run(
    screen: Screen, batches: Iterator[Batch], count: int, singles: list[Path], *, is_all: bool, is_film: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the images (all of them, or those shown), those on the grid, and the grid's trajectory."""
    import torch

    from colddiff_core import images

    made: list[Tensor] = []
    film: list[list[Tensor]] = []
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("generating", total=None)
        for batch in batches:
            on_film = max(0, min(batch.count, SHOWN - batch.first)) if is_film else 0
            frames = [batch.start.x[:on_film]]
            for step in batch.steps:
                done = (batch.first + batch.count * step.index / step.count) / count
                progress.update(task, completed=100 * done, total=100)
                frames.append(step.x[:on_film].cpu())
            x = step.x[: batch.count].cpu()
            film.append(frames)
            for path, image in zip(singles[batch.first :], x, strict=False):
                images.write(images.to_pillow(image), path)
            if is_all or batch.first < SHOWN:
                made.append(x)
    stack = torch.cat(made)
    trajectory = [torch.cat(parts) for parts in zip(*film, strict=True)] if is_film else []
    return stack, stack[:SHOWN], trajectory


def _show_neighbours(made: Tensor, reference: Reference, path: Path) -> None:
    from colddiff_core import diversity, images

    shown = made[:NEIGHBOURS]
    nearest = diversity.nearest_neighbours(shown, reference.train())
    columns = {"generated": shown, "nearest": reference.train().images(nearest.number)}
    images.write(images.sheet(columns, blocks=4 if len(shown) > 4 else 1), path)
