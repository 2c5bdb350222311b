"""`colddiff compare`: compare samplers, runs, strides and priors on the same images and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import completions, options, outputs, registered
from colddiff_cli.console import explain
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import COMPARED, comparison_table, measured
from colddiff_cli.jobs import open_run
from colddiff_core import runs
from colddiff_core.errors import UsageError
from colddiff_core.evaluation.feature_names import check_features, check_weights
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
MOST_COLUMNS = 6  # of a sheet in two halves side by side


def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs to compare (default: the newest).", metavar="[RUN]...", autocompletion=completions.runs
        ),
    ] = None,
    samplers: Annotated[
        str | None,
        typer.Option(
            "--samplers",
            help="Comma-separated names (default: all of one run; with several, --strides or --symmetry: each run's).",
            metavar="NAMES",
            autocompletion=completions.list_of(lambda: registered.names("samplers")),
        ),
    ] = None,
    strides: Annotated[
        str | None,
        typer.Option("--strides", help="Compare strides, e.g. 1,2,5.", metavar="NUMBERS"),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Compare generated images instead of restored test images.")
    ] = False,
    symmetry: Annotated[
        bool, typer.Option("--symmetry", help="Generate from the prior's x_T and from x_T with white noise added.")
    ] = False,
    prior: Annotated[
        str | None,
        typer.Option(
            "--prior",
            help="The prior of generated images (default: the operator's own).",
            metavar="NAME",
            autocompletion=completions.one_of(lambda: registered.names("priors")),
        ),
    ] = None,
    noise: options.Noise = None,
    n: Annotated[int, typer.Option("--n", help="Number of images.", min=1)] = DEFAULT_IMAGES,
    t: options.Severity = None,
    batch_size: options.BatchSize = None,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The contact sheet to write (default: RUN/compared/...png).",
            parser=outputs.picture,
            metavar="PATH",
        ),
    ] = None,
    force: options.Force = False,
    features: options.Features = "classifier",
    weights: options.Weights = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Compare samplers, runs or strides on the same restored or generated images: one table, one contact sheet."""
    screen = Screen(json)
    check_features(features)
    check_weights(features, weights)
    is_generating = generate or symmetry or prior is not None or noise is not None
    if t is not None and is_generating:
        raise UsageError("--t is for restored test images; generation starts at T.", "Leave out one of them.")
    selected = _find(screen, names, open_run.GENERATES if is_generating else open_run.RESTORES)
    overrides = options.run_overrides(data_dir, precision, compiled)
    for run in selected:
        run.config(overrides)  # check before downloading weights

    from colddiff_core import images, sampling
    from colddiff_core.evaluation import comparison
    from colddiff_core.evaluation import reference as references

    with explain.advancing(screen) as progress:
        source = references.prepare_features(features, weights, device, progress)

    opened = [open_run.open_run(run, device, overrides) for run in selected]
    experiments = [trained.experiment for trained in opened]
    _check_comparable(experiments)
    kind = "generated" if is_generating else "restored"
    path = outputs.free_path(out, selected[0].outputs / "compared" / f"{kind}.png", force=force)
    images.check_suffix(path, images.SUFFIXES)
    contenders: list[Contender] = []
    for label, run, built in zip(_labels(selected), selected, experiments, strict=True):
        is_alone = len(selected) == 1 and strides is None and not symmetry
        requested = _samplers(samplers, built, is_alone=is_alone)
        # With several runs, each uses the samplers it supports: some are for hot diffusion only.
        supported = [
            name for name in requested if name in sampling.names(built.operator) or name not in sampling.SAMPLERS
        ]
        names_used = supported if len(selected) > 1 and supported else requested
        pairs = list(itertools.product(names_used, _strides(strides, built)))
        for name, stride in pairs:
            sampling.Sampling(name, stride).check(built.operator, t)
        generators = _generators(run, built, prior, noise, symmetry=symmetry) if is_generating else []
        contenders += _contenders(label if len(selected) > 1 else "", built, pairs, t, generators or [None])
    with explain.advancing(screen) as progress:
        reference = references.load_reference(experiments[0], source, progress)
    config = experiments[0].config
    count = n if is_generating else min(n, len(reference.test))
    chosen_seed = config.train.seed if seed is None else seed
    results = _measure(screen, contenders, reference, count, chosen_seed, batch_size)
    figures = {label: result.figures for label, result in results.items()}
    if is_generating:
        figures[REAL] = comparison.describe_real(count, reference).figures
    _draw(path, results, None if is_generating else reference.test, is_alone=len(selected) == 1)
    severities = sorted({contender.t for contender in contenders})
    data = reference.title(config.data.dataset)
    title = f"{counted(count, 'test image')} of {data} from t = {', '.join(map(str, severities))}"
    published = {contender.label: _published(contender) for contender in contenders}
    title = f"{counted(count, 'image')} from nothing" if is_generating else title
    screen.show(comparison_table(title, figures, references.labels(reference), published))
    screen.say(", ".join(f"{trained.run.label} at step {trained.step}" for trained in opened))
    screen.say("steps: network evaluations per image; ms: milliseconds per image")
    has_too_few_images = any(result.has_too_few_images for result in results.values())
    explain.explain(screen, reference, measured(figures, COMPARED), has_too_few_images=has_too_few_images)
    if is_generating and reference.target:
        screen.say(f"{REAL}: as many test images; their distances are measured on training images")
    for source in dict.fromkeys(c.experiment.config.paper["source"] for c in contenders if published[c.label]):
        screen.say(f"paper: {source}")
    output = {
        "runs": [run.label for run in selected],
        "steps": [trained.step for trained in opened],
        "kind": kind,
        "precision": ", ".join(dict.fromkeys(built.precision for built in experiments)),
        "n": count,
        "t": None if is_generating else severities,
        "seed": chosen_seed,
        **reference.metadata(),
        "metrics": figures,
        "intervals": {label: result.intervals for label, result in results.items()},
        "paper": published,
        "picture": str(path),
    }
    screen.result(output, path)


def _find(screen: Screen, names: list[str] | None, fallback: str) -> list[runs.Run]:
    """Return the runs with these names, or the newest. Raises UsageError for a run that is named twice."""
    selected = [open_run.find(screen, name, fallback) for name in (names or (None,))]
    duplicates = [
        run.label
        for index, run in enumerate(selected)
        if run.path.resolve() in [r.path.resolve() for r in selected[:index]]
    ]
    if duplicates:
        raise UsageError(f"{duplicates[0]} is named twice.", "Name each run once.")
    return selected


def _generators(
    run: runs.Run, built: Experiment, prior: str | None, noise: float | None, *, symmetry: bool
) -> list[Generator]:
    """Return the generator of a run; with `symmetry` two, without and with noise on x_T."""
    from colddiff_core.inference import generate as generation
    from colddiff_core.sampling import priors

    if symmetry and noise == 0:
        raise UsageError(
            "--symmetry compares with and without noise, so --noise 0 is not possible.", "Leave out --noise."
        )
    if symmetry and priors.find(prior, built.operator).noise is None:
        raise UsageError(f"{run.label}: its x_T has no symmetry that noise could break.", "Leave out --symmetry.")
    generators = [
        generation.prepare(run, built, prior, None, width) for width in ([0.0, noise] if symmetry else [noise])
    ]
    if symmetry and not generators[-1].noise:
        raise UsageError(f"{run.label}: --symmetry needs noise, and its default is 0.", "Set its width with --noise.")
    return generators


def _contenders(
    run: str,
    built: Experiment,
    pairs: list[tuple[str, int]],
    t: int | None,
    generators: Sequence[Generator | None],
) -> list[Contender]:
    """Return a contender for each sampler, stride and generator, labeled with what differs and an unusual stride."""
    from colddiff_core.evaluation import comparison

    severity = built.operator.steps if t is None else t
    contenders = []
    for (name, stride), generator in itertools.product(pairs, generators):
        words = [run] if run else []
        words += [name] if len({sampler for sampler, _ in pairs}) > 1 else []
        words += [f"stride {stride}"] if len({pace for _, pace in pairs}) > 1 else []
        words += [_symmetry(generator)] if len(generators) > 1 else []
        words = words or [name]
        is_unusual = stride != built.config.sample.stride
        words += [f"stride {stride}"] if is_unusual and len({pace for _, pace in pairs}) == 1 else []
        contenders.append(comparison.Contender(", ".join(words), built, name, stride, severity, generator))
    return contenders


def _measure(
    screen: Screen, contenders: list[Contender], reference: Reference, count: int, seed: int, batch_size: int | None
) -> dict[str, EvaluationResult]:
    from colddiff_core.evaluation import comparison

    results = {}
    with screen.progress() as progress:
        task = progress.add_task("comparing", total=count * len(contenders))

        def advance(done: int) -> None:
            progress.advance(task, done)

        for contender in contenders:
            progress.update(task, description=contender.label)
            if contender.generator is None:
                result = comparison.restore(
                    contender,
                    reference,
                    count=count,
                    seed=seed,
                    shown=SHOWN_ROWS,
                    batch_size=batch_size,
                    progress=advance,
                )
            else:
                result = comparison.generate(
                    contender, reference, count=count, seed=seed, shown=SHOWN_GRID, progress=advance
                )
            results[contender.label] = result
    return results


def _draw(path: Path, results: Mapping[str, EvaluationResult], originals: ImageSet | None, *, is_alone: bool) -> None:
    """Write the contact sheet: a grid per contender, or, with originals, a row per image."""
    from colddiff_core import images

    shown = {label: result.shown for label, result in results.items()}
    if originals is None:
        images.write(images.image_grid(shown, across=ACROSS), path)
        return
    first = next(iter(results.values()))
    columns = {"degraded": first.degraded} if is_alone and first.degraded is not None else {}
    columns |= shown | {"original": originals.images(originals.draw(len(first.shown)))}
    images.write(images.sheet(columns, blocks=2 if len(columns) <= MOST_COLUMNS else 1), path)


def _check_comparable(experiments: list[Experiment]) -> None:
    """Refuse runs with different images."""
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
                    f"The runs have different images: {what} is {ours} and {theirs}.",
                    "Compare runs with the same data set and size.",
                )


def _folder(built: Experiment) -> str:
    """Return the path of a `folder` data set; a named data set is the same in any folder."""
    data = built.config.data
    return data.directory if data.dataset == "folder" else ""


def _labels(selected: list[runs.Run]) -> list[str]:
    """Return a unique name for each run."""
    names = [run.path.name for run in selected]
    return [name if names.count(name) == 1 else run.label for name, run in zip(names, selected, strict=True)]


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
            f"--strides {asked}: not whole numbers separated by commas.", "For example: --strides 1,2,5"
        ) from None


def _symmetry(generator: Generator | None) -> str:
    return "broken symmetry" if generator is not None and generator.noise else "perfect symmetry"


def _published(contender: Contender) -> Mapping[str, Any]:
    """Return the paper's figures for a contender, if its preset has any."""
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
