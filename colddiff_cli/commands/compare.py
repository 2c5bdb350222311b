"""`colddiff compare`: samplers, runs, strides and starts on the same images and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from colddiff_cli.arguments import options, outputs
from colddiff_cli.console import explain
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import COMPARED, comparison_table, measured
from colddiff_cli.jobs import open_run
from colddiff_core import runs
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.datasets import ImageSet
    from colddiff_core.evaluation.comparison import Contender
    from colddiff_core.evaluation.evaluate import EvaluationResult
    from colddiff_core.evaluation.metrics import Reference
    from colddiff_core.experiment import Experiment
    from colddiff_core.inference.generate import Generator

DEFAULT_IMAGES = 300
SHOWN_ROWS, SHOWN_GRID, ACROSS = 16, 64, 8
REAL = "(real images)"
MOST_COLUMNS = 6  # of a sheet that is laid out in two halves side by side


def compare(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs, side by side (the newest if left out).", metavar="[RUN]...")
    ] = None,
    samplers: Annotated[
        str | None,
        typer.Option(
            "--samplers",
            help="Names with commas between (all that suit one run; of several runs, each one's own).",
            metavar="NAMES",
        ),
    ] = None,
    strides: Annotated[
        str | None,
        typer.Option("--strides", help="Sweep these, as 1,2,5: quality against evaluations.", metavar="NUMBERS"),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Compare images from nothing instead of restored test images.")
    ] = False,
    symmetry: Annotated[
        bool, typer.Option("--symmetry", help="Generate from x_T as the prior has it and with white noise on it.")
    ] = False,
    prior: Annotated[
        str | None,
        typer.Option("--prior", help="Where images from nothing start (each operator's own).", metavar="NAME"),
    ] = None,
    noise: options.Noise = None,
    n: Annotated[int, typer.Option("--n", help="Images; of test images, drawn from the set.", min=1)] = DEFAULT_IMAGES,
    t: options.Severity = None,
    batch_size: options.BatchSize = None,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The sheet to write (RUN/compared/...png).", parser=outputs.picture, metavar="PATH"),
    ] = None,
    force: options.Force = False,
    features: options.Features = "classifier",
    weights: options.Weights = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Compare samplers, runs or strides. Each restores (or generates) the same images: one table, one sheet."""
    screen = Screen(json)
    is_generating = generate or symmetry or prior is not None or noise is not None
    if t is not None and is_generating:
        raise UsageError("--t is for restored test images; generation starts at T.", "Leave one of them out.")
    found = _find(names)
    overrides = options.run_overrides(data_dir, precision, compiled)
    for run in found:
        run.config(overrides)  # what cannot be is told before weights are fetched

    from colddiff_core import images, sampling
    from colddiff_core.evaluation import comparison
    from colddiff_core.evaluation import reference as references

    with explain.advancing(screen) as progress:
        choice = references.prepare_features(features, weights, device, progress)

    opened = [open_run.open_run(run, device, overrides) for run in found]
    experiments = [trained.experiment for trained in opened]
    _check_comparable(experiments)
    kind = "generated" if is_generating else "restored"
    path = outputs.free_path(out, found[0].path / "compared" / f"{kind}.png", force=force)
    images.check_suffix(path, images.SUFFIXES)
    contenders: list[Contender] = []
    for label, run, built in zip(_labels([run.path for run in found]), found, experiments, strict=True):
        is_alone = len(found) == 1 and strides is None and not symmetry
        asked = _samplers(samplers, built, is_alone=is_alone)
        # Of several runs each takes the samplers that it can: hot diffusion has some that cold does not.
        fitting = [name for name in asked if name in sampling.names(built.operator) or name not in sampling.SAMPLERS]
        ways = list(itertools.product(fitting if len(found) > 1 and fitting else asked, _strides(strides, built)))
        for name, stride in ways:
            sampling.Sampling(name, stride).check(built.operator, t)
        generators = _generators(run, built, prior, noise, symmetry=symmetry) if is_generating else []
        contenders += _contenders(label if len(found) > 1 else "", built, ways, t, generators or [None])
    with explain.advancing(screen) as progress:
        reference = references.load_reference(experiments[0], choice, progress)
    config = experiments[0].config
    count = n if is_generating else min(n, len(reference.test))
    chosen_seed = config.train.seed if seed is None else seed
    outcomes = _measure(screen, contenders, reference, count, chosen_seed, batch_size)
    figures = {label: outcome.figures for label, outcome in outcomes.items()}
    if is_generating:
        figures[REAL] = comparison.describe_real(count, reference).figures
    _draw(path, outcomes, None if is_generating else reference.test, is_alone=len(found) == 1)
    severities = sorted({contender.t for contender in contenders})
    data = reference.title(config.data.dataset)
    title = f"{counted(count, 'test image')} of {data} from t = {', '.join(map(str, severities))}"
    published = {contender.label: _published(contender) for contender in contenders}
    title = f"{counted(count, 'image')} from nothing" if is_generating else title
    screen.show(comparison_table(title, figures, references.labels(reference), published))
    screen.say(", ".join(f"{trained.run.path} at step {trained.step}" for trained in opened))
    screen.say("steps: evaluations of the network; ms: milliseconds an image")
    has_too_few_images = any(outcome.has_too_few_images for outcome in outcomes.values())
    explain.explain(screen, reference, measured(figures, COMPARED), has_too_few_images=has_too_few_images)
    if is_generating and reference.target:
        screen.say(f"{REAL}: as many test images, their distances those of training images")
    for source in dict.fromkeys(c.experiment.config.paper["source"] for c in contenders if published[c.label]):
        screen.say(f"paper: {source}")
    outcome = {
        "runs": [str(run.path) for run in found],
        "steps": [trained.step for trained in opened],
        "kind": kind,
        "precision": ", ".join(dict.fromkeys(built.precision for built in experiments)),
        "n": count,
        "t": None if is_generating else severities,
        "seed": chosen_seed,
        **reference.metadata(),
        "metrics": figures,
        "intervals": {label: outcome.intervals for label, outcome in outcomes.items()},
        "paper": published,
        "picture": str(path),
    }
    screen.result(outcome, path)


def _find(names: list[str] | None) -> list[runs.Run]:
    """Return the runs of these names, the newest for none; raises UsageError for one that is named twice."""
    found = [runs.find(name) for name in names] if names else [runs.find(None)]
    twice = [
        run.path for index, run in enumerate(found) if run.path.resolve() in [r.path.resolve() for r in found[:index]]
    ]
    if twice:
        raise UsageError(f"{twice[0]} is named twice.", "Name each run once.")
    return found


def _generators(
    run: runs.Run, built: Experiment, prior: str | None, noise: float | None, *, symmetry: bool
) -> list[Generator]:
    """Return what images are generated from; to compare symmetries, x_T as the prior has it and then broken."""
    from colddiff_core.inference import generate as generation
    from colddiff_core.sampling import priors

    if symmetry and noise == 0:
        raise UsageError("--symmetry with --noise 0 would compare no noise with none.", "Leave --noise out.")
    if symmetry and priors.find(prior, built.operator).noise is None:
        raise UsageError(f"{run.path}: its x_T has no symmetry that noise could break.", "Leave --symmetry out.")
    made = [generation.prepare(run, built, prior, None, width) for width in ([0.0, noise] if symmetry else [noise])]
    if symmetry and not made[-1].noise:
        raise UsageError(f"{run.path}: --symmetry would compare no noise with none.", "Give its width with --noise.")
    return made


def _contenders(
    run: str,
    built: Experiment,
    ways: list[tuple[str, int]],
    t: int | None,
    generators: Sequence[Generator | None],
) -> list[Contender]:
    """Return a contender for each sampler, stride and start; a label tells what differs, and a stride not the run's."""
    from colddiff_core.evaluation import comparison

    severity = built.operator.steps if t is None else t
    made = []
    for (name, stride), generator in itertools.product(ways, generators):
        words = [run] if run else []
        words += [name] if len({sampler for sampler, _ in ways}) > 1 else []
        words += [f"stride {stride}"] if len({pace for _, pace in ways}) > 1 else []
        words += [_symmetry(generator)] if len(generators) > 1 else []
        words = words or [name]
        is_foreign = stride != built.config.sample.stride
        words += [f"stride {stride}"] if is_foreign and len({pace for _, pace in ways}) == 1 else []
        made.append(comparison.Contender(", ".join(words), built, name, stride, severity, generator))
    return made


def _measure(
    screen: Screen, contenders: list[Contender], reference: Reference, count: int, seed: int, batch_size: int | None
) -> dict[str, EvaluationResult]:
    from colddiff_core.evaluation import comparison

    outcomes = {}
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("comparing", total=count * len(contenders))

        def advance(done: int) -> None:
            progress.advance(task, done)

        for contender in contenders:
            progress.update(task, description=contender.label)
            if contender.generator is None:
                outcome = comparison.restore(
                    contender,
                    reference,
                    count=count,
                    seed=seed,
                    shown=SHOWN_ROWS,
                    batch_size=batch_size,
                    progress=advance,
                )
            else:
                outcome = comparison.generate(
                    contender, reference, count=count, seed=seed, shown=SHOWN_GRID, progress=advance
                )
            outcomes[contender.label] = outcome
    return outcomes


def _draw(path: Path, outcomes: Mapping[str, EvaluationResult], originals: ImageSet | None, *, is_alone: bool) -> None:
    """Write the sheet: a grid for each contender, or with originals a row for each image."""
    from colddiff_core import images

    shown = {label: outcome.shown for label, outcome in outcomes.items()}
    if originals is None:
        images.write(images.image_grid(shown, across=ACROSS), path)
        return
    first = next(iter(outcomes.values()))
    columns = {"degraded": first.degraded} if is_alone and first.degraded is not None else {}
    columns |= shown | {"original": originals.images(originals.draw(len(first.shown)))}
    images.write(images.sheet(columns, blocks=2 if len(columns) <= MOST_COLUMNS else 1), path)


def _check_comparable(experiments: list[Experiment]) -> None:
    """Refuse runs whose images cannot be held against each other."""
    first = experiments[0]
    for other in experiments[1:]:
        for what, ours, theirs in (
            ("data.dataset", first.config.data.dataset, other.config.data.dataset),
            ("data.size", first.config.data.size, other.config.data.size),
            ("data.margin", first.config.data.margin, other.config.data.margin),
            ("data.crop", first.config.data.crop, other.config.data.crop),
            ("channels", first.channels, other.channels),
            ("data.directory", *(_folder(built) for built in (first, other))),
        ):
            if ours != theirs:
                raise UsageError(
                    f"The runs are not of the same images: {what} is {ours} and {theirs}.",
                    "Compare runs of one data set and size.",
                )


def _folder(built: Experiment) -> str:
    """Return what tells one `folder` data set from another; a named data set is the same wherever its files lie."""
    data = built.config.data
    return data.directory if data.dataset == "folder" else ""


def _labels(paths: list[Path]) -> list[str]:
    """Return a name for each run, unlike the others'."""
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _samplers(asked: str | None, built: Experiment, *, is_alone: bool) -> list[str]:
    from colddiff_core import sampling

    if asked is not None:
        named = list(dict.fromkeys(word.strip() for word in asked.split(",") if word.strip()))
        if not named:
            raise UsageError(f"--samplers '{asked}' names no sampler.", "For example: --samplers direct,tacos")
        return named
    return sampling.names(built.operator) if is_alone else [built.config.sample.sampler]


def _strides(asked: str | None, built: Experiment) -> list[int]:
    if asked is None:
        return [built.config.sample.stride]
    try:
        return list(dict.fromkeys(int(word) for word in asked.split(",")))
    except ValueError:
        raise UsageError(
            f"--strides {asked}: not whole numbers with commas between.", "For example: --strides 1,2,5"
        ) from None


def _symmetry(generator: Generator | None) -> str:
    return "broken symmetry" if generator is not None and generator.noise else "perfect symmetry"


def _published(contender: Contender) -> Mapping[str, Any]:
    """Return the paper's figures for a contender, as far as its preset has them."""
    config, sampler = contender.experiment.config, contender.sampler
    op, start = contender.experiment.operator, contender.generator
    if contender.stride != 1 or contender.t != op.steps or (start and start.prior.name != op.priors[0]):
        return {}
    if start is None:
        return dict(config.paper.get("sampled" if sampler == config.sample.sampler else sampler, {}))
    generated = config.paper.get("generated", {})
    hot = "fid_fixed_noise" if sampler == "fixed-noise" else "fid_estimated_noise"
    cold = "fid_broken_symmetry" if start.noise else "fid_perfect_symmetry"
    value = next((generated[key] for key in (hot, cold, "fid") if key in generated), None)
    return {} if value is None or sampler in ("direct", "naive", "ddpm") else {"fid": value}
