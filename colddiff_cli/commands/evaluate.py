"""`colddiff eval`: measure a run's restorations."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json as json_
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colddiff_cli.arguments import options
from colddiff_cli.console import explain
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import EVALUATED, Row, evaluation_table, measured, severity_table
from colddiff_cli.jobs import launch, open_run
from colddiff_cli.picture_series import series
from colddiff_core import runs
from colddiff_core.distributed.environment import process_info
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.evaluation.feature_names import check_features, check_weights
from colddiff_core.paper import tables
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.config.schema import Config
    from colddiff_core.evaluation.evaluate import EvaluationResult, EvaluationSettings
    from colddiff_core.evaluation.metrics import Reference
    from colddiff_core.evaluation.resumable import PartialResults
    from colddiff_core.experiment import Experiment

DEFAULT_IMAGES = 1000
CONTINUE = "Run the same command with --resume to continue."
SEVERITIES = 10  # points of a curve


def evaluate(
    context: typer.Context,
    run: options.RunName = None,
    n: Annotated[
        int,
        typer.Option("--n", help="Number of test images, always the same ones; all if there are fewer.", min=1),
    ] = DEFAULT_IMAGES,
    t: options.Severity = None,
    by_severity: Annotated[
        bool, typer.Option("--by-severity", help="Measure at several t, without distances.")
    ] = False,
    stride: options.Stride = None,
    uint8: options.Uint8 = False,
    features: options.Features = "classifier",
    weights: options.Weights = None,
    batch_size: options.BatchSize = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted call and keep its measurements.")
    ] = False,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    nproc: options.Processes = None,
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Measure degraded, direct, sampled and naive images: RMSE, PSNR, SSIM, and their distance to real images."""
    screen = Screen(json)
    if by_severity and t is not None:
        raise UsageError("--by-severity measures at many t.", "Leave out --t or --by-severity.")
    check_features(features)
    if by_severity and (features == "inception" or weights is not None):
        raise UsageError("--by-severity measures no distances.", "Leave out --features and --weights.")
    check_weights(features, weights)

    from colddiff_core.evaluation import evaluate as evaluation
    from colddiff_core.evaluation import reference as references
    from colddiff_core.sampling import Sampling

    ranks = launch.share(context, nproc, device, CONTINUE)
    run_folder = open_run.find(screen, run, open_run.RESTORES)
    overrides = options.run_overrides(data_dir, precision, compiled)
    config = run_folder.config(overrides)
    with explain.advancing(screen) as progress:
        source = references.prepare_features("none" if by_severity else features, weights, device, progress)
    trained = open_run.open_run(run_folder, device, overrides)
    built, step = trained.experiment, trained.step
    last = built.operator.steps
    severity = last if t is None else t
    sampling = Sampling.of(config, stride=stride, seed=seed)
    sampling.check(built.operator, severity)
    with explain.advancing(screen) as progress:
        reference = references.load_reference(built, source, progress)
    count = min(n, len(reference.test))
    size = ranks.broadcast_json(batch_size or built.batch_size(evaluation.MOST))
    settings = evaluation.EvaluationSettings(severity, count, sampling.seed, sampling.stride, uint8, size)
    at_stride = "" if sampling.stride == config.sample.stride else f", stride {sampling.stride}"
    rounded = ", degraded images rounded to 8 bits" if uint8 else ""
    data = reference.title(config.data.dataset)
    title = f"{run_folder.label}, step {step}: {counted(count, 'test image')} of {data}{rounded}{at_stride}"
    output = {"run": run_folder.label, "step": step, "n": count, "stride": sampling.stride, "seed": sampling.seed}
    output |= {"protocol": "uint8" if uint8 else "float", "precision": built.precision}
    request = dataclasses.asdict(settings) | {"t": None if by_severity else severity, **reference.metadata()}
    with _partial_results(
        open_run.described(run_folder, built, step) | request, run_folder, is_resumed=resume
    ) as folder:
        if by_severity:
            curve = _curve(screen, built, reference, folder, settings)
            if ranks.is_first:
                _show_curve(screen, title, output, curve)
            return
        results = _measure(screen, built, reference, folder, settings)
        if ranks.is_first:
            output |= {"t": severity, **reference.metadata(), "is_scarce": results["degraded"].has_too_few_images}
            is_as_in_paper = severity == last and sampling.stride == 1 and not uint8
            _show(screen, f"{title} at t = {severity}", output, reference, results, config if is_as_in_paper else None)


def _show_curve(screen: Screen, title: str, output: dict[str, Any], curve: list[dict[str, Any]]) -> None:
    from colddiff_cli.console import plots

    columns = list(curve[0]["metrics"])
    plots.show_severities(screen, curve, columns)
    screen.show(severity_table(title, curve, columns))
    screen.result(output | {"by_severity": curve})


def _show(
    screen: Screen,
    title: str,
    output: dict[str, Any],
    reference: Reference,
    results: Mapping[str, EvaluationResult],
    config: Config | None,
) -> None:
    """Show the results; `config` is given if they are comparable with the paper's."""
    paper = {kind: tables.published(config, kind) for kind in results} if config else {}
    rows = {
        kind: Row(kind, result.figures, result.intervals, result.has_too_few_images, paper.get(kind, {}))
        for kind, result in results.items()
    }
    from colddiff_core.evaluation.reference import labels

    screen.show(evaluation_table(title, rows, EVALUATED, labels(reference)))
    _explain(screen, reference, results, config.paper if config and any(paper.values()) else {})
    metrics = {kind: result.figures for kind, result in results.items()}
    intervals = {kind: result.intervals for kind, result in results.items()}
    screen.result(output | {"metrics": metrics, "intervals": intervals, "paper": paper})


def _explain(
    screen: Screen, reference: Reference, results: Mapping[str, EvaluationResult], paper: Mapping[str, Any]
) -> None:
    """Explain the figures, warn about doubtful ones, and cite the paper."""
    figures = measured({kind: result.figures for kind, result in results.items()}, EVALUATED)
    if any(ends for result in results.values() for ends in result.intervals.values()):
        screen.explain("±: half the width of the 95 % bootstrap interval over the images")
    explain.explain(screen, reference, figures, has_too_few_images=results["degraded"].has_too_few_images)
    for kind, result in results.items():
        if result.figures["rmse"] is None:
            screen.warn(f"{kind}: some pixels are not finite; the network has diverged")
    if not paper:
        return
    screen.explain(f"paper: {paper['source']}; same: the paper's figure is in our interval")
    if "note" in paper:
        screen.explain(paper["note"])
    fids = ", ".join(f"{kind} {paper[kind]['fid']:g}" for kind in results if "fid" in paper.get(kind, {}))
    if fids and "fid" not in figures:
        screen.explain(f"the paper's FID, on Inception features and not comparable with these: {fids}")


@contextlib.contextmanager
def _partial_results(settings: Mapping[str, Any], run: runs.Run, *, is_resumed: bool) -> Iterator[PartialResults]:
    """Yield the folder of partial results, which is removed when all is measured.

    Raises:
        UsageError: There is nothing to resume.
        SeriesInterrupted: The call was interrupted; its message says how to continue.
    """
    from colddiff_core.distributed import group
    from colddiff_core.evaluation.resumable import PartialResults

    key = json_.dumps(settings, sort_keys=True, default=str)
    ranks = group.current()
    path = run.outputs / "evaluated" / hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    with contextlib.ExitStack() as stack:
        folder = _open_folder(path, run, stack, is_resumed=is_resumed) if ranks.is_first else None
        shared_path = Path(ranks.broadcast_json(str(folder.path if folder else "")))
        folder = folder or PartialResults(shared_path, is_first=False)
        is_done = False
        try:
            yield folder
            is_done = True
        except KeyboardInterrupt:
            launch.ignore_interrupts(ranks)
            raise series.SeriesInterrupted("Interrupted.", CONTINUE if folder.path == path else "") from None
        finally:
            folder.close(is_done=is_done)
            if run.is_pretrained:
                with contextlib.suppress(OSError):
                    run.outputs.rmdir()  # it was made for the partial results, unless it holds more


def _open_folder(path: Path, run: runs.Run, stack: contextlib.ExitStack, *, is_resumed: bool) -> PartialResults:
    """Open the folder of partial results.

    If the run's folder is not writable or the same evaluation is running, use a temporary folder that is removed with
    `stack`.
    """
    from colddiff_core.evaluation.resumable import PartialResults

    process = process_info()
    if is_resumed and not process.restarts and not path.is_dir():
        what = f"Nothing to resume: no eval of {run.label} with these settings was interrupted."
        raise UsageError(what, "Leave out --resume.")
    try:
        return PartialResults(path, is_resumed=is_resumed or process.restarts > 0)  # torchrun's restarts resume
    except MachineError:
        if is_resumed or not process.is_on_one_machine:
            raise
        return PartialResults(Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name)


def _measure(
    screen: Screen, built: Experiment, reference: Reference, folder: PartialResults, settings: EvaluationSettings
) -> dict[str, EvaluationResult]:
    from colddiff_core.distributed import group
    from colddiff_core.evaluation import evaluate as evaluation
    from colddiff_core.evaluation import resumable

    with screen.progress() as progress:
        total = settings.count * len(evaluation.COLUMNS)
        task = progress.add_task(f"restoring from t = {settings.t}", total=total)
        advance = functools.partial(progress.advance, task)
        return resumable.evaluate(built, reference, folder, settings, ranks=group.current(), progress=advance)


def _curve(
    screen: Screen, built: Experiment, reference: Reference, folder: PartialResults, settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Measure at severities spaced evenly up to the last one."""
    last, rows = built.operator.steps, []
    for t in sorted({max(1, round(last * part / SEVERITIES)) for part in range(1, SEVERITIES + 1)}):
        at_t = dataclasses.replace(settings, t=t, stride=min(settings.stride, t))
        results = _measure(screen, built, reference, folder, at_t)
        metrics = {kind: result.figures for kind, result in results.items()}
        intervals = {kind: result.intervals for kind, result in results.items()}
        rows.append({"t": t, "metrics": metrics, "intervals": intervals})
    return rows
