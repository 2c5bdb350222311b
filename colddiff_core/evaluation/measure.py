"""Measure a trained run in one call."""

from __future__ import annotations

from colddiff_core.evaluation import evaluate as evaluation
from colddiff_core.evaluation import reference as references
from colddiff_core.evaluation.metrics import Figures
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
) -> dict[str, Figures]:
    """Measure restorations of test images: the "metrics" of `colddiff eval --json`.

    Return {"degraded": {"rmse": ...}, "direct": ..., "sampled": ..., "naive": ...}.

    Args:
        trained: The run.
        count: Test images, always the same ones; None for all.
        features: Measure distances between distributions with "classifier" or "inception"; "none" skips them.
        t: Severity; None for T.
        stride: Severities per step; None for the run's setting.
        seed: None for the seed of the training.

    Raises:
        UsageError: The features are unknown, t or stride does not fit the run, or the data set is missing.
        MachineError: The data set or the weights cannot be downloaded.
    """
    built, config = trained.experiment, trained.experiment.config
    severity = built.operator.steps if t is None else t
    sampling = Sampling.of(config, stride=stride, seed=seed)
    sampling.check(built.operator, severity)
    reference = references.load_reference(built, references.prepare_features(features, None, str(built.device)))
    total = len(reference.test)
    settings = evaluation.EvaluationSettings(
        severity, total if count is None else min(count, total), sampling.seed, sampling.stride
    )
    results = evaluation.evaluate(built, reference, settings)
    return {column: result.figures for column, result in results.items()}
