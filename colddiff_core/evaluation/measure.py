"""Measure a trained run in one call."""

from __future__ import annotations

from colddiff_core.evaluation import evaluate as evaluation
from colddiff_core.evaluation import reference as references
from colddiff_core.inference.open_run import TrainedRun
from colddiff_core.sampling import Sampling


def evaluate(
    trained: TrainedRun,
    *,
    count: int | None = None,
    features: str = "none",
    t: int | None = None,
    stride: int | None = None,
    seed: int | None = None,
) -> dict[str, evaluation.Figures]:
    """Measure restorations of test images: the "metrics" of `colddiff eval --json`.

    Return {"degraded": {"rmse": ...}, "direct": ..., "sampled": ..., "naive": ...}.

    Args:
        count: Test images, always the same ones; None for all.
        features: "none", "classifier" or "inception": what distances between distributions are measured with.
        t: Severity; None for T.
        stride: None for the run's own.
        seed: None for the one that the run was trained with.

    Raises:
        UsageError: The features are unknown, or t or stride does not fit the run.
    """
    built, config = trained.experiment, trained.experiment.config
    severity = built.operator.steps if t is None else t
    sampling = Sampling.of(config, stride=stride, seed=seed)
    sampling.check(built.operator, severity)
    reference = references.load(built, references.prepare(features, None, str(built.device)))
    every = len(reference.test)
    settings = evaluation.EvaluationSettings(
        severity, every if count is None else min(count, every), sampling.seed, sampling.stride
    )
    results = evaluation.evaluate(built, reference, settings)
    return {column: result.figures for column, result in results.items()}
