"""Load the reference of an evaluation: test images, their classifier, and the statistics of their features."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

from colddiff_core import devices
from colddiff_core.datasets import ImageSet, from_config
from colddiff_core.distributed import group
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.evaluation import classifier, distances, inception, lpips, published_weights
from colddiff_core.evaluation.classifier import Classifier
from colddiff_core.evaluation.distances import Features
from colddiff_core.evaluation.feature_names import check_features, check_weights
from colddiff_core.evaluation.fidelity import PerceptualDistance
from colddiff_core.evaluation.inception import Inception
from colddiff_core.evaluation.metrics import Reference
from colddiff_core.experiment import Experiment
from colddiff_core.paths import cache_folder

Progress = Callable[[str, int, int], None]  # (what is running, done, total)


def silent(words: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """The features to measure distances with.

    Attributes:
        name: One of `feature_names.FEATURES`.
        inception: The network if the name is "inception".
    """

    name: str = "classifier"
    inception: Inception | None = None


def prepare_features(features: str, weights: Path | None, device: str, progress: Progress = silent) -> FeatureSource:
    """Check the features and load Inception if they need it, before any other work starts.

    Raises:
        UsageError: The features are unknown, or the weights file does not exist or holds other weights.
        MachineError: The weights cannot be downloaded.
    """
    check_features(features)
    check_weights(features, weights)
    return FeatureSource(features, _inception(weights, device, progress) if features == "inception" else None)


def load_reference(built: Experiment, source: FeatureSource, progress: Progress = silent) -> Reference:
    """Load the test images of a run's data set, a classifier if they have labels, and their statistics.

    The classifier is trained once per data set and size, and cached. Distances are computed on rank 0 only: it gets
    the statistics, the other ranks the features.

    Raises:
        UsageError: The data set is missing or damaged, or the ranks do not agree on the networks.
        MachineError: The data set cannot be downloaded.
    """
    config, ranks = built.config, group.current()
    test = ranks.one_process_first(lambda: from_config.load_images(config, "test", built.channels))

    @functools.cache
    def train() -> ImageSet:
        return from_config.load_images(config, "train", built.channels)

    if left_out := from_config.left_out(config.data, test, "test"):
        warnings.warn(ColddiffWarning(f"{left_out}; the others are measured"), stacklevel=2)
    perceptual = _perceptual(built)
    # The weights may be cached on one machine only.
    ranks.check_same_everywhere({"LPIPS": perceptual and perceptual.metadata()})
    if source.name == "none":
        return Reference(test, train, perceptual=perceptual)
    ranks.one_process_first(train)
    has_classes = test.labels is not None and train().labels is not None and test.classes == train().classes
    network = ranks.one_process_first(lambda: _classifier(built, train(), test, progress)) if has_classes else None
    features: Features
    if source.inception is not None:
        features = source.inception
    elif network is not None:
        features = classifier.ClassifierFeatures(network, f"FD-{config.data.dataset}", "classes")
    else:
        turns = ranks.one_process_first(
            lambda: _classifier(built, classifier.turned(train()), classifier.turned(test), progress)
        )
        features = classifier.ClassifierFeatures(turns, f"FD-{config.data.dataset}", "quarter turns")
    ranks.check_same_everywhere({"classifier": features.metadata()})  # each machine may have trained its own
    if not ranks.is_first:
        return Reference(test, train, network, None, perceptual, features)
    measured = 0

    def advance(images: int) -> None:
        nonlocal measured
        measured += images
        progress(f"{features.name}: features of the test images", measured, len(test))

    target = distances.reference_stats(features, test, advance)
    return Reference(test, train, network, target, perceptual)


def labels(reference: Reference) -> dict[str, str]:
    """Return the names of the distances by key, such as {"fd": "FD-digits"}."""
    return distances.labels(reference.target.features) if reference.target else {}


def _classifier(built: Experiment, train: ImageSet, test: ImageSet, progress: Progress) -> Classifier:
    name = built.config.data.dataset
    folder = cache_folder("classifiers")

    def advance(step: int, steps: int) -> None:
        progress(f"classifier of {name}", step, steps)

    return classifier.load_or_train(train, test, folder, name, built.device, advance)


def _inception(path: Path | None, device: str, progress: Progress) -> Inception:
    """Return Inception with the weights at a path, or the published ones, downloaded once."""
    inception.check_installed()
    if path is None:

        def advance(done: int, total: int) -> None:
            progress("Inception's weights", done, total)

        path = group.current().one_process_first(
            lambda: published_weights.fetch(published_weights.INCEPTION, cache_folder("weights"), advance)
        )
    return inception.Inception(published_weights.read(published_weights.INCEPTION, path), devices.choose(device))


def _perceptual(built: Experiment) -> PerceptualDistance | None:
    """Return LPIPS if its weights are cached and the images are large enough, else None."""
    path = published_weights.find(published_weights.ALEXNET, cache_folder("weights"))
    if path is None or min(built.shape[1:]) < lpips.MIN_SIDE_PIXELS:
        return None
    try:
        return lpips.Lpips(published_weights.read(published_weights.ALEXNET, path), built.device)
    except UsageError as error:
        warnings.warn(ColddiffWarning(f"no LPIPS: {error.what} {error.remedy}"), stacklevel=3)
        return None
