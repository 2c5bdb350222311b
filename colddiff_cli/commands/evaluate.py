"""`colddiff eval`: how close a run's restorations come."""

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
from rich.progress import Progress

from colddiff_cli.arguments import options
from colddiff_cli.console import explain, plots
from colddiff_cli.console.screen import Screen
from colddiff_cli.console.tables import EVALUATED, Row, evaluation_table, measured, severity_table
from colddiff_cli.jobs import launch, open_run
from colddiff_cli.picture_series import series
from colddiff_core import runs
from colddiff_core.distributed.environment import process_info
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.paper import tables
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.config.schema import Config
    from colddiff_core.evaluation.evaluate import EvaluationResult, EvaluationSettings, Reference
    from colddiff_core.evaluation.resumable import PartialResults
    from colddiff_core.experiment import Experiment

DEFAULT_IMAGES = 1000
GO_ON = "Go on with what is measured: the same call with --resume."
SEVERITIES = 10  # of a curve


def evaluate(
    context: typer.Context,
    run: options.RunName = None,
    n: Annotated[
        int,
        typer.Option("--n", help="Test images, always the same ones; all there are if fewer.", min=1),
    ] = DEFAULT_IMAGES,
    t: options.Severity = None,
    by_severity: Annotated[
        bool, typer.Option("--by-severity", help="A curve over t instead of one severity; no distances.")
    ] = False,
    stride: options.Stride = None,
    uint8: options.Uint8 = False,
    features: options.Features = "classifier",
    weights: options.Weights = None,
    batch_size: options.BatchSize = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a call that was stopped: keep what it has measured.")
    ] = False,
    precision: options.Precision = None,
    compiled: options.Compile = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    nproc: options.Processes = None,
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Measure degraded, direct, sampled and naive restorations: RMSE, PSNR, SSIM, and their distance to real images."""
    screen = Screen(json)
    if by_severity and t is not None:
        raise UsageError("--by-severity measures at many t.", "Leave --t out, or --by-severity.")

    from colddiff_core.evaluation import evaluate as evaluation
    from colddiff_core.evaluation import reference as references
    from colddiff_core.sampling import Sampling

    references.check(features)
    if by_severity and (features == "inception" or weights is not None):
        raise UsageError("--by-severity measures no distances.", "Leave --features and --weights out.")
    together = launch.share(context, nproc, device, GO_ON)
    found = open_run.find(run)
    overrides = options.run_overrides(data_dir, precision, compiled)
    config = found.config(overrides)
    with explain.advancing(screen) as progress:
        choice = references.prepare("none" if by_severity else features, weights, device, progress)
    trained = open_run.open_run(found, device, overrides)
    built, step = trained.experiment, trained.step
    last = built.operator.steps
    severity = last if t is None else t
    sampling = Sampling.of(config, stride=stride, seed=seed)
    sampling.check(built.operator, severity)
    pace = sampling.stride
    with explain.advancing(screen) as progress:
        reference = references.load(built, choice, progress)
    count = min(n, len(reference.test))
    size = together.broadcast_json(batch_size or built.batch_size(evaluation.MOST))
    settings = evaluation.EvaluationSettings(severity, count, sampling.seed, pace, uint8, size)
    at_stride = "" if pace == config.sample.stride else f", stride {pace}"
    rounded = ", degraded images rounded to 8 bits" if uint8 else ""
    data = reference.title(config.data.dataset)
    what = f"{found.path}, step {step}: {counted(count, 'test image')} of {data}{rounded}{at_stride}"
    told = {"run": str(found.path), "step": step, "n": count, "stride": pace, "seed": sampling.seed}
    told |= {"protocol": "uint8" if uint8 else "float", "precision": built.precision}
    asked = dataclasses.asdict(settings) | {"t": None if by_severity else severity, **reference.metadata()}
    with _portions(open_run.described(found, built, step) | asked, found, is_resumed=resume) as folder:
        if by_severity:
            curve = _curve(screen, built, reference, folder, settings)
            if together.is_first:
                _show_curve(screen, what, told, curve)
            return
        outcomes = _measure(screen, built, reference, folder, settings)
        if together.is_first:
            told |= {"t": severity, **reference.metadata(), "is_scarce": outcomes["degraded"].has_too_few_images}
            is_papers = severity == last and pace == 1 and not uint8
            _show(screen, f"{what} at t = {severity}", told, reference, outcomes, config if is_papers else None)


def _show_curve(screen: Screen, what: str, told: dict[str, Any], curve: list[dict[str, Any]]) -> None:
    columns = list(curve[0]["metrics"])
    plots.show_severities(screen, curve, columns)
    screen.show(severity_table(what, curve, columns))
    screen.result(told | {"by_severity": curve})


def _show(
    screen: Screen,
    title: str,
    told: dict[str, Any],
    reference: Reference,
    outcomes: Mapping[str, EvaluationResult],
    config: Config | None,
) -> None:
    """Show what was measured; config: of a run whose figures can be held against the paper's."""
    paper = {kind: tables.published(config, kind) for kind in outcomes} if config else {}
    rows = {
        kind: Row(kind, outcome.figures, outcome.intervals, outcome.has_too_few_images, paper.get(kind, {}))
        for kind, outcome in outcomes.items()
    }
    from colddiff_core.evaluation.reference import labels

    screen.show(evaluation_table(title, rows, EVALUATED, labels(reference)))
    _explain(screen, reference, outcomes, config.paper if config and any(paper.values()) else {})
    metrics = {kind: outcome.figures for kind, outcome in outcomes.items()}
    intervals = {kind: outcome.intervals for kind, outcome in outcomes.items()}
    screen.result(told | {"metrics": metrics, "intervals": intervals, "paper": paper})


def _explain(
    screen: Screen, reference: Reference, outcomes: Mapping[str, EvaluationResult], paper: Mapping[str, Any]
) -> None:
    """Say what the table's figures are, what is wrong with them, and whose the paper's are."""
    figures = measured({kind: outcome.figures for kind, outcome in outcomes.items()}, EVALUATED)
    if any(ends for outcome in outcomes.values() for ends in outcome.intervals.values()):
        screen.explain("±: half of the 95 % bootstrap interval over the images")
    explain.explain(screen, reference, figures, has_too_few_images=outcomes["degraded"].has_too_few_images)
    for kind, outcome in outcomes.items():
        if outcome.figures["rmse"] is None:
            screen.warn(f"{kind}: not all pixels are numbers; the network has diverged")
    if not paper:
        return
    screen.explain(f"paper: {paper['source']}; same: it lies in our interval")
    if "note" in paper:
        screen.explain(paper["note"])
    fids = ", ".join(f"{kind} {paper[kind]['fid']:g}" for kind in outcomes if "fid" in paper.get(kind, {}))
    if fids and "fid" not in figures:
        screen.explain(f"the paper's FID, of Inception's features and not to be held against these: {fids}")


@contextlib.contextmanager
def _portions(settings: Mapping[str, Any], run: runs.Run, *, is_resumed: bool) -> Iterator[PartialResults]:
    """Yield where what is measured is kept until all of it is.

    Raises UsageError where there is nothing to go on with, and what says how to go on where this call is interrupted.
    """
    from colddiff_core.distributed import group
    from colddiff_core.evaluation.resumable import PartialResults

    said = json_.dumps(settings, sort_keys=True, default=str)
    together = group.current()
    path = run.path / "evaluated" / hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
    with contextlib.ExitStack() as stack:
        folder = _taken(path, stack, is_resumed=is_resumed) if together.is_first else None
        told = Path(together.broadcast_json(str(folder.path if folder else "")))
        folder = folder or PartialResults(told, is_first=False)
        is_done = False
        try:
            yield folder
            is_done = True
        except KeyboardInterrupt:
            launch.hear_no_more(together)
            raise series.SeriesInterrupted("Interrupted.", GO_ON if folder.path == path else "") from None
        finally:
            folder.close(is_done=is_done)


def _taken(path: Path, stack: contextlib.ExitStack, *, is_resumed: bool) -> PartialResults:
    """Return the folder of a call; where the run's takes none, one that is gone with `stack`: the run may be another
    user's, or another call like this one be at it.
    """
    from colddiff_core.evaluation.resumable import PartialResults

    here = process_info()
    if is_resumed and not here.restarts and not path.is_dir():
        what = f"There is nothing to go on with: no call of eval with these settings was stopped at {path.parents[1]}."
        raise UsageError(what, "Leave --resume out.")
    try:
        return PartialResults(
            path, is_resumed=is_resumed or here.restarts > 0
        )  # as a series goes on that torchrun restarts
    except MachineError:
        if is_resumed or not here.is_on_one_machine:
            raise
        return PartialResults(Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name)


def _measure(
    screen: Screen, built: Experiment, reference: Reference, folder: PartialResults, settings: EvaluationSettings
) -> dict[str, EvaluationResult]:
    from colddiff_core.distributed import group
    from colddiff_core.evaluation import evaluate as evaluation
    from colddiff_core.evaluation import resumable

    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        total = settings.count * len(evaluation.COLUMNS)
        task = progress.add_task(f"restoring from t = {settings.t}", total=total)
        advance = functools.partial(progress.advance, task)
        return resumable.evaluate(built, reference, folder, settings, ranks=group.current(), progress=advance)


def _curve(
    screen: Screen, built: Experiment, reference: Reference, folder: PartialResults, settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """Return the figures at severities spread evenly up to the last."""
    last, rows = built.operator.steps, []
    for t in sorted({max(1, round(last * part / SEVERITIES)) for part in range(1, SEVERITIES + 1)}):
        at_t = dataclasses.replace(settings, t=t, stride=min(settings.stride, t))
        outcomes = _measure(screen, built, reference, folder, at_t)
        metrics = {kind: outcome.figures for kind, outcome in outcomes.items()}
        intervals = {kind: outcome.intervals for kind, outcome in outcomes.items()}
        rows.append({"t": t, "metrics": metrics, "intervals": intervals})
    return rows
