"""Load the reference of an evaluation: test images, a classifier of them, and their distribution."""

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
from colddiff_core.evaluation.evaluate import Reference
from colddiff_core.evaluation.fidelity import PerceptualDistance
from colddiff_core.evaluation.inception import Inception
from colddiff_core.experiment import Experiment
from colddiff_core.paths import cache_folder
from colddiff_core.text import nearest

Progress = Callable[[str, int, int], None]  # what is at work, how much of it is done, how much there is
FEATURES = ("classifier", "inception", "none")


def silent(words: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclasses.dataclass(frozen=True)
class FeatureChoice:
    """The features that distances are measured with: one of FEATURES, and the network if it is Inception."""

    features: str = "classifier"
    inception: Inception | None = None


def check(features: str) -> None:
    """Raise UsageError for an unknown kind of features."""
    if features not in FEATURES:
        raise UsageError(f"No features '{features}'.", nearest(features, FEATURES))


def prepare(features: str, weights: Path | None, device: str, progress: Progress = silent) -> FeatureChoice:
    """Load the features that --features and --weights name, so that errors come before any work.

    Raises:
        UsageError: The features are unknown, or the file of weights does not exist.
        MachineError: The weights cannot be downloaded.
    """
    check(features)
    if weights is not None and features != "inception":
        raise UsageError("--weights are Inception's.", "Add --features inception, or leave --weights out.")
    if weights is not None and not weights.is_file():
        raise UsageError(f"--weights '{weights}': no such file.", "Name a file of Inception's weights.")
    return FeatureChoice(features, _inception(weights, device, progress) if features == "inception" else None)


def load(built: Experiment, choice: FeatureChoice, progress: Progress = silent) -> Reference:
    """Load the test images of a run's data set, a classifier if they have labels, and their distribution.

    The classifier is trained once per data set and size, and cached. Distances are computed on rank 0 only: it gets
    the statistics, the other ranks the features.

    Raises:
        UsageError: The data set is missing or damaged.
        MachineError: It cannot be downloaded.
    """
    config, together = built.config, group.current()
    test = together.one_process_first(lambda: from_config.load_images(config, "test", built.channels))

    @functools.cache
    def train() -> ImageSet:
        return from_config.load_images(config, "train", built.channels)

    if left_out := from_config.left_out(config.data, test, "test"):
        warnings.warn(ColddiffWarning(f"{left_out}: other images are measured"), stacklevel=2)
    perceptual = _perceptual(built)
    together.check_alike({"LPIPS": perceptual and perceptual.metadata()})  # its weights may be on one machine alone
    if choice.features == "none":
        return Reference(test, train, perceptual=perceptual)
    together.one_process_first(train)
    has_classes = test.labels is not None and train().labels is not None and test.classes == train().classes
    judge = together.one_process_first(lambda: _classifier(built, train(), test, progress)) if has_classes else None
    seen: Features
    if choice.inception is not None:
        seen = choice.inception
    elif judge is not None:
        seen = classifier.ClassifierFeatures(judge, f"FD-{config.data.dataset}", "classes")
    else:
        turned = together.one_process_first(
            lambda: _classifier(built, classifier.turned(train()), classifier.turned(test), progress)
        )
        seen = classifier.ClassifierFeatures(turned, f"FD-{config.data.dataset}", "quarter turns")
    together.check_alike({"classifier": seen.metadata()})  # each machine may have trained its own
    if not together.is_first:  # which alone makes figures of what all of them have seen
        return Reference(test, train, judge, None, perceptual, seen)
    measured = 0

    def advance(images: int) -> None:
        nonlocal measured
        measured += images
        progress(f"{seen.name}: features of the test images", measured, len(test))

    target = distances.reference_stats(seen, test, advance)
    return Reference(test, train, judge, target, perceptual)


def labels(reference: Reference) -> dict[str, str]:
    """Return the names of the distances by key."""

    return distances.labels(reference.target.features) if reference.target else {}


def _classifier(built: Experiment, train: ImageSet, test: ImageSet, progress: Progress) -> Classifier:

    name = built.config.data.dataset
    folder = cache_folder("classifiers")

    def advance(step: int, steps: int) -> None:
        progress(f"a classifier of {name}", step, steps)

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
    if path is None or built.config.data.size < lpips.MIN_SIDE_PIXELS:
        return None
    try:
        return lpips.Lpips(published_weights.read(published_weights.ALEXNET, path), built.device)
    except UsageError as error:
        warnings.warn(ColddiffWarning(f"no LPIPS: {error.what} {error.remedy}"), stacklevel=3)
        return None
